"""Classification by cross-entropy, and what every image task shares: optimizer and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from torchadder.nn import AdderModule
from torchadder.optim import AdaptiveLR

TOP_K = 5


class Classification(lightning.LightningModule):
    """Trains a classifier with cross-entropy, SGD and AdderNet's adaptive rate.

    The learning rate follows half a cosine,
    `lr(e) = min_lr + (lr - min_lr) (1 + cos(pi e / E)) / 2`, with E the number of epochs and e the
    epoch (`interval="epoch"`, as in AdderNet's released code, arXiv 1912.13200) or the epochs done
    so far, with fractions, after each step (`interval="step"`). It is a function of the step alone,
    so an interrupted run goes on with the right rate.

    Logs `train_loss`, `train_accuracy`, `val_loss`, `val_accuracy` and, above five classes,
    `train_top5` and `val_top5`, all per epoch; accuracies are shares in 0..1.

    Args:
        model: Images (N, C, H, W) to logits (N, num_classes).
        num_classes: Number of classes.
        lr: Learning rate at the start.
        momentum: Momentum.
        weight_decay: L2 penalty on all parameters of the model, adder weights included.
        nesterov: Nesterov's form of momentum.
        eta: AdderNet's eta for the gradients of adder layers; None leaves them as they are.
        schedule: "cosine" or "constant".
        interval: "epoch" or "step".
        min_lr: Rate that the cosine ends at.

    Attributes:
        batch_weight (Callable[[int], float] | None): Factor of the gradient of the batch with the
            given number in its epoch, where the batches of a step are unequal
            (`torchadder.data.BatchPlan.weight`); None: 1 for all.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
        eta: float | None = 0.2,
        schedule: str = "cosine",
        interval: str = "epoch",
        min_lr: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.num_classes = num_classes
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        self.eta = eta
        self.schedule = schedule
        self.interval = interval
        self.min_lr = min_lr
        self.train_metrics = accuracies(num_classes, "train_")
        self.val_metrics = accuracies(num_classes, "val_")
        self.batch_weight: Callable[[int], float] | None = None

    @property
    def plain_model(self) -> nn.Module:
        """The net that is kept after training."""
        return self.model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        return self.plain_model(images)

    def objective(self, images: Tensor, labels: Tensor) -> Tensor:
        """What training minimises, without logging: a scalar."""
        return F.cross_entropy(self.model(images), labels)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, logged: a scalar."""
        images, labels = batch
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        self.log_step(self.train_metrics, "train_", loss, logits, labels)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass, weighted so that every image of a step counts the same."""
        if self.batch_weight is not None:
            weight = self.batch_weight(self.trainer.fit_loop.batch_idx)
            loss = loss if weight == 1 else loss * weight
        super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        images, labels = batch
        logits = self(images)
        self.log_step(self.val_metrics, "val_", F.cross_entropy(logits, labels), logits, labels)

    def log_step(
        self, metrics: MetricCollection, prefix: str, loss: Tensor, logits: Tensor, labels: Tensor
    ) -> None:
        """Logs loss and metrics of one split for the epoch, and of a training step for the bar."""
        self.log(
            f"{prefix}loss",
            loss.detach(),
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),
            sync_dist=True,
        )
        metrics.update(logits.detach(), labels)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=prefix == "val_")
        if prefix == "train_":
            accuracy = (logits.detach().argmax(1) == labels).float().mean()
            step = {"loss": loss.detach(), "accuracy": accuracy}
            self.log_dict(step, on_step=True, on_epoch=False, prog_bar=True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer."""
        return [{"params": [p for p in self.model.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> dict[str, Any]:
        """SGD with AdaptiveLR, and the schedule, stepped after each optimizer step."""
        optimizer = torch.optim.SGD(
            self.parameter_groups(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )
        if self.eta is not None and self._trains_adder_layers():
            AdaptiveLR(optimizer, self, self.eta)
        num_steps = int(self.trainer.estimated_stepping_batches)
        num_epochs = self.trainer.max_epochs or 1
        schedule = LambdaLR(optimizer, self._schedule_factor(num_steps, num_epochs))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def _trains_adder_layers(self) -> bool:
        layers = (layer for layer in self.modules() if isinstance(layer, AdderModule))
        return any(layer.weight.requires_grad for layer in layers)

    def _schedule_factor(self, num_steps: int, num_epochs: int) -> Any:
        """Step -> factor of `lr`."""
        steps_per_epoch = max(1, num_steps // num_epochs)
        floor = self.min_lr / self.lr

        def factor(step: int) -> float:
            if self.schedule == "constant":
                return 1.0
            by_epoch = (step // steps_per_epoch) / num_epochs
            progress = min(1.0, by_epoch if self.interval == "epoch" else step / num_steps)
            return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

        return factor


def accuracies(num_classes: int, prefix: str) -> MetricCollection:
    """Top-1 accuracy and, above five classes, top-5 accuracy."""

    def accuracy(top_k: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, top_k, average="micro", validate_args=False)

    metrics: dict[str, Metric | MetricCollection] = {"accuracy": accuracy(1)}
    if num_classes > TOP_K:
        metrics[f"top{TOP_K}"] = accuracy(TOP_K)
    return MetricCollection(metrics, prefix=prefix)
