"""Checkpoints in integers: calibrated on their training images, compared with the float net.

What the integers are is the business of `torchadder.quantize`; here are the images, the accuracies
and the files.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchadder
from torchadder.checkpoint import CheckpointError
from torchadder.data import DataError, ImageData
from torchadder.provenance import provenance
from torchadder.quantize import (
    Calibration,
    Int8Config,
    IntegerNet,
    QuantizationError,
    QuantizationReport,
)
from torchadder.training.evaluation import (
    Classifier,
    images_for,
    is_detector,
    open_checkpoint,
    open_images,
)

NUM_IMAGES = 500
"""Images of a calibration, from the whole of the training split at equal distances."""

SCHEMES = {
    "shared range": Int8Config(clamp=False),
    "clamped filters": Int8Config(),
    "clamped filters, 4 groups": Int8Config(groups=4),
}
"""Ways to share a range between input and filters, from the plain one to the paper's."""

TABLE_BITS = (8, 6, 5, 4)


@dataclass(frozen=True)
class Quantized:
    """A net in integers.

    Attributes:
        path: Its checkpoint.
        num_images: Validation images.
        float_accuracy: Share that the float net classifies right.
        accuracy: The same of the integer net.
        agreement: Share to which both give the same class.
        report: Range, clipped share and signal-to-noise ratio of each layer.
    """

    path: Path
    num_images: int
    float_accuracy: float
    accuracy: float
    agreement: float
    report: QuantizationReport


@dataclass(frozen=True)
class Accuracy:
    """One cell of an accuracy table.

    Attributes:
        scheme: How ranges are shared; "float" for the float net.
        bits: Width of the integers; 32 for the float net.
        accuracy: Share of the validation images classified right.
        sqnr_db: Of the logits over the calibration images; None for the float net.
        weight_bytes: Memory of the filters.
    """

    scheme: str
    bits: int
    accuracy: float
    sqnr_db: float | None
    weight_bytes: int


class QuantizedCheckpoint:
    """A checkpoint with its images, ready to be quantised in any way.

    Args:
        checkpoint: A .safetensors file or a run folder (its best checkpoint).
        data: Keys of the recipe's section `data` to replace, for instance `source`.
        num_images: Images of the calibration.
        batch_size: Images per batch.

    Raises:
        CheckpointError: If the checkpoint cannot be used.
        DataError: If the images cannot be used or have other classes.
        QuantizationError: If the net cannot be quantised.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        data: dict[str, Any] | None = None,
        *,
        num_images: int = NUM_IMAGES,
        batch_size: int = 250,
    ) -> None:
        if is_detector(checkpoint):
            raise CheckpointError(f"{checkpoint}: a detector, a net that names images is wanted")
        net = open_checkpoint(checkpoint)
        if isinstance(net.model, IntegerNet):
            raise QuantizationError(f"{net.path}: the net computes with integers already")
        self.net = net
        self.images = images_for(net, {"streaming": False} | (data or {}), batch_size=batch_size)
        open_images(self.images, net)
        self.calibration = Calibration(
            net.model,
            calibration_batches(self.images, net, num_images, batch_size),
            mean=net.preprocess.mean,
            std=net.preprocess.std,
        )
        self._classes: Tensor | None = None

    def labels(self) -> Tensor:
        """Classes of the validation images."""
        return torch.cat([labels for _, labels in self.images.val_dataloader()])

    def float_classes(self) -> Tensor:
        """What the float net says of the validation images."""
        if self._classes is None:
            self._classes = classes(self.net.model, self._validation())
        return self._classes

    def save(
        self, config: Int8Config, path: Path, *, metadata: dict[str, Any] | None = None
    ) -> Quantized:
        """Quantises the net, measures it and writes it to a checkpoint.

        Args:
            config: What to choose.
            path: The checkpoint.
            metadata: JSON values to add to those of the float net's checkpoint.
        """
        program, ranges = self.calibration.lower(config)
        report = self.calibration.report(program, ranges)
        model = IntegerNet(program).eval()
        labels, floats = self.labels(), self.float_classes()
        integers = classes(model, self._validation())
        about = torchadder.checkpoint.read_info(self.net.path).metadata
        about |= {"quantization": dataclasses.asdict(config)} | (metadata or {})
        return Quantized(
            path=torchadder.save(model, path, metadata=about),
            num_images=len(labels),
            float_accuracy=float((floats == labels).double().mean()),
            accuracy=float((integers == labels).double().mean()),
            agreement=float((integers == floats).double().mean()),
            report=report,
        )

    def table(self, config: Int8Config) -> Iterator[Accuracy]:
        """Accuracies at all widths and with all schemes, the float net's first.

        Args:
            config: What holds for all: the method of ranges, first and last layer.
        """
        labels = self.labels()
        right = float((self.float_classes() == labels).double().mean())
        yield Accuracy("float", 32, right, None, self.calibration.float_weight_bytes)
        for scheme, choice in each_choice(config):
            program, ranges = self.calibration.lower(choice)
            report = self.calibration.report(program, ranges)
            found = classes(IntegerNet(program), self._validation())
            right = float((found == labels).double().mean())
            yield Accuracy(scheme, choice.bits, right, report.sqnr_db, report.weight_bytes)

    def about(self, config: Int8Config) -> dict[str, Any]:
        """Where a table comes from, for its file."""
        preprocess = self.net.preprocess
        return {
            "provenance": provenance(),
            "checkpoint": os.fspath(self.net.path),
            "source": self.images.source,
            "split": self.images.val.split.name,
            "num_validation_images": len(self.images.val),
            "num_calibration_images": sum(map(len, self.calibration.batches)),
            "image_shape": [preprocess.channels, preprocess.height, preprocess.width],
            "range": config.range,
            "first": config.first,
            "last": config.last,
        }

    def _validation(self) -> Iterator[Tensor]:
        return (images for images, _ in self.images.val_dataloader())


def each_choice(config: Int8Config) -> Iterator[tuple[str, Int8Config]]:
    """The cells of a table: the name of each scheme and what to choose, the widest first."""
    for scheme, choice in SCHEMES.items():
        for bits in TABLE_BITS:
            yield (
                scheme,
                dataclasses.replace(config, bits=bits, clamp=choice.clamp, groups=choice.groups),
            )


def calibration_batches(
    images: ImageData, net: Classifier, number: int, batch_size: int
) -> Iterator[Tensor]:
    """Training images as the net wants them, at equal distances: the same ones every time.

    Raises:
        DataError: If fewer than one are wanted.
    """
    if number < 1:
        raise DataError(f"calibration: {number} images; at least 1 is wanted")
    train = images.train
    number = min(number, len(train))
    indices = [index * len(train) // number for index in range(number)]
    augment, train.augment, train.preprocess = train.augment, "none", net.preprocess
    try:
        for start in range(0, number, batch_size):
            yield train.__getitems__([(0, i) for i in indices[start : start + batch_size]])[0]
    finally:
        train.augment = augment


def classes(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """The most probable class of every image."""
    with torch.inference_mode():
        return torch.cat([model(images).argmax(1) for images in batches])
