"""Fine-tuning with the numbers that integers can hold, as a Lightning callback."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from torchadder.data.within_epoch import begins_within_epoch
from torchadder.quantize import Calibration, Int8Config, QuantizationError
from torchadder.quantize.fake import FakeQuantization


class QuantizationAware(Callback):
    """Trains a net with fake-quantised layers, so that `torchadder.quantize_` loses less after it.

    At the start of every epoch the ranges are found again from the same calibration images; during
    the epoch the layers compute with numbers rounded to them (`torchadder.quantize.fake`), batch
    norms learn the statistics of what comes out, and gradients pass straight through. Validation
    sees the rounded numbers, too. Parameters and checkpoints are those of the float net: quantise
    it afterwards with the same config and images. Start from trained weights: before that, ranges
    say nothing.

    Args:
        batches: Calibration images as the net takes them: tensors, or tuples that begin with one.
        config: The integers to train for.

    Raises:
        QuantizationError: From the start of training, if the net cannot be quantised, or several
            processes train, whose ranges would differ.
    """

    def __init__(self, batches: list[Any], config: Int8Config | None = None) -> None:
        self.batches = batches
        self.config = config or Int8Config()
        self._fake: FakeQuantization | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what cannot work."""
        if trainer.world_size > 1:
            raise QuantizationError(
                f"quantisation-aware training is for one process, got {trainer.world_size}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the ranges of an epoch that is gone on with, from the weights as they are."""
        if begins_within_epoch(trainer):
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the ranges of the epoch."""
        self._remove()
        model: nn.Module = getattr(pl_module, "model", pl_module)
        assert isinstance(model, nn.Module)
        was_training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with torch.no_grad():
                _, ranges = Calibration(model, self.batches).lower(self.config)
        finally:
            for module in was_training:
                module.training = True
        self._fake = FakeQuantization(model, ranges, self.config)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the net in float."""
        self._remove()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leaves the net in float."""
        self._remove()

    def _remove(self) -> None:
        if self._fake is not None:
            self._fake.remove()
            self._fake = None
