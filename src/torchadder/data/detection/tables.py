"""Annotations in compact arrays, and the checks that every object goes through.

A few arrays for a split and no Python object for an object: their memory is flat and shared by the
worker processes. Letters: N images, M objects. Boxes are (x1, y1, x2, y2) in pixels, continuous: an
image of width W covers 0 to W.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from torchadder.data.detection.pictures import Pictures
from torchadder.data.detection.problems import DetectionDataError, LeftOut, Problems

SLACK = 0.5  # pixels by which a box may stand out of its image: files round coordinates


@dataclass(frozen=True)
class Categories:
    """The classes of a source.

    Args:
        names: Name of each label.
        ids: Number of each label in COCO files, in the same order.
    """

    names: list[str]
    ids: list[int]

    @classmethod
    def numbered(cls, names: Sequence[str]) -> Categories:
        """Classes with the numbers 1, 2, ... in COCO files."""
        return cls(list(names), list(range(1, len(names) + 1)))


@dataclass
class DetectionSplit:
    """The images of a split and what is in them.

    Args:
        name: "train", "validation", "test" or the source's own name.
        categories: The classes.
        pictures: The images.
        image_ids: Number of each image, int64 (N).
        sizes: Height and width of each image in pixels, int32 (N, 2).
        starts: The objects of image i are starts[i] to starts[i + 1], int64 (N + 1).
        boxes: float64 (M, 4), as in the source; they may stand out by half a pixel.
        labels: Classes from 0, int32 (M).
        is_crowd: Whether a box holds a crowd and not one object, bool (M).
        is_difficult: Whether an object is marked as hard to recognise, bool (M).
        areas: Area of each object, by which COCO calls it small, medium or large, float64 (M).
        object_ids: Number of each object, above 0 and unique, int64 (M).
    """

    name: str
    categories: Categories
    pictures: Pictures
    image_ids: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    is_difficult: np.ndarray
    areas: np.ndarray
    object_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_objects(self) -> int:
        """Number of objects in all images."""
        return len(self.labels)

    def objects(self, index: int) -> slice:
        """Where the objects of image `index` stand in the arrays."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def select(self, name: str, rows: np.ndarray) -> DetectionSplit:
        """The given images, in that order, as a split of their own."""
        rows = np.asarray(rows, dtype=np.int64)
        counts = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        objects = np.repeat(self.starts[rows] - starts[:-1], counts) + np.arange(starts[-1])
        return DetectionSplit(
            name,
            self.categories,
            self.pictures.select(rows),
            self.image_ids[rows],
            self.sizes[rows],
            starts,
            self.boxes[objects],
            self.labels[objects],
            self.is_crowd[objects],
            self.is_difficult[objects],
            self.areas[objects],
            self.object_ids[objects],
        )


