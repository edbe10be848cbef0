"""Says when a net has come to give every image the same answer."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchadder.robustness import batch_statistics
from torchadder.robustness.switching import has_batch_norm

TOLERANCE = 1e-3
"""Logits closer than this share of the largest are the same: layers round by place and batch."""

WARNING = (
    "warning: all images get the same logits, as if no activation of some layer were above 0 any "
    "more: try a lower optimizer.lr, a schedule.warmup, or a batch norm behind the classifier"
)


class SameAnswers(Callback):
    """Warns after an epoch in which a classifier's logits are the same for all validation images.

    Such a net has a layer in which no activation is above 0 for any image. All its numbers are
    finite, the loss stands at the logarithm of the number of classes, and as no gradient passes
    that layer, further epochs hardly change it. Running statistics that do not keep up with the
    weights, as in the first epochs of adder nets, can look the same and pass; so the last batch
    must give the same logits with its own statistics, too.

    Of several processes the first one looks at its share.
    """

    def __init__(self) -> None:
        self._hook: RemovableHandle | None = None
        self._first: Tensor | None = None  # the logits of the first image
        self._differ: Tensor | None = None  # whether any other image has others
        self._images: Tensor | None = None  # those of the last batch of more than one
        self._is_same = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to look at the logits."""
        if trainer.is_global_zero:
            self._hook = _net(pl_module).register_forward_hook(self._look)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends that."""
        self._remove_hook()
        if self._differ is not None:
            images = self._images
            if images is not None and not self._differ:
                self._is_same = _same_by_batch(_net(pl_module), images)
        self._first = self._differ = self._images = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warns."""
        if self._is_same:
            trainer.print(f"  {WARNING}", flush=True)
        self._is_same = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leaves no hook behind."""
        self._remove_hook()

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.no_grad()
    def _look(self, net: nn.Module, inputs: tuple[Any, ...], logits: Any) -> None:
        if not isinstance(logits, Tensor):  # detections
            return
        if self._first is None:
            self._first = logits[:1].clone()
        differ = _differ(logits, self._first)
        self._differ = differ if self._differ is None else self._differ | differ
        if len(logits) > 1:  # batch norm finds no statistics of one image
            self._images = inputs[0]


def _net(task: LightningModule) -> nn.Module:
    """The net that a task trains."""
    return task.plain_model  # type: ignore[return-value]


@torch.no_grad()
def _same_by_batch(net: nn.Module, images: Tensor) -> bool:
    """Whether images get the same logits if batch norm takes the statistics of them."""
    with batch_statistics(net) if has_batch_norm(net) else contextlib.nullcontext():
        logits: Tensor = net(images)
    return not _differ(logits, logits[:1])


def _differ(logits: Tensor, first: Tensor) -> Tensor:
    """Whether any image has other logits (N, num_classes) than those of one image, (1, ...)."""
    return (logits - first).abs().max() > TOLERANCE * first.abs().max()
