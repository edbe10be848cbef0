"""Looks for NaN and infinity on the device, without telling the host before it asks.

A host that reads a number from a GPU waits for everything the GPU still has to do, and the GPU then
waits for the host. So the verdict stays on the device: from the first batch that is not finite, the
flag is up and a fused optimizer that holds it (`optimizer.found_inf`) skips its steps, so that the
weights stay as they were when that batch came. Trainers and files are not known here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moment(NamedTuple):
    """A batch of a run: optimizer steps done before it, epochs before it, number in its epoch."""

    step: int
    epoch: int
    batch_idx: int


class FiniteWatch:
    """A flag on the device that goes up at the first batch that is not finite, and stays up.

    Args:
        device: Where the net computes.

    Attributes:
        flag (Tensor): float32 scalar, 0 or 1; the form in which optimizers take it.
    """

    def __init__(self, device: torch.device) -> None:
        self.flag = torch.zeros((), dtype=torch.float32, device=device)
        self._unit_scale = torch.ones_like(self.flag)
        self._num_good = torch.zeros((), dtype=torch.int64, device=device)
        self._moments: list[tuple[Moment, torch.Size]] = []
        self._kept: dict[torch.Size, tuple[Tensor, Tensor]] = {}

    def begin(self, images: Tensor, labels: Tensor, moment: Moment) -> None:
        """Keeps a copy of the batch, unless one before it was not finite."""
        self._moments.append((moment, images.shape))
        kept = self._kept.get(images.shape)
        if kept is None:
            self._kept[images.shape] = images.clone(), labels.clone()
            return
        for old, new in zip(kept, (images, labels), strict=True):
            torch.where(self.flag > 0, old, new, out=old)

    def end(self, tensors: list[Tensor]) -> None:
        """Raises the flag if any of the batch's loss and gradients is not finite."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor.detach())
        for group in by_dtype.values():
            # One kernel for all tensors; the factor of 1 leaves them as they are.
            torch._amp_foreach_non_finite_check_and_unscale_(  # pyright: ignore
                group, self.flag, self._unit_scale
            )
        self._num_good += self.flag == 0

    def first_bad(self) -> tuple[Moment, Tensor, Tensor] | None:
        """When the first batch came that was not finite, its images and labels; None if none was.

        Waits for the device, and starts anew after a good answer.
        """
        if not self.flag.item():
            self._moments.clear()
            self._num_good.zero_()
            return None
        moment, shape = self._moments[int(self._num_good.item())]
        return moment, *self._kept[shape]
