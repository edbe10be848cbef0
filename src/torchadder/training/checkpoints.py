"""When the checkpoints of a run are written: a callback on top of Lightning's `ModelCheckpoint`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

Around = Callable[[nn.Module], AbstractContextManager[None]]


class BestAndLast(ModelCheckpoint):
    """`best.ckpt` and `last.ckpt`, written after each validated epoch.

    After an epoch without a validation `last.ckpt` is written where the last time is a minute ago,
    so that writing never takes longer than training. Within an epoch it is written, after a step of
    the optimizer, where the last time is `within` seconds ago. Unlike its base it remembers the
    best score when the run folder has been moved.

    Args:
        folder: Folder of the checkpoints.
        monitor: The metric whose highest value is the best.
        seconds: Time after which `last.ckpt` is written without a validation.
        within: Time after which `last.ckpt` is written within an epoch; 0: after each step; None:
            never.
        around: A `with` block, given the task, in which it is written then.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        seconds: float = 60.0,
        within: float | None = None,
        around: Around | None = None,
    ) -> None:
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
        self.within = within
        self.around = around
        self._saved_at = 0.0
        self._batches_to_ask = 1
        self._asked_at = 0.0
        self._batches_since = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        self._saved_at = self._asked_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves `last.ckpt` if it is time."""
        self._batches_since += 1
        if self.within is None or self._batches_since < self._batches_to_ask:
            return
        is_last = batch_idx + 1 == trainer.num_training_batches or trainer.is_last_batch
        # After the last batch the epoch ends; between two steps, gradients would have to be saved.
        if is_last or trainer.fit_loop._should_accumulate():
            return
        if self._ask(trainer, self.within):
            before = self._last_global_step_saved
            with self.around(pl_module) if self.around else contextlib.nullcontext():
                self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            # Where the epoch ends after this step all the same, it is saved as one that ends.
            self._last_global_step_saved = before
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

    def _ask(self, trainer: Trainer, within: float) -> bool:
        """Whether it is time, and after how many batches to ask again.

        Asking makes several processes wait for the first one. So they ask when half of the time
        that is left will be over, as far as the batches since the last time tell, and after twice
        as many batches at most. A single process asks after each.
        """
        now = time.monotonic()
        left = within - (now - self._saved_at)
        is_time = left <= 0
        if trainer.world_size > 1:
            per_batch = max((now - self._asked_at) / self._batches_since, 1e-6)
            half = int((within if is_time else left) / 2 / per_batch)
            num_batches = max(1, min(half, 2 * self._batches_since))
            is_time, self._batches_to_ask = trainer.strategy.broadcast((is_time, num_batches))
        self._asked_at = now
        self._batches_since = 0
        return is_time

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
