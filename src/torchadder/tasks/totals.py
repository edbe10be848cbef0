"""Sums over the images of an epoch, kept where the net computes and read when someone asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class EpochTotals:
    """Adds up what every batch of an epoch contributes, without waiting for the device.

    A batch costs two small kernels, whatever the number of metrics; only `means` followed by a
    conversion to numbers makes the host wait.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.count = 0
        self.last: Tensor | None = None
        self._names: tuple[str, ...] = ()
        self._totals: Tensor | None = None
        self._last_count = 0

    def add(self, sums: Mapping[str, Tensor], count: int) -> None:
        """Adds a batch.

        Args:
            sums: Scalars by name, each a sum over the images of the batch; always the same names.
            count: Images of the batch.
        """
        dtype = torch.get_default_dtype()
        self.last = torch.stack([value.detach().to(dtype) for value in sums.values()])
        self._last_count = count
        self.count += count
        if self._totals is None:
            self._names = tuple(sums)
            self._totals = self.last.clone()
        else:
            self._totals += self.last

    def last_means(self) -> dict[str, Tensor]:
        """Means over the images of the batch that was added last; empty before the first."""
        if self.last is None:
            return {}
        return dict(zip(self._names, (self.last / self._last_count).unbind(), strict=True))

    def means(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Means over all images so far; empty before the first batch.

        Args:
            reduce: Sums a tensor over all processes; None: there is only this one.
        """
        if self._totals is None:
            return {}
        totals, count = self._over_processes(self._totals, reduce)
        return dict(zip(self._names, (totals / count).unbind(), strict=True))

    def state_dict(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, Any]:
        """What goes on from here needs, of all processes together; empty before the first batch.

        Args:
            reduce: As of `means`.
        """
        if self._totals is None:
            return {}
        totals, count = self._over_processes(self._totals, reduce)
        return {"names": list(self._names), "totals": totals, "count": round(float(count))}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Takes up what `state_dict` gave, on the device that the batches will lie on."""
        self.reset()
        if state:
            self._names = tuple(state["names"])
            self._totals = state["totals"].to(device, copy=True)
            self.count = state["count"]

    def _over_processes(
        self, totals: Tensor, reduce: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The sums, and the number of images they are of."""
        together = torch.cat([totals, totals.new_full((1,), self.count)])
        if reduce is not None:
            together = reduce(together)
        return together[:-1], together[-1]
