"""Detectors in integers: calibrated on their training images, compared with the float detector.

As `torchadder.training.quantization` for nets that name images; here accuracy is COCO's AP.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torchadder
from torchadder.data import DataError
from torchadder.data.detection import (
    DetectionData,
    DetectionImages,
    coco_ground_truth,
    coco_results,
)
from torchadder.detection import CocoAP, coco_ap
from torchadder.provenance import provenance
from torchadder.quantize import (
    Calibration,
    Int8Config,
    IntegerNet,
    QuantizationError,
    QuantizationReport,
    integer_net,
)
from torchadder.training.detector_evaluation import open_detector, open_images_for
from torchadder.training.quantization import each_choice

NUM_IMAGES = 100
"""Images of a calibration: each has thousands of positions, and all are held at once."""


@dataclass(frozen=True)
class QuantizedDetections:
    """A detector in integers.

    Attributes:
        path: Its checkpoint.
        num_images: Validation images.
        float_figures: What the float detector reaches.
        figures: What the one in integers reaches.
        report: Range, clipped share and signal-to-noise ratio of each layer.
    """

    path: Path
    num_images: int
    float_figures: CocoAP
    figures: CocoAP
    report: QuantizationReport


@dataclass(frozen=True)
class Precision:
    """One cell of a table of average precisions.

    Attributes:
        scheme: How ranges are shared; "float" for the float detector.
        bits: Width of the integers; 32 for the float detector.
        ap: COCO's AP, in 0..1; None where nothing defines it.
        ap50: The same at an overlap of one half.
        sqnr_db: Of all maps over the calibration images; None for the float detector.
        weight_bytes: Memory of the filters.
    """

    scheme: str
    bits: int
    ap: float | None
    ap50: float | None
    sqnr_db: float | None
    weight_bytes: int


class QuantizedDetector:
    """A detector's checkpoint with its images, ready to be quantised in any way.

    Args:
        checkpoint: A .safetensors file or a run folder (its best checkpoint).
        data: Keys of the recipe's section `data` to replace, for instance `source`.
        num_images: Images of the calibration.
        batch_size: Images per batch; None: as in training.

    Raises:
        CheckpointError: If the checkpoint cannot be used.
        DataError: If the images cannot be used or have other classes.
        QuantizationError: If the detector cannot be quantised.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        data: Mapping[str, Any] | None = None,
        *,
        num_images: int = NUM_IMAGES,
        batch_size: int | None = None,
    ) -> None:
        self.net = open_detector(checkpoint)
        if integer_net(self.net.model) is not None:
            raise QuantizationError(f"{self.net.path}: the net computes with integers already")
        self.images = open_images_for(self.net, data, batch_size=batch_size, with_training=True)
        transform = self.net.model.transform
        self.calibration = Calibration(
            self.net.model,
            calibration_batches(self.images, num_images, self.images.batch_size),
            mean=transform.image_mean,
            std=transform.image_std,
        )
        self._figures: CocoAP | None = None

    def float_figures(self) -> CocoAP:
        """What the float detector reaches on the validation images."""
        if self._figures is None:
            self._figures = average_precision(self.net.model, self.images)
        return self._figures

    def save(
        self, config: Int8Config, path: Path, *, metadata: dict[str, Any] | None = None
    ) -> QuantizedDetections:
        """Quantises the detector, measures it and writes it to a checkpoint.

        Args:
            config: What to choose.
            path: The checkpoint.
            metadata: JSON values to add to those of the float detector's checkpoint.
        """
        before = self.float_figures()
        detector, report = self._lowered(config)
        figures = average_precision(detector, self.images)
        about = torchadder.checkpoint.read_info(self.net.path).metadata
        about |= {"quantization": dataclasses.asdict(config)} | (metadata or {})
        return QuantizedDetections(
            path=torchadder.save(detector, path, metadata=about),
            num_images=figures.num_images,
            float_figures=before,
            figures=figures,
            report=report,
        )

    def table(self, config: Int8Config) -> Iterator[Precision]:
        """Average precisions at all widths and with all schemes, the float detector's first.

        Args:
            config: What holds for all: the method of ranges, first and last layers.
        """
        figures = self.float_figures()
        num_bytes = self.calibration.float_weight_bytes
        yield Precision("float", 32, figures.ap, figures.ap50, None, num_bytes)
        for scheme, choice in each_choice(config):
            detector, report = self._lowered(choice)
            found = average_precision(detector, self.images)
            yield Precision(
                scheme, choice.bits, found.ap, found.ap50, report.sqnr_db, report.weight_bytes
            )

    def about(self, config: Int8Config) -> dict[str, Any]:
        """Where a table comes from, for its file."""
        transform = self.net.model.transform
        return {
            "provenance": provenance(),
            "checkpoint": os.fspath(self.net.path),
            "source": str(self.images.source),
            "split": self.images.val.split.name,
            "num_validation_images": len(self.images.val),
            "num_calibration_images": sum(map(len, self.calibration.batches)),
            "image_sides": [transform.min_size[-1], transform.max_size],
            "range": config.range,
            "first": config.first,
            "last": config.last,
        }

    def _lowered(self, config: Int8Config) -> tuple[Any, QuantizationReport]:
        """The detector in integers, made from the checkpoint anew."""
        program, ranges = self.calibration.lower(config)
        report = self.calibration.report(program, ranges)
        detector: Any = torchadder.load(self.net.path)
        detector.use_integers_(IntegerNet(program))
        return detector, report


def calibration_batches(
    data: DetectionData, number: int, batch_size: int
) -> Iterator[list[Tensor]]:
    """Training images at equal distances, as in validation: the same ones every time.

    Raises:
        DataError: If fewer than one are wanted.
    """
    if number < 1:
        raise DataError(f"calibration: {number} images; at least 1 is wanted")
    images = DetectionImages(data.train.split, data.augmentation.for_evaluation())
    number = min(number, len(images))
    indices = [index * len(images) // number for index in range(number)]
    for start in range(0, number, batch_size):
        yield [images[index][0] for index in indices[start : start + batch_size]]


def average_precision(detector: Any, data: DetectionData) -> CocoAP:
    """COCO's figures on the validation images."""
    found: list[dict[str, Any]] = []
    seen: list[int] = []
    with torch.inference_mode():
        for images, targets in data.val_dataloader():
            found += coco_results(detector(images), targets, data.val.split.categories)
            seen += [int(target["image_id"]) for target in targets]
    return coco_ap(coco_ground_truth(data.val.split), found, seen)
