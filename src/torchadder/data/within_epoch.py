"""Going on in the middle of an epoch."""

from __future__ import annotations

from typing import Any

import lightning


def begins_within_epoch(trainer: lightning.Trainer) -> bool:
    """Whether a run, from `on_train_start` to its first batch, goes on after some of an epoch's.

    Lightning calls no `on_train_epoch_start` then. What that hook does must be done by
    `on_train_start`, except for what the checkpoint brings.
    """
    return trainer.fit_loop.restarted_mid_epoch


def is_within_epoch(trainer: lightning.Trainer) -> bool:
    """Whether an epoch was begun and its last batch is not yet behind."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return progress.started > progress.processed


def position(trainer: lightning.Trainer) -> tuple[int, int]:
    """The epoch and the batch, both counted from 0, that a run would go on with from here."""
    loop = trainer.fit_loop
    batch = loop.epoch_loop.batch_progress.current.ready if is_within_epoch(trainer) else 0
    epochs: Any = loop.epoch_progress.current
    return epochs.processed, batch


def num_batches_done(state: dict[str, Any]) -> int:
    """Batches of the unfinished epoch in a training state; 0 where it was saved after an epoch."""
    loop = state["loops"]["fit_loop"]
    epochs = loop["epoch_progress"]["current"]
    if epochs["started"] == epochs["processed"]:
        return 0
    return loop["epoch_loop.batch_progress"]["current"]["ready"]
