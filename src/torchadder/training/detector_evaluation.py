"""Detectors put to use: average precision on annotated images, boxes in others.

How a detector was trained is read from its checkpoint, where training wrote it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

import torchadder
from torchadder import detection
from torchadder.checkpoint import CheckpointError, read_info
from torchadder.data import DataError, decode
from torchadder.data.detection import DetectionData, DetectionDataError
from torchadder.data.images import to_tensor
from torchadder.detection import CocoAP, VocAP
from torchadder.tasks.detection import Detection
from torchadder.training.detection import OPENING, data_of, sections_of
from torchadder.training.recipe import DataConfig, DetectionConfig, check_keys
from torchadder.training.validation import validate
from torchadder.training.weights import weights_of


@dataclass
class TrainedDetector:
    """A trained detector with everything needed to use it.

    Attributes:
        path: The checkpoint.
        model: The detector, in evaluation mode.
        class_names: Names of its classes.
        data: The recipe's section `data` that it was trained with.
        config: The recipe's section `detection`.
    """

    path: Path
    model: Any
    class_names: list[str]
    data: DataConfig
    config: DetectionConfig

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image of that size as the detector's backbone sees it.

        Brought to the detector's size, and padded to a multiple of 32.
        """
        transform = self.model.transform
        shorter, longer = min(height, width), max(height, width)
        scale = min(transform.min_size[-1] / shorter, transform.max_size / longer)
        return -(-int(height * scale) // 32) * 32, -(-int(width * scale) // 32) * 32


@dataclass(frozen=True)
class Evaluation:
    """What a detector reaches on annotated images.

    Attributes:
        coco: COCO's figures.
        voc: VOC's figures.
        found: Every box that was found, the content of a COCO results file.
        data: The images.
        zeros: Share of zeros on each level of backbone and neck, on the first images.
        seconds: Time that finding took.
        height: Height of the image of most pixels as the backbone sees it.
        width: Its width.
        operations: Operations of that image.
    """

    coco: CocoAP
    voc: VocAP
    found: list[dict[str, Any]]
    data: DetectionData
    zeros: dict[str, float]
    seconds: float
    height: int
    width: int
    operations: Any

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values; shares in 0..1, None where nothing defines them."""
        return {
            "source": str(self.data.source),
            "split": self.data.val.split.name,
            "num_images": self.coco.num_images,
            "num_objects": self.coco.num_objects,
            **{name: getattr(self.coco, name) for name in FIGURES},
            "voc_ap": self.voc.area,
            "voc_ap11": self.voc.points,
            "recall": self.coco.recall,
            "per_class": {
                name: {
                    "ap": self.coco.per_class[name],
                    "ap50": self.coco.per_class_50[name],
                    "voc_ap": self.voc.per_class[name],
                    "voc_ap11": self.voc.per_class_points[name],
                }
                for name in self.coco.per_class
            },
            "zeros": self.zeros,
            "height": self.height,
            "width": self.width,
            "num_mul": self.operations.num_mul,
            "num_add": self.operations.num_add,
            "energy_mj": self.operations.energy_pj / 1e9,
            "seconds": self.seconds,
            "left_out": [str(entry) for entry in self.data.left_out],
        }


FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""COCO's six figures, attributes of `CocoAP`."""


@dataclass
class Found:
    """What was found in an image file, the most certain first; `error` where it cannot be read.

    Attributes:
        path: The file.
        image: The image, uint8 (3, H, W); None where it cannot be read.
        boxes: x1, y1, x2, y2 in pixels, float32 (M, 4).
        scores: Shares in 0..1, float32 (M).
        labels: Classes, int64 (M).
        error: Why it cannot be read.
    """

    path: Path
    image: Tensor | None = None
    boxes: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, 4))
    scores: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))
    labels: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    error: str | None = None


def open_detector(path: str | os.PathLike[str]) -> TrainedDetector:
    """Opens the weights of a training run.

    Args:
        path: A .safetensors file, a run folder (its best checkpoint), or a hub id.

    Raises:
        CheckpointError: If there is no checkpoint, it is damaged, or is not that of a detector.
    """
    path = weights_of(path)
    metadata = read_info(path).metadata
    if "detection" not in metadata:
        raise CheckpointError(f"{path}: not written by the training of a detector")
    data, config = sections_of(metadata)
    model = torchadder.load(path).eval()
    return TrainedDetector(path, model, metadata["class_names"], data, config)


