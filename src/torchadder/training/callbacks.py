"""What a run does beside the loop: the table of metrics, the guard against NaN, random numbers.

The checkpoints are those of `torchadder.training.checkpoints`.
"""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping

from torchadder.atomic import write_atomically
from torchadder.checkpoint import CheckpointError
from torchadder.data.within_epoch import begins_within_epoch, is_within_epoch
from torchadder.training.own_state import random_state, set_random_state

FIRST_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_top5",
    "val_ap",
    "val_ap50",
    "val_ap75",
    "lr",
    "seconds",
)


SAID = {"accuracy": "accuracy", "ap": "AP", "ap50": "AP50"}
"""Shares that the terminal shows of each epoch, and what they are called."""


class MetricsTable(Callback):
    """Writes `metrics.csv`: one row for each finished epoch, numbers with all their digits.

    Cells of an epoch without a validation are empty where its metrics would stand. When a run goes
    on from a checkpoint, rows of epochs after that checkpoint are dropped.

    Args:
        path: The file.

    Attributes:
        rows (list[dict[str, float]]): The rows so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._start = 0.0
        self._lr = 0.0

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the time that an unfinished epoch has taken, and its learning rate."""
        if is_within_epoch(trainer):
            checkpoint["row"] = {"seconds": time.monotonic() - self._start, "lr": self._lr}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on with that epoch; the start of another one overwrites it."""
        row = checkpoint.get("row", {"seconds": 0.0, "lr": 0.0})
        self._start = time.monotonic() - row["seconds"]
        self._lr = row["lr"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the rows of the epochs that the checkpoint knows."""
        self.restore(trainer.current_epoch)

    def restore(self, num_epochs: int) -> None:
        """Takes over the rows of the first epochs from the file, if there is one."""
        if self.path.is_file():
            rows = read_metrics(self.path)
            self.rows = [row for row in rows if row["epoch"] <= num_epochs]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the time and the learning rate, and forgets the metrics of the epoch before."""
        # Lightning keeps those of the last validation, whenever it was.
        trainer.callback_metrics.clear()
        self._start = time.monotonic()
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the row and says it on the terminal."""
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name not in ("loss", "accuracy")
        }
        values |= {
            "epoch": trainer.current_epoch + 1,
            "lr": self._lr,
            "seconds": round(time.monotonic() - self._start, 3),
        }
        first = [name for name in FIRST_COLUMNS if name in values]
        rest = sorted(set(values) - set(first))
        self.rows.append({name: values[name] for name in [*first, *rest]})
        if trainer.is_global_zero:
            self._write()
            trainer.print(self._line(self.rows[-1], trainer.max_epochs or 0), flush=True)

    def _write(self) -> None:
        text = io.StringIO(newline="")
        names = {name for row in self.rows for name in row}
        first = [name for name in FIRST_COLUMNS if name in names]
        writer = csv.DictWriter(text, [*first, *sorted(names - set(first))])
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue())

    @staticmethod
    def _line(row: dict[str, float], epochs: int) -> str:
        parts = [f"epoch {row['epoch']:.0f}/{epochs}"]
        for split in ("train", "val"):
            words = [f"loss {row[f'{split}_loss']:.4f}"] if f"{split}_loss" in row else []
            for key, name in SAID.items():
                if f"{split}_{key}" in row:
                    words.append(f"{name} {100 * row[f'{split}_{key}']:.2f} %")
            if words:
                parts.append(" ".join([split, *words]))
        if "teacher_val_accuracy" in row:
            parts.append(f"teacher {100 * row['teacher_val_accuracy']:.2f} %")
        return "  ".join([*parts, f"lr {row['lr']:.4g}", f"{row['seconds']:.1f} s"])


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = [
            {
                name: int(value) if name == "epoch" else float(value)
                for name, value in row.items()
                if value != ""
            }
            for row in lines
        ]
        if not text.endswith("\n") or any("epoch" not in row for row in rows):
            raise ValueError("its end or its column of epochs is missing")
    # A row that is too short or too long has None, or a list, among its values.
    except (ValueError, TypeError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged, remove it to go on without: {error}") from error
    return rows


class RunState(Callback):
    """Keeps what Lightning does not: torch's random numbers, the recipe, and that a run has to end.

    Args:
        recipe: The recipe as plain values.
        division: How the images of an epoch were divided, as plain values.
    """

    def __init__(self, recipe: dict[str, Any], division: dict[str, int]) -> None:
        self.recipe = recipe
        self.division = division
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of torch's generators."""
        return random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training starts."""
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the generators, after everything that may have drawn on them.

        A run whose patience was at an end when it was stopped trains no further epoch.
        """
        if self._restored is None:
            return
        for callback in trainer.early_stopping_callbacks:
            if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience:
                trainer.should_stop = True
        set_random_state(self._restored)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what a checkpoint must have in common with the run that goes on from it."""
        checkpoint["recipe"] = self.recipe
        checkpoint["division"] = self.division


class ValidateLastEpoch(Callback):
    """Lets the last epoch end with a validation, whatever `check_val_every_n_epoch` says."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does it for an epoch that is gone on with."""
        if begins_within_epoch(trainer):
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has every epoch validated from the last one on."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1
