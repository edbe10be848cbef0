"""The order of the images of an epoch: a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from torchadder.data.images import draw


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index), shuffled by a pure function of (seed, epoch).

    Lightning calls `set_epoch`. Under distributed training each rank takes every `world_size`-th
    index; nothing is repeated, so shares may differ by one.

    Args:
        num_images: Images of the split.
        shuffle: Whether to shuffle.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes.
        num_used: Images of the order that are used; None: all.
    """

    def __init__(
        self,
        num_images: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_used: int | None = None,
    ) -> None:
        self.num_images = num_images
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_used = num_images if num_used is None else num_used
        self.epoch = 0
        self._start = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order."""
        self.epoch = epoch

    def start_at(self, epoch: int, num_done: int) -> None:
        """Chooses an epoch of whose order this process's first images are left out."""
        self.epoch = epoch
        self._start = (epoch, num_done)

    def __len__(self) -> int:
        """Images of this process in a whole epoch."""
        return len(range(self.rank, self.num_used, self.world_size))

    def order(self) -> Tensor:
        """Indices of this process's images in the order of the epoch, int64."""
        if self.shuffle:
            key = int(draw(self.seed, self.epoch, np.zeros(1), 7)[0] >> np.uint64(1))
            generator = torch.Generator().manual_seed(key)
            order = torch.randperm(self.num_images, generator=generator)
        else:
            order = torch.arange(self.num_images)
        epoch, num_done = self._start
        own = order[self.rank : self.num_used : self.world_size]
        return own[num_done:] if self.epoch == epoch else own

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in self.order().tolist():
            yield self.epoch, index
