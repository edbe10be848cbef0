"""PASCAL VOC's average precision: 11 points (2007) and the area under the curve (2010 and later).

http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf, section 3.4. The detections of a
class are taken by falling score. Each goes to the object of its class that it overlaps most; it is
right if that is by at least half (intersection over union) and the object was not found before.
Objects that are marked as difficult count neither way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.5
"""Overlap from which on a detection is right."""


@dataclass(frozen=True)
class VocAP:
    """VOC's figures, shares in 0..1; None where there is no object that they could count.

    Attributes:
        area: Area under the curve of precision over recall, made monotone; mean over classes.
        points: Mean of the highest precision at a recall of at least 0, 0.1, ..., 1; mean over
            classes.
        per_class: The area of each class by name.
        per_class_points: The 11 points of each class by name.
    """

    area: float | None
    points: float | None
    per_class: dict[str, float | None]
    per_class_points: dict[str, float | None]


def voc_ap(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int] | None = None,
) -> VocAP:
    """Compare what a detector found with what is there; arguments as of `coco_ap`.

    Crowds, which VOC does not know, are taken for difficult objects.
    """
    looked_at = None if image_ids is None else set(image_ids)
    areas: dict[str, float | None] = {}
    points: dict[str, float | None] = {}
    for category in truth["categories"]:
        curve = _curve(
            [
                entry
                for entry in truth["annotations"]
                if entry["category_id"] == category["id"]
                and (looked_at is None or entry["image_id"] in looked_at)
            ],
            [entry for entry in results if entry["category_id"] == category["id"]],
        )
        name = category["name"]
        areas[name] = None if curve is None else area_under(*curve)
        points[name] = None if curve is None else eleven_points(*curve)
    return VocAP(_mean(areas), _mean(points), areas, points)


def area_under(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """The area under precision over recall, where precision p(r) is the highest from r on.

    >>> area_under(np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3]))
    0.8333333333333333
    """
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * highest).sum())


def eleven_points(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """The mean over r = 0, 0.1, ..., 1 of the highest precision at a recall of at least r.

    >>> round(eleven_points(np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])), 6)
    0.848485
    """
    levels = np.arange(11) / 10
    return float(np.mean([precision[recall >= level].max(initial=0.0) for level in levels]))


def _curve(
    objects: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Recall and precision of a class after each of its detections; None if it has no object."""
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for entry in objects:
        by_image.setdefault(entry["image_id"], []).append(entry)
    num_objects = sum(not _is_ignored(entry) for entry in objects)
    if not num_objects:
        return None
    taken: set[int] = set()
    right: list[bool] = []
    for entry in sorted(found, key=lambda entry: -entry["score"]):
        here = by_image.get(entry["image_id"], [])
        overlaps = [overlap(entry["bbox"], other["bbox"]) for other in here]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best < 0 or overlaps[best] < THRESHOLD:
            right.append(False)
        elif not _is_ignored(here[best]):
            right.append(here[best]["id"] not in taken)
            taken.add(here[best]["id"])
    hits = np.cumsum(right)
    return hits / num_objects, hits / np.arange(1, len(right) + 1)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (x, y, width, height).

    >>> overlap((0, 0, 2, 2), (1, 0, 2, 2))
    0.3333333333333333
    """
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    return both / (one[2] * one[3] + other[2] * other[3] - both)


def _is_ignored(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("difficult") or entry.get("iscrowd"))


def _mean(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return float(np.mean(known)) if known else None
