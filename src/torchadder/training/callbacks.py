"""What a run does beside the loop: the table of metrics, the guard against NaN, random numbers.

The checkpoints themselves are Lightning's `ModelCheckpoint`.
"""

from __future__ import annotations

import csv
import io
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from torchadder.atomic import write_atomically
from torchadder.checkpoint import CheckpointError

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
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

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
        torch.set_rng_state(self._restored["cpu"])
        if torch.cuda.is_available() and "cuda" in self._restored:
            torch.cuda.set_rng_state_all(self._restored["cuda"][: torch.cuda.device_count()])

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what a checkpoint must have in common with the run that goes on from it."""
        checkpoint["recipe"] = self.recipe
        checkpoint["division"] = self.division


class ValidateLastEpoch(Callback):
    """Lets the last epoch end with a validation, whatever `check_val_every_n_epoch` says."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has every epoch validated from the last one on."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class BestAndLast(ModelCheckpoint):
    """`best.ckpt` and `last.ckpt`, written after each validated epoch.

    After an epoch without a validation `last.ckpt` is written where the last time is a minute ago,
    so that writing never takes longer than training. Unlike its base it remembers the best score
    when the run folder has been moved.

    Args:
        folder: Folder of the checkpoints.
        monitor: The metric whose highest value is the best.
        seconds: Time after which `last.ckpt` is written without a validation.
    """

    def __init__(self, folder: Path, monitor: str, seconds: float = 60.0) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=monitor,
            mode="max",
            save_last=True,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.seconds = seconds
        self._saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves `best.ckpt` if there is no better epoch, and `last.ckpt` if it is time."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)
        elif not self._is_time(trainer):
            return
        self._saved_at = time.monotonic()
        # From 2.6 on, Lightning writes last.ckpt only along with a new best.ckpt.
        if self._last_global_step_saved != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _is_time(self, trainer: Trainer) -> bool:
        # All processes save together: the first one decides.
        return trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.seconds)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the scores, with all paths in the folder as it is called now."""
        here = str(self.dirpath)

        def moved(path: str) -> str:
            return os.path.join(here, os.path.basename(path)) if path else path

        super().load_state_dict(
            state_dict
            | {name: moved(state_dict[name]) for name in state_dict if name.endswith("_path")}
            | {
                "dirpath": self.dirpath,
                "best_k_models": {
                    moved(path): score for path, score in state_dict["best_k_models"].items()
                },
            }
        )
