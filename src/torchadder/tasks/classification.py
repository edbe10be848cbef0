"""Classification by cross-entropy, and what every image task shares: optimizer and metrics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from torchadder import awn
from torchadder.nn import AdderModule
from torchadder.optim import AdaptiveLR
from torchadder.tasks.totals import EpochTotals

TOP_K = 5

LossAndSums = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


class Classification(lightning.LightningModule):
    """Trains a classifier with cross-entropy, SGD and AdderNet's adaptive rate.

    The learning rate follows half a cosine,
    `lr(e) = min_lr + (lr - min_lr) (1 + cos(pi e / E)) / 2`, with E the number of epochs and e the
    epoch (`interval="epoch"`, as in AdderNet's released code, arXiv 1912.13200) or the epochs done
    so far, with fractions, after each step (`interval="step"`). It is a function of the step alone,
    so an interrupted run goes on with the right rate.

    Logs `train_loss`, `train_accuracy`, `val_loss`, `val_accuracy` and, above five classes,
    `train_top5` and `val_top5`, all per epoch; accuracies are shares in 0..1. What an epoch of
    training adds up stays on the device in `train_totals`; a training step logs nothing and never
    waits for the device.

    Args:
        model: Images (N, C, H, W) to logits (N, num_classes).
        num_classes: Number of classes.
        lr: Learning rate at the start.
        momentum: Momentum.
        weight_decay: L2 penalty on all parameters of the model, adder weights included; scales of
            normalised weights (`torchadder.awn`) as their configuration says.
        nesterov: Nesterov's form of momentum.
        eta: AdderNet's eta for the gradients of adder layers; None leaves them as they are.
        schedule: "cosine" or "constant".
        interval: "epoch" or "step".
        min_lr: Rate that the cosine ends at.

    Attributes:
        batch_weight (Callable[[int], float] | None): Factor of the gradient of the batch with the
            given number in its epoch, where the batches of a step are unequal
            (`torchadder.data.BatchPlan.weight`); None: 1 for all.
        fast_step (Callable | None): What computes `loss_and_sums` in a training step, compiled for
            instance; None: the method itself.
        train_totals (EpochTotals): Sums over the images of the epoch so far.
        fused (bool): Whether the optimizer updates all weights in one kernel, which can skip a step
            by a flag on the device; None: on CUDA devices, but not under fp16 loss scaling.
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
        self.train_totals = EpochTotals()
        self.val_metrics = validation_metrics(num_classes, "val_")
        self.batch_weight: Callable[[int], float] | None = None
        self.fast_step: LossAndSums | None = None
        self.fused: bool | None = None

    @property
    def plain_model(self) -> nn.Module:
        """The net that is kept after training."""
        return self.model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        return self.plain_model(images)

    @property
    def step_key(self) -> Hashable:
        """Changes where a training step begins to do other operations than the one before.

        None: the next step cannot stand for those that follow.
        """
        return ()

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """A `with` block in which `loss_and_sums` can be compiled as a whole."""
        return contextlib.nullcontext()

    def loss_and_sums(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What a training step computes of a batch, without side effects but those of the layers.

        Args:
            images: Images (N, C, H, W).
            labels: Class indices (N).

        Returns:
            The loss to minimise, a scalar, and detached scalars by the name they are logged under,
            each a sum over the images of the batch.
        """
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        return loss, self.batch_sums("train_", loss, logits, labels)

    def batch_sums(
        self, prefix: str, loss: Tensor, logits: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Loss and right answers of a batch, summed over its images, by name with a prefix."""
        logits = logits.detach()
        sums = {
            f"{prefix}loss": loss.detach() * len(labels),
            f"{prefix}accuracy": (logits.argmax(1) == labels).sum(),
        }
        if self.num_classes > TOP_K:
            hits = logits.topk(TOP_K, dim=1).indices == labels[:, None]
            sums[f"{prefix}top{TOP_K}"] = hits.sum()
        return sums

    def objective(self, images: Tensor, labels: Tensor) -> Tensor:
        """What training minimises: a scalar."""
        return self.loss_and_sums(images, labels)[0]

    def on_train_epoch_start(self) -> None:
        """Starts the totals of the epoch."""
        self.train_totals.reset()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, a scalar; adds the batch to the totals of the epoch."""
        images, labels = batch
        loss, sums = (self.fast_step or self.loss_and_sums)(images, labels)
        self.train_totals.add(sums, len(labels))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs the means of the epoch after its last batch."""
        is_limit = batch_idx + 1 == self.trainer.num_training_batches
        if not (is_limit or self.trainer.is_last_batch):
            return

        def over_processes(totals: Tensor) -> Tensor:
            return self.trainer.strategy.reduce(totals, reduce_op="sum")  # type: ignore[return-value]

        # The means are those of all processes already; averaging them once more changes nothing.
        means = self.train_totals.means(over_processes)
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass, weighted so that every image of a step counts the same."""
        if self.batch_weight is not None:
            weight = self.batch_weight(self.trainer.fit_loop.batch_idx)
            loss = loss if weight == 1 else loss * weight
        super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        images, labels = batch
        self.log_validation(self.val_metrics, "val_", self(images), labels)

    def log_validation(
        self, metrics: MetricCollection, prefix: str, logits: Tensor, labels: Tensor
    ) -> None:
        """Adds a batch to the metrics of the epoch."""
        metrics.update(logits, labels)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=prefix == "val_")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer."""
        return [{"params": [p for p in self.model.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> dict[str, Any]:
        """SGD with AdaptiveLR, and the schedule, stepped after each optimizer step."""
        optimizer = torch.optim.SGD(
            awn.parameter_groups(self, self.parameter_groups()),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=self._is_fused() or None,
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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves it to this machine, not to the one that saved, how the optimizer computes."""
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                group["fused"] = self._is_fused() or None

    def _is_fused(self) -> bool:
        if self.fused is not None:
            return self.fused
        # A GradScaler and a fused optimizer share the flag that skips a step.
        return self.device.type == "cuda" and self.trainer.precision != "16-mixed"

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


class MeanCrossEntropy(Metric):
    """Cross-entropy averaged over images, however they are divided among batches and processes.

    Lightning's own mean divides by a number of images that it rounds down when it averages it over
    the processes.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: logits (N, K) and labels (N)."""
        self.total += F.cross_entropy(logits, labels, reduction="sum")
        self.count += len(labels)

    def compute(self) -> Tensor:
        """The mean, in nats."""
        return self.total / self.count


def validation_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Loss, top-1 accuracy and, above five classes, top-5 accuracy."""

    def accuracy(top_k: int) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, top_k, average="micro", validate_args=False)

    metrics: dict[str, Metric | MetricCollection] = {
        "loss": MeanCrossEntropy(),
        "accuracy": accuracy(1),
    }
    if num_classes > TOP_K:
        metrics[f"top{TOP_K}"] = accuracy(TOP_K)
    return MetricCollection(metrics, prefix=prefix)
