"""What every data module of a training shares: the division of an epoch, the order, the place."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from torchadder.data.plan import BatchPlan
from torchadder.data.sampling import EpochSampler
from torchadder.data.sources import DataError
from torchadder.data.within_epoch import position


class GoesOnWithinEpoch:
    """Tells Lightning that a loader can begin in the middle of an epoch.

    Lightning asks a loader for a state, which comes too late: worker processes have fetched their
    first batches then. It is the data module that has it, `EpochData.first_batch`.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Does nothing."""


class EpochLoader(GoesOnWithinEpoch, DataLoader):
    """torch's loader of an order that is a function of (seed, epoch)."""


class EpochData(lightning.LightningDataModule):
    """Images to train and to validate on, taken in an order that is a function of (seed, epoch).

    Attributes:
        source (str): Where the images come from.
        batch_size (int): Images per batch, all processes together.
        eval_batch_size (int | None): Images per validation batch; None: `batch_size`.
        workers (int | None): Worker processes; None: the module chooses.
        seed (int): Seed of order and augmentation.
        train (Sized): Training images, from `setup` on.
        val (Sized): Validation images, from `setup` on.
        num_classes (int): Number of classes, from `setup` on.
        class_names (list[str]): Their names.
        first_epoch (int): The epoch that training begins with, counted from 0. Lightning says it
            too, but lets worker processes fetch their first batches before.
        first_batch (int): The batch of that epoch that training begins with, counted from 0.
    """

    source: str
    batch_size: int
    eval_batch_size: int | None
    workers: int | None
    seed: int
    train: Sized
    val: Sized
    num_classes: int
    class_names: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.first_epoch = 0
        self.first_batch = 0

    @property
    def stream_workers(self) -> int | None:
        """Worker processes that read a stream; None where it does not matter who reads what."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Where a run that goes on from here begins; Lightning keeps it in its checkpoints."""
        if self.trainer is None:
            return {}
        epoch, batch = position(self.trainer)
        return {"first_epoch": epoch, "first_batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begins there."""
        self.first_epoch = state_dict["first_epoch"]
        self.first_batch = state_dict["first_batch"]

    @property
    def left_out(self) -> Sequence[object]:
        """Entries of the source that cannot be used and were skipped; `str()` says why."""
        return ()

    def plan(self, world_size: int) -> BatchPlan:
        """How an epoch of the training images is divided among the processes.

        Raises:
            DataError: If it cannot be.
        """
        if len(self.val) < world_size:
            raise DataError(
                f"{len(self.val)} validation images are too few for {world_size} processes"
            )
        return BatchPlan(len(self.train), self.batch_size, world_size)

    def num_val_batches(self, world_size: int) -> int:
        """Batches that the validation images make in the process with the fewest of them."""
        batch_size = max(1, (self.eval_batch_size or self.batch_size) // world_size)
        return -(-(len(self.val) // world_size) // batch_size)

    def _sampler(self, images: Sized, *, shuffle: bool) -> EpochSampler:
        rank, world_size = self._place()
        sampler = EpochSampler(
            len(images),
            shuffle=shuffle,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            num_used=self.plan(world_size).num_used if shuffle else None,
        )
        sampler.set_epoch(self.first_epoch)
        if shuffle:
            num_done = self.first_batch * (self.batch_size // world_size)
            sampler.start_at(self.first_epoch, num_done)
        return sampler

    def _place(self) -> tuple[int, int]:
        """Number of this process, and how many there are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _device(self) -> torch.device | None:
        """Where the trainer computes; None without one."""
        return None if self.trainer is None else self.trainer.strategy.root_device
