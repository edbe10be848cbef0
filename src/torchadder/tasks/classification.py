"""Classification by cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from torchadder.tasks.base import TrainingTask

TOP_K = 5


class Classification(TrainingTask):
    """Trains a classifier with cross-entropy.

    Logs `train_loss`, `train_accuracy`, `val_loss`, `val_accuracy` and, above five classes,
    `train_top5` and `val_top5`, all per epoch; accuracies are shares in 0..1. Labels are class
    indices (N); in training also probabilities (N, num_classes), as mixed images have them, of
    which accuracies count the largest.

    Args:
        model: Images (N, C, H, W) to logits (N, num_classes).
        num_classes: Number of classes.
        **options: Optimizer and schedule, as of `TrainingTask`.
    """

    monitor = "val_accuracy"

    def __init__(self, model: nn.Module, *, num_classes: int, **options: Any) -> None:
        super().__init__(model, **options)
        self.num_classes = num_classes
        self.val_metrics = validation_metrics(num_classes, "val_")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        return self.plain_model(images)

    def loss_and_sums(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What a training step computes of a batch, without side effects but those of the layers.

        Args:
            images: Images (N, C, H, W).
            labels: Class indices (N), or probabilities (N, num_classes).

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
        labels = labels if labels.ndim == 1 else labels.argmax(1)
        sums = {
            f"{prefix}loss": loss.detach() * len(labels),
            f"{prefix}accuracy": (logits.argmax(1) == labels).sum(),
        }
        if self.num_classes > TOP_K:
            hits = logits.topk(TOP_K, dim=1).indices == labels[:, None]
            sums[f"{prefix}top{TOP_K}"] = hits.sum()
        return sums

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds a batch to the validation metrics.

        Raises:
            ValueError: If labels are no class indices.
        """
        images, labels = batch
        if labels.ndim != 1:
            raise ValueError(
                f"validation wants class indices, shape (N), as labels; got {tuple(labels.shape)}"
            )
        self.log_validation(self.val_metrics, "val_", self(images), labels)

    def log_validation(
        self, metrics: MetricCollection, prefix: str, logits: Tensor, labels: Tensor
    ) -> None:
        """Adds a batch to the metrics of the epoch."""
        metrics.update(logits, labels)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=prefix == "val_")


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
