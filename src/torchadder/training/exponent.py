"""The exponent of lp layers during a run: a callback that sets it before each epoch."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from torchadder.data.within_epoch import begins_within_epoch
from torchadder.lp import ExponentSchedule, set_exponent_
from torchadder.tasks.length import epochs_of
from torchadder.training.graph import FastStep
from torchadder.training.recipe import Recipe


def schedule_of(recipe: Recipe) -> ExponentSchedule | None:
    """The exponent of each epoch of a recipe; None where none falls."""
    lp = recipe.lp
    if lp.schedule == "none":
        return None
    return ExponentSchedule(lp.schedule, lp.start, lp.share, lp.steps)


class ExponentFall(Callback):
    """Sets the exponent of the net to be kept before each epoch, and logs it as `p`.

    The exponent is a function of the epoch alone, so a resumed run needs no state. Epochs with
    another exponent are those of another operator: when it changes, the checkpoint callbacks
    forget their best epoch, so that what a run keeps as its best is the best plain adder net. A
    step that was compiled or recorded is so anew, which is worth it for a few exponents only.

    Args:
        schedule: Which exponent an epoch has.
        clip: Keep the input gradient of each pair within [-1, 1] while p > 1.
    """

    def __init__(self, schedule: ExponentSchedule, clip: bool) -> None:
        self.schedule = schedule
        self.clip = clip

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the exponent of an epoch that is gone on with."""
        if begins_within_epoch(trainer):
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the exponent."""
        num_epochs = epochs_of(trainer)
        if num_epochs is None:
            raise ValueError("an exponent that falls needs a trainer with max_epochs or max_steps")
        p = self.schedule.exponent(trainer.current_epoch, num_epochs)
        set_exponent_(pl_module.plain_model, p, clip=self.clip)  # type: ignore[arg-type]
        pl_module.log("p", p, on_step=False, on_epoch=True)
        before = self.schedule.exponent(max(0, trainer.current_epoch - 1), num_epochs)
        if p != before:
            fast = getattr(pl_module, "fast_step", None)
            if isinstance(fast, FastStep):
                fast.close()
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    callback.best_k_models.clear()