def evaluate_detector(
    checkpoint: str | os.PathLike[str] | TrainedDetector,
    data: Mapping[str, Any] | None = None,
    images: Mapping[str, Any] | None = None,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    accelerator: str = "auto",
) -> Evaluation:
    """Average precision and cost of a detector on annotated images.

    Args:
        checkpoint: A checkpoint, or one opened by `open_detector`.
        data: Keys of the recipe's section `data` to replace, for instance `source`.
        images: Keys of the section `detection` to replace that say how images are opened.
        batch_size: Images per batch; None: as in training.
        threads: Threads of torch on the CPU; None leaves the number as it is.
        accelerator: Lightning's accelerator.

    Raises:
        CheckpointError: If the checkpoint cannot be used.
        DataError: If the images cannot be used or have other classes.
        RecipeError: If a key is unknown, or there is no such accelerator.
    """
    net = checkpoint if isinstance(checkpoint, TrainedDetector) else open_detector(checkpoint)
    opened = open_images_for(net, data, images, batch_size=batch_size)
    task = Detection(net.model, truth=opened.val.split)
    loader = opened.val_dataloader()
    metrics, seconds = validate(task, loader, threads=threads, accelerator=accelerator)
    net.model.cpu().eval()
    sizes = [net.size_for(*size) for size in opened.val.split.sizes.tolist()]
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    return Evaluation(
        coco=task.coco,
        voc=task.voc,
        found=task.found,
        data=opened,
        zeros={
            name.removeprefix("val_zeros_"): value
            for name, value in metrics.items()
            if name.startswith("val_zeros_")
        },
        seconds=seconds,
        height=height,
        width=width,
        operations=detection.count_operations(net.model, height, width),
    )


def open_images_for(
    net: TrainedDetector,
    data: Mapping[str, Any] | None = None,
    images: Mapping[str, Any] | None = None,
    *,
    batch_size: int | None = None,
    with_training: bool = False,
) -> DetectionData:
    """The images that a detector was trained with, or others like them, opened.

    Args:
        net: The detector.
        data: Keys of the recipe's section `data` to replace, for instance `source`.
        images: Keys of the section `detection` to replace that say how images are opened.
        batch_size: Images per batch; None: as in training.
        with_training: Whether training images are wanted beside those to evaluate on. Without them
            another source, or a split that is named, is evaluated whole.

    Raises:
        DataError: If they cannot be used, or have other classes.
        RecipeError: If a key is unknown.
    """
    data, images = dict(data or {}), dict(images or {})
    check_keys(data, "data", DataConfig, "data.")
    check_keys(images, "detection", DetectionConfig, "detection.")
    is_other = data.get("source", net.data.source) != net.data.source
    evaluate_only = not with_training and (is_other or data.get("val_split") is not None)
    if is_other:
        # How the training images were found says nothing about others.
        plain = DetectionConfig()
        fresh = (*OPENING, "train_split", "skip_bad")
        images = {key: getattr(plain, key) for key in fresh} | images
        data = {"val_split": None, "image_column": None, "num_classes": None} | data
    if batch_size is not None:
        data |= {"batch_size": batch_size, "eval_batch_size": batch_size}
    opened = data_of(
        dataclasses.replace(net.data, **data),
        dataclasses.replace(net.config, **images),
        evaluate_only=evaluate_only,
        fallback_names=net.class_names if is_other else None,
    )
    opened.setup()
    _check_classes(opened, net)
    return opened


def _check_classes(data: DetectionData, net: TrainedDetector) -> None:
    data.opened.check_num_classes(len(net.class_names), f"the checkpoint {net.path}")
    for here, there in zip(data.class_names, net.class_names, strict=True):
        if here != there:
            raise DetectionDataError(
                f"{data.source} has the class {here!r} where {net.path} was trained on {there!r}"
            )


@contextlib.contextmanager
def _threshold(model: Any, score: float | None) -> Iterator[None]:
    """Lets a detector keep boxes from this score on, whatever it was built with."""
    holder = getattr(model, "roi_heads", model)
    before = holder.score_thresh
    holder.score_thresh = before if score is None else score
    try:
        yield
    finally:
        holder.score_thresh = before


def find(
    net: TrainedDetector, paths: Sequence[Path], *, score: float | None = None
) -> Iterator[Found]:
    """Looks for objects in image files, one after the other, resized as in the evaluation.

    Args:
        net: The detector.
        paths: Image files.
        score: Boxes have a larger one, a share in 0..1; None: what the detector was built with.

    Yields:
        What was found in each file, in order; a file that is no image has `error` set.
    """
    resizing = data_of(net.data, net.config).augmentation.for_evaluation()
    for path in paths:
        try:
            image = to_tensor(decode(str(path)), 3)
        except DataError as error:
            yield Found(path, error=str(error))
            continue
        height, width = (int(side) for side in image.shape[-2:])
        size = resizing.size(height, width)
        resized = resizing.resize(image, size)
        with torch.inference_mode(), _threshold(net.model, score):
            found = net.model([vision.to_dtype(resized, torch.float32, scale=True)])[0]
        scale = torch.tensor([width / size[1], height / size[0]]).repeat(2)
        order = found["scores"].argsort(descending=True, stable=True)
        boxes, scores, labels = (found[key][order] for key in ("boxes", "scores", "labels"))
        yield Found(path, image, boxes * scale, scores, labels)
