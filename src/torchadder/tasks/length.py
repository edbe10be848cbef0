"""How long a run is, whichever of Lightning's limits ends it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import lightning


@dataclass(frozen=True)
class RunLength:
    """Length of a run.

    Attributes:
        steps: Optimizer steps.
        steps_per_epoch: Those of a whole epoch; None where the data has no length.

    >>> RunLength(steps=10, steps_per_epoch=4).epochs
    3
    """

    steps: int
    steps_per_epoch: int | None

    @property
    def epochs(self) -> int | None:
        """Epochs begun, the last of which `max_steps` may cut short; None if not known."""
        if self.steps_per_epoch is None:
            return None
        return max(1, math.ceil(self.steps / self.steps_per_epoch))


def run_length(trainer: lightning.Trainer) -> RunLength | None:
    """The length of a trainer's run, `max_epochs` or `max_steps`, whichever ends it first.

    Args:
        trainer: A trainer that fits.

    Returns:
        The length; None if neither limit says it, as with `max_time` alone.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 <= steps < math.inf:
        return None
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    if batches == math.inf:
        return RunLength(int(steps), None)
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    return RunLength(int(steps), max(1, per_epoch))


def epochs_of(trainer: lightning.Trainer) -> int | None:
    """Epochs that a trainer's run begins; None if it does not say."""
    length = run_length(trainer)
    if length is not None and length.epochs is not None:
        return length.epochs
    limit = trainer.max_epochs
    return limit if limit is not None and limit > 0 else None
