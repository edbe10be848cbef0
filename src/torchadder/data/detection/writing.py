"""Writes COCO's JSON from any source: the truth, and what a detector found.

https://cocodataset.org/#format-data and #format-results: boxes (x, y, width, height), the classes'
own numbers. pycocotools and faster-coco-eval read both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from torchadder.atomic import write_atomically
from torchadder.data.detection.problems import DetectionDataError
from torchadder.data.detection.tables import Categories, DetectionSplit


def coco_ground_truth(split: DetectionSplit) -> dict[str, Any]:
    """The annotations of a split as the content of an instances file.

    Every object of the split is there, crowds and difficult ones with their flags; boxes are those
    of the source, not cut at the border.

    Args:
        split: The images.

    Returns:
        A dict of JSON values with `info`, `images`, `annotations`, `categories`.
    """
    categories = split.categories
    images, annotations = [], []
    for index in range(len(split)):
        height, width = split.sizes[index].tolist()
        image_id = int(split.image_ids[index])
        images.append(
            {
                "id": image_id,
                "file_name": split.pictures.file_name(index),
                "height": height,
                "width": width,
            }
        )
        where = split.objects(index)
        for number in range(where.start, where.stop):
            x1, y1, x2, y2 = split.boxes[number].tolist()
            annotations.append(
                {
                    "id": int(split.object_ids[number]),
                    "image_id": image_id,
                    "category_id": categories.ids[split.labels[number]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(split.areas[number]),
                    "iscrowd": int(split.is_crowd[number]),
                    "difficult": int(split.is_difficult[number]),
                }
            )
    pairs = zip(categories.ids, categories.names, strict=True)
    return {
        "info": {"description": f"split {split.name}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in pairs],
    }


def coco_results(
    detections: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    categories: Categories,
) -> list[dict[str, Any]]:
    """What a detector found, as the content of a COCO results file.

    Boxes are brought from the size of the item to that of the image in the source.

    Args:
        detections: `boxes` (M, 4) x1, y1, x2, y2, `scores` (M) and `labels` (M) of each image.
        targets: `image_id`, `size` and `orig_size` of the same images (`DetectionImages`).
        categories: The classes of the source.

    Returns:
        A list of dicts of JSON values, in the order given.

    Raises:
        DetectionDataError: If a label is none of the classes.
        ValueError: If there are not as many detections as targets.
    """
    if len(detections) != len(targets):
        raise ValueError(f"detections of {len(detections)} images, targets of {len(targets)}")
    results = []
    for found, target in zip(detections, targets, strict=True):
        boxes = to_original(found["boxes"], target["size"], target["orig_size"]).tolist()
        image_id = int(target["image_id"])
        rows = zip(boxes, found["scores"].tolist(), found["labels"].tolist(), strict=True)
        for (x1, y1, x2, y2), score, label in rows:
            if not 0 <= label < len(categories.ids):
                raise DetectionDataError(
                    f"image {image_id}: a detection has label {label}, the data has "
                    f"{len(categories.ids)} classes"
                )
            results.append(
                {
                    "image_id": image_id,
                    "category_id": categories.ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    return results


def to_original(
    boxes: Tensor, size: Tensor | Sequence[int], orig_size: Tensor | Sequence[int]
) -> Tensor:
    """Boxes (M, 4) in an image of (height, width) `size`, in the same image of `orig_size`."""
    vertical = float(orig_size[0]) / float(size[0])
    horizontal = float(orig_size[1]) / float(size[1])
    plain = boxes.as_subclass(Tensor).detach().double().cpu()
    return plain * plain.new_tensor([horizontal, vertical, horizontal, vertical])


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON, the whole file or nothing.

    Raises:
        OSError: If it cannot be written.
    """
    write_atomically(path, json.dumps(content, allow_nan=False))
