"""What a run says while an epoch lasts: a bar, lines, and curves of single steps.

Reading a number from a GPU makes the GPU wait for the host. So bar and lines read at most a few
times a second, and the points of the curves stay on the device until a checkpoint is written or
the epoch is over.
"""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from torch import Tensor

from torchadder.data.within_epoch import begins_within_epoch

SHOWN = {"train_loss": "loss", "train_accuracy": "accuracy"}
"""What of a task's `train_totals` is shown, and what it is called."""


class Bar(TQDMProgressBar):
    """Lightning's progress bar, with epochs counted from 1 and the means of the epoch so far.

    Args:
        seconds: Time between two updates.
    """

    def __init__(self, seconds: float = 0.2) -> None:
        super().__init__()
        self.seconds = seconds
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the bar of an epoch that is gone on with."""
        super().on_train_start(trainer, *_)
        if begins_within_epoch(trainer):
            self.on_train_epoch_start(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the bar of an epoch."""
        super().on_train_epoch_start(trainer)
        words = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.train_progress_bar.set_description(words)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the bar if it is time."""
        is_last = batch_idx + 1 == trainer.num_training_batches
        if is_last or time.monotonic() - self._last >= self.seconds:
            self._last = time.monotonic()
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The means of the epoch so far, and the metrics marked for the bar."""
        metrics = shown_means(pl_module) | dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        return metrics


class Lines(Callback):
    """Progress for a file or a pipe: a line every half minute instead of a bar.

    Args:
        seconds: Time between two lines.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints a line if it is time."""
        if time.monotonic() - self._last < self.seconds:
            return
        self._last = time.monotonic()
        means = shown_means(pl_module)
        trainer.print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  "
            f"batch {batch_idx + 1}/{trainer.num_training_batches}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in means.items()),
            flush=True,
        )


class StepCurves(Callback):
    """Loss and accuracy of every n-th batch, n = `log_every_n_steps`, for the loggers.

    On a CPU a point is logged at once, elsewhere before a checkpoint and at the end of its epoch.
    """

    def __init__(self) -> None:
        self._points: list[tuple[int, dict[str, Tensor]]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes a point if it is time."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % every:
            return
        means: dict[str, Tensor] = pl_module.train_totals.last_means()  # type: ignore[union-attr]
        self._points.append((trainer.global_step, means))
        if trainer.strategy.root_device.type == "cpu":
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is left."""
        self._write(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the points of the steps that a run which goes on from here does not make again."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        for step, means in self._points:
            values = {name: float(means[key]) for key, name in SHOWN.items() if key in means}
            for logger in trainer.loggers:
                logger.log_metrics(values, step)
        self._points.clear()


def shown_means(task: LightningModule) -> dict[str, float]:
    """Loss and accuracy of the epoch so far; reading them waits for the device."""
    means: dict[str, Tensor] = task.train_totals.means()  # type: ignore[union-attr]
    return {name: float(means[key]) for key, name in SHOWN.items() if key in means}
