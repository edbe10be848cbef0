"""Stops a run whose numbers stop being finite, before they can reach a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from torchadder.data.within_epoch import is_within_epoch
from torchadder.training import distributed
from torchadder.training.localise import all_finite, first_non_finite, layer_words
from torchadder.training.watch import FiniteWatch, Moment


class NonFiniteError(FloatingPointError):
    """A loss, gradient or weight became NaN or infinite; the message says when and where."""


class NonFiniteGuard(Callback):
    """Stops training at the first NaN or infinity, before it can reach a checkpoint.

    The loss and all gradients are checked in every step (under fp16 loss scaling only the loss, as
    infinite gradients are normal there), the weights and the validation loss after every epoch, the
    weights also before every checkpoint. To name the layer, the failing batch is run once more with
    a hook on every layer.

    Where the optimizer is fused, on CUDA devices, the check of a step does not wait for the device:
    it raises a flag there, by which the optimizer leaves the weights as they are from the failing
    step on. The flag is read every few hundred steps, before each checkpoint and at the end of each
    epoch; what is said about step, batch and layer is the same.

    Where several processes train, the gradients are looked at when they have been summed over all
    of them, so that all stop at the same step; then each runs its own share of the batch again, and
    all raise what the first of them found.

    Args:
        every: Steps after which the flag is read.
        deferred: Whether to use the flag; None: on CUDA devices. Without a fused optimizer it
            cannot be used.
    """

    def __init__(self, every: int = 500, *, deferred: bool | None = None) -> None:
        self.every = every
        self.deferred = deferred
        self._watch: FiniteWatch | None = None
        self._loss: Tensor | None = None
        self._batch: Any = None
        self._moment = Moment(0, 0, 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides how to check, and hands the flag to the optimizer."""
        (optimizer,) = trainer.optimizers
        device = trainer.strategy.root_device
        is_deferred = device.type == "cuda" if self.deferred is None else self.deferred
        is_fused = all(group.get("fused") for group in optimizer.param_groups)
        if is_deferred and is_fused and trainer.precision != "16-mixed":
            self._watch = FiniteWatch(device)
            optimizer.found_inf = self._watch.flag  # type: ignore[attr-defined]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batch, in case it has to be run again."""
        self._batch = batch
        self._moment = Moment(trainer.global_step, trainer.current_epoch, batch_idx)
        if self._watch is not None:
            images, labels = batch
            self._watch.begin(images, labels, self._moment)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Checks the loss."""
        if self._watch is not None:
            self._loss = loss.detach()
        elif trainer.world_size == 1 and not torch.isfinite(loss):
            self._stop(trainer, pl_module, self._moment, *self._batch)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the gradients."""
        if trainer.precision == "16-mixed":
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        is_summed = trainer.world_size == 1 or not trainer.fit_loop._should_accumulate()
        if not is_summed:
            gradients = []
        if self._watch is not None:
            assert self._loss is not None
            own = [self._loss] if trainer.world_size == 1 else []
            self._watch.end([*gradients, *own])
        elif gradients and not all_finite(gradients):
            self._stop(trainer, pl_module, self._moment, *self._batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reads the flag if it is time."""
        if (batch_idx + 1) % self.every == 0:
            self._read_flag(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the flag, the weights and the validation loss, before anything is saved."""
        self._read_flag(trainer, pl_module)
        when = f"step {trainer.global_step}, end of epoch {trainer.current_epoch + 1}"
        _check_weights(trainer, pl_module, when)
        for name, value in trainer.callback_metrics.items():
            if name.endswith("loss") and not torch.isfinite(value):
                raise NonFiniteError(f"{when}: {name} is {float(value)}{_kept(trainer)}")

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Checks the flag and the weights where a checkpoint is written within an epoch."""
        if is_within_epoch(trainer):
            self._read_flag(trainer, pl_module)
            when = f"step {trainer.global_step}, epoch {trainer.current_epoch + 1}"
            _check_weights(trainer, pl_module, when)

    def _read_flag(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bad = None if self._watch is None else self._watch.first_bad()
        if bad is not None:
            self._stop(trainer, pl_module, *bad)

    def _stop(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        moment: Moment,
        images: Tensor,
        labels: Tensor,
    ) -> None:
        with trainer.precision_plugin.train_step_context():
            loss, output, gradient = first_non_finite(pl_module, images, labels)
        if torch.isfinite(loss):
            what = "the loss is finite, the gradient is not"
        else:
            what = f"the loss is {float(loss)}"
        if output is not None:
            what += f"; first non-finite in forward order: {output}"
        if gradient is not None:
            what += f"; first non-finite gradient in backward order: {gradient}"
        is_found = output is not None or gradient is not None or not torch.isfinite(loss)
        raise distributed.first_of(
            NonFiniteError(
                f"step {moment.step} (epoch {moment.epoch + 1}, batch {moment.batch_idx}): "
                f"{what}{_kept(trainer)}"
            ),
            is_found,
        )


def _check_weights(trainer: Trainer, pl_module: LightningModule, when: str) -> None:
    state = {
        name: value for name, value in pl_module.state_dict().items() if value.is_floating_point()
    }
    if not all_finite(list(state.values())):
        name = next(name for name, value in state.items() if not all_finite([value]))
        raise NonFiniteError(f"{when}: {layer_words(name)} is not finite{_kept(trainer)}")


def _kept(trainer: Trainer) -> str:
    path = trainer.checkpoint_callback.last_model_path if trainer.checkpoint_callback else ""  # type: ignore[attr-defined]
    # The callback notes the path before it saves, and it may be a save that is given up here.
    is_there = path and Path(path).is_file()
    return f"; the last good checkpoint is {path}" if is_there else "; there is no checkpoint"