@dataclass
class DetectionSource:
    """What `open_detection` found.

    Args:
        format: "coco", "voc", "yolo", "columns" or "digit-scenes".
        categories: The classes.
        splits: The splits by name.
        left_out: Entries that cannot be used and were skipped; empty without `skip_bad`.
    """

    format: str
    categories: Categories
    splits: dict[str, DetectionSplit]
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by label."""
        return self.categories.names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.categories.names)

    def check_num_classes(self, wanted: int, whose: str) -> None:
        """Refuses a class count that disagrees.

        Args:
            wanted: Number of classes of something else.
            whose: What has them, for instance "the checkpoint best.safetensors".

        Raises:
            DetectionDataError: If the data has another number of classes.
        """
        if wanted != self.num_classes:
            raise DetectionDataError(
                f"{whose} has {wanted} classes, the data {self.num_classes} "
                f"({', '.join(self.class_names[:5])}{', ...' if self.num_classes > 5 else ''})"
            )


class SplitBuilder:
    """Collects images and checked objects, in any order, and makes a split of them.

    Args:
        categories: The classes.
        problems: Takes the objects that cannot be used.
        hint: What to add where a box lies outside its image.
    """

    def __init__(self, categories: Categories, problems: Problems, hint: str = "") -> None:
        self.categories = categories
        self.problems = problems
        self.hint = hint
        self._image_ids = array("q")
        self._sizes = array("i")
        self._rows = array("q")
        self._boxes = array("d")
        self._labels = array("i")
        self._flags = array("b")
        self._areas = array("d")
        self._object_ids = array("q")

    @property
    def num_images(self) -> int:
        """Number of images so far."""
        return len(self._image_ids)

    def add_image(self, image_id: int, height: int, width: int) -> int:
        """Adds an image and returns its row."""
        self._image_ids.append(image_id)
        self._sizes.extend((height, width))
        return len(self._image_ids) - 1

    def add_object(
        self,
        row: int,
        where: str,
        box: Sequence[float],
        label: int,
        *,
        is_crowd: bool = False,
        is_difficult: bool = False,
        area: float | None = None,
        object_id: int = 0,
    ) -> None:
        """Adds an object to the image of that row, or reports why it cannot be used.

        Args:
            row: Row of its image.
            where: What to call it in an error.
            box: x1, y1, x2, y2 in pixels.
            label: Its class, from 0.
            is_crowd: Whether it is a crowd.
            is_difficult: Whether it is hard to recognise.
            area: Its area in pixels; None: its box's.
            object_id: Its number in the source; 0: it has none.
        """
        reason = box_problem(box, self._sizes[2 * row], self._sizes[2 * row + 1])
        if reason is not None:
            self.problems.report(where, reason + (self.hint if "outside" in reason else ""))
            return
        if area is None:
            area = (box[2] - box[0]) * (box[3] - box[1])
        if not (math.isfinite(area) and area >= 0):
            self.problems.report(where, f"area {area} is no number of pixels")
            return
        self._rows.append(row)
        self._boxes.extend(box)
        self._labels.append(label)
        self._flags.append(is_crowd + 2 * is_difficult)
        self._areas.append(area)
        self._object_ids.append(object_id)

    def finish(self, name: str, pictures: Pictures) -> DetectionSplit:
        """The split: objects sorted by image, those of an image in the order they came."""
        rows = np.array(self._rows, dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        counts = np.bincount(rows, minlength=self.num_images)
        flags = np.array(self._flags, dtype=np.int8)[order]
        object_ids = np.array(self._object_ids, dtype=np.int64)[order]
        if (object_ids <= 0).any():  # COCO's own evaluation takes number 0 for "no match"
            object_ids = np.arange(1, len(object_ids) + 1)
        return DetectionSplit(
            name,
            self.categories,
            pictures,
            np.array(self._image_ids, dtype=np.int64),
            np.array(self._sizes, dtype=np.int32).reshape(-1, 2),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.array(self._boxes, dtype=np.float64).reshape(-1, 4)[order],
            np.array(self._labels, dtype=np.int32)[order],
            flags % 2 == 1,
            flags >= 2,
            np.array(self._areas, dtype=np.float64)[order],
            object_ids,
        )


def box_problem(box: Sequence[float], height: int, width: int) -> str | None:
    """Why a box cannot be used, or None.

    >>> box_problem((10, 10, 40, 20), 30, 40)
    >>> box_problem((10, 10, 10, 20), 30, 40)
    'box (10, 10, 10, 20) is empty'
    """
    x1, y1, x2, y2 = box
    shown = f"box ({', '.join(f'{value:g}' for value in box)})"
    if not all(math.isfinite(value) for value in box):
        return f"{shown} is not finite"
    if x2 < x1 or y2 < y1:
        return f"{shown} is reversed"
    if x2 == x1 or y2 == y1:
        return f"{shown} is empty"
    if min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
        return f"{shown} lies outside its image, {width} pixels wide and {height} high"
    if min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
        return f"{shown} is empty inside its image, {width} pixels wide and {height} high"
    return None
