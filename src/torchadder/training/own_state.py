"""What each of several processes has for itself: random numbers, and batch norm's statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from torchadder.data.images import draw
from torchadder.data.within_epoch import begins_within_epoch
from torchadder.processes import objects_of_processes


def random_state() -> dict[str, Any]:
    """The states of torch's generators in this process."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Goes on with the random numbers of a `random_state`."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


class OwnState(Callback):
    """Keeps what is not a parameter equal in all processes, and random numbers apart.

    Batch norm's running statistics follow each process's own batches; their averages are taken
    over before they are used or saved. Random numbers drawn in a step (dropout) are a pure function
    of (seed, epoch, rank), so that a run that goes on draws what it would have drawn. Within an
    epoch each process goes on with its own statistics and random numbers, as `averaged` leaves them
    in the checkpoint; another number of processes goes on with the averages, and with numbers that
    nobody has drawn. Nothing happens where there is one process only.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._own: list[Tensor] | None = None
        self._saved: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        """A block for saving: running statistics are the averages, and each process's own after it.

        Args:
            model: What is saved.
        """
        statistics = _running_statistics(model)
        self._own = [buffer.clone() for buffer in statistics]
        try:
            average_running_statistics(model)
            yield
            for buffer, values in zip(statistics, self._own, strict=True):
                buffer.copy_(values)
        finally:
            self._own = None

    def on_save_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Adds what is each process's own, within `averaged`."""
        if trainer.world_size > 1 and self._own is not None:
            own = {"random": random_state(), "statistics": [v.cpu() for v in self._own]}
            checkpoint["ranks"] = objects_of_processes(own)

    def on_load_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Keeps it until training starts."""
        self._saved = checkpoint.get("ranks", [])

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Gives each process its own again, where the run goes on within an epoch."""
        if trainer.world_size == 1 or not begins_within_epoch(trainer):
            return
        saved, self._saved = self._saved, []
        if len(saved) != trainer.world_size:
            seed_process(self.seed, trainer.global_step, trainer.global_rank, purpose=17)
            return
        own = saved[trainer.global_rank]
        set_random_state(own["random"])
        for buffer, values in zip(_running_statistics(pl_module), own["statistics"], strict=True):
            buffer.copy_(values)

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Gives each process its own random numbers."""
        if trainer.world_size > 1:
            seed_process(self.seed, trainer.current_epoch, trainer.global_rank, purpose=11)

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Averages the running statistics."""
        average_running_statistics(pl_module)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Averages the running statistics, for an epoch without validation."""
        average_running_statistics(pl_module)


def seed_process(seed: int, moment: int, rank: int, *, purpose: int) -> None:
    """Gives torch the random numbers of one process from a moment (an epoch, a step) on."""
    key = draw(seed, moment, np.array([rank]), purpose)[0]
    torch.manual_seed(int(key >> np.uint64(1)))


@torch.no_grad()
def average_running_statistics(model: nn.Module) -> None:
    """Replaces batch norm's running means and variances by their averages over all processes."""
    statistics = _running_statistics(model)
    if not statistics:
        return
    flat = torch.cat([buffer.flatten().double() for buffer in statistics])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, values in zip(
        statistics, flat.split([buffer.numel() for buffer in statistics]), strict=True
    ):
        buffer.copy_(values.view_as(buffer))


def _running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances in which processes differ; none for a single process."""
    if not dist.is_initialized():
        return []
    return [
        buffer
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase)
        # Those of a fixed teacher are the same everywhere, and stay as they are to the last bit.
        and all(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        for buffer in (layer.running_mean, layer.running_var)
        if buffer is not None
    ]
