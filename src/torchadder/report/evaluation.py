"""What a trained net does on images: predictions, features, weights. Draws nothing."""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_confusion_matrix

from torchadder.data import ImageData
from torchadder.nn import AdderModule

BATCH_SIZE = 256


@dataclass(frozen=True)
class Mistake:
    """An image that a net got wrong.

    Attributes:
        image: Pixels in 0..1, shape (H, W, C).
        label: Its class.
        predicted: The class the net named.
        confidence: The softmax probability of that class.
    """

    image: NDArray[np.float32]
    label: int
    predicted: int
    confidence: float


@dataclass(frozen=True)
class Predictions:
    """What a net said about the validation images, in their order.

    Attributes:
        labels: True classes, shape (N).
        predicted: Named classes, shape (N).
        confusion: Counts, rows true and columns named classes, shape (classes, classes).
        mistakes: The mistakes made with the highest confidence, that first.
        features: Penultimate features, shape (N, D); None unless asked for.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confusion: NDArray[np.int64]
    mistakes: list[Mistake] = field(default_factory=list)
    features: NDArray[np.float32] | None = None

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Which images were named correctly, shape (N)."""
        return self.labels == self.predicted

    @property
    def num_correct(self) -> int:
        """Number of images named correctly."""
        return int(self.is_correct.sum())

    @property
    def accuracy(self) -> float:
        """Share of images named correctly, 0..1."""
        return self.num_correct / len(self.labels)


def predict(
    model: nn.Module,
    data: ImageData,
    *,
    max_images: int | None = None,
    num_mistakes: int = 0,
    with_features: bool = False,
    device: torch.device | str = "cpu",
) -> Predictions:
    """Runs a net in evaluation mode over the validation images.

    Args:
        model: The net; it comes back on `device` and in evaluation mode.
        data: The images, set up.
        max_images: Use this many, evenly spread over the split; None uses all.
        num_mistakes: How many mistakes to keep.
        with_features: Keep the penultimate features; the net must have `forward_features`.
        device: Where to compute.
    """
    model.to(device).eval()
    labels, predicted, features = [], [], []
    worst: list[tuple[float, int, Mistake]] = []
    order = itertools.count()
    with torch.inference_mode():
        for images, targets in _batches(data, max_images):
            images = images.to(device)
            if with_features:
                features.append(model.forward_features(images).cpu())  # type: ignore[operator]
            logits = model(images).float().cpu()
            confidences, named = logits.softmax(1).max(1)
            labels.append(targets)
            predicted.append(named)
            for index in (named != targets).nonzero().flatten().tolist() if num_mistakes else ():
                confidence = float(confidences[index])
                if len(worst) == num_mistakes and confidence <= worst[0][0]:
                    continue
                mistake = Mistake(
                    _pixels(images[index], data), int(targets[index]), int(named[index]), confidence
                )
                push = heapq.heappush if len(worst) < num_mistakes else heapq.heapreplace
                # The counter breaks ties: of equal confidences the first image is kept.
                push(worst, (confidence, -next(order), mistake))
    true_classes, named_classes = torch.cat(labels), torch.cat(predicted)
    return Predictions(
        labels=true_classes.numpy(),
        predicted=named_classes.numpy(),
        confusion=multiclass_confusion_matrix(
            named_classes, true_classes, data.num_classes
        ).numpy(),
        mistakes=[mistake for *_, mistake in sorted(worst, key=lambda item: item[:2])][::-1],
        features=torch.cat(features).float().numpy() if with_features else None,
    )


@dataclass(frozen=True)
class LayerWeights:
    """The weights of a layer.

    Attributes:
        name: The layer's name in the net.
        is_adder: Whether it is an adder layer.
        values: The weights, flat.
    """

    name: str
    is_adder: bool
    values: NDArray[np.float32]


def layer_weights(model: nn.Module) -> list[LayerWeights]:
    """The weights of every adder, convolution and linear layer, in the order of the net.

    Layers whose weights are all equal, which no distribution can be fitted to, are left out.
    """
    kinds: tuple[Any, ...] = (AdderModule, nn.modules.conv._ConvNd, nn.Linear)
    found = []
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            weight: Tensor = module.weight  # type: ignore[assignment]
            values = weight.detach().float().cpu().numpy().ravel()
            if values.size and np.isfinite(values).all() and np.ptp(values) > 0:
                found.append(LayerWeights(name, isinstance(module, AdderModule), values))
    return found


def _batches(data: ImageData, max_images: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    total = len(data.val)
    count = total if max_images is None else min(total, max_images)
    # (epoch, index): validation images do not depend on the epoch.
    chosen = [(0, index * total // count) for index in range(count)]
    loader = DataLoader(
        data.val,
        batch_size=BATCH_SIZE,
        sampler=chosen,
        num_workers=0 if data.val.cache is not None else min(4, os.cpu_count() or 1),
        collate_fn=_whole_batch,
    )
    yield from loader


def _whole_batch(batch: Any) -> Any:
    """The data set gives whole batches; nothing is left to collate."""
    return batch


def _pixels(image_CHW: Tensor, data: ImageData) -> NDArray[np.float32]:
    mean = torch.tensor(data.preprocess.mean).view(-1, 1, 1)
    std = torch.tensor(data.preprocess.std).view(-1, 1, 1)
    return (image_CHW.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
