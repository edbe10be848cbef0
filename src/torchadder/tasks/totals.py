"""Sums over the images of an epoch, kept where the net computes and read when someone asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        totals = torch.cat([self._totals, self._totals.new_full((1,), self.count)])
        if reduce is not None:
            totals = reduce(totals)
        return dict(zip(self._names, (totals[:-1] / totals[-1]).unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What an epoch that is gone on with needs, on the CPU; empty before the first batch."""
        if self._totals is None:
            return {}
        return {
            "names": list(self._names),
            "totals": self._totals.cpu().clone(),
            "count": self.count,
        }

    def load_state_dict(self, states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Takes up what `state_dict` gave.

        Args:
            states: What it gave in one process, or in several whose batches are taken together.
            device: Where the batches will lie.
        """
        self.reset()
        filled = [state for state in states if state]
        if filled:
            self._names = tuple(filled[0]["names"])
            self._totals = torch.stack([state["totals"] for state in filled]).sum(0).to(device)
            self.count = sum(state["count"] for state in filled)
