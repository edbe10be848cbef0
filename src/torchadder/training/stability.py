"""The table of a run's stability: a callback that measures every n-th step."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import Optimizer

from torchadder.atomic import write_atomically
from torchadder.stability.meter import Reading, StabilityMeter
from torchadder.stability.table import COLUMNS, read_table, table_text


class StabilityTable(Callback):
    """Writes `stability.csv`: a row for each quantity of each layer in each measured step.

    The quantities are those of `torchadder.stability.meter.QUANTITIES`. A step counts from 0 and is
    that which the optimizer makes: of accumulated batches the last one is measured, of several
    processes the first one's share. Nothing waits for the device: what was measured is read and
    written at the end of the epoch, before a checkpoint, or when training stops, and whole: rows
    are appended, and when a run goes on, those of steps that it makes again are dropped.

    Args:
        path: The file.
        model: The net to be measured, as it is before training.
        every: Steps from one measurement to the next.

    Raises:
        ValueError: If no layer of the net has a batch norm behind it.
    """

    def __init__(self, path: Path, model: nn.Module, every: int) -> None:
        self.path = path
        self.every = every
        self.meter = StabilityMeter(model)
        self._readings: list[Reading] = []
        self._step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the rows of the steps that the checkpoint knows."""
        if trainer.is_global_zero:
            rows = read_table(self.path) if self.path.is_file() else []
            kept = [row for row in rows if row[0] < trainer.global_step]
            write_atomically(self.path, table_text([COLUMNS, *kept]))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins a measurement if it is time."""
        if trainer.is_global_zero and trainer.global_step % self.every == 0:
            self._step = trainer.global_step
            self.meter.before_forward()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measures, before clipping and AdaptiveLR change the gradients."""
        if self._step is not None:
            self.meter.before_step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends a measurement, unless further batches belong to the step."""
        if self._step is not None and trainer.global_step > self._step:
            self._readings.append(self.meter.after_step(self._step))
            self._step = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what was measured."""
        self._write()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the steps that a run which goes on from here does not make again."""
        self._write()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Writes what was measured: the steps before a failure are the ones to look at."""
        with contextlib.suppress(OSError):  # the first error is the one to say
            self._write()

    def _write(self) -> None:
        rows = [row for reading in self._readings for row in reading.rows()]
        self._readings = []
        if rows:
            _append(self.path, table_text(rows))


def _append(path: Path, text: str) -> None:
    """Adds text to a file and forces it onto the disk."""
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
