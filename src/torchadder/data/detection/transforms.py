"""What happens to an image and its boxes: mirrored, resized, or nothing.

The operations are torchvision's (transforms v2); which of them an image gets is a hash of (seed,
epoch, index), as for classification, and not a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from torchadder.data.images import draw

_FLIP, _SCALE = 20, 21  # streams of random numbers; those below are the classifiers'


@dataclass(frozen=True)
class Augmentation:
    """Which transforms there are.

    An image of shorter side s and longer side l is multiplied by min(a / s, b / l), with a one of
    `shorter`, each as likely as the others, and b = `longer`.

    Args:
        flip: Probability of mirroring left to right.
        shorter: Lengths of the shorter side in pixels, several for multi-scale training; empty:
            `longer` alone decides.
        longer: Largest length of the longer side in pixels; None: any. With neither, images keep
            their size.
    """

    flip: float = 0.0
    shorter: Sequence[int] = ()
    longer: int | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must lie in 0..1, got {self.flip}")
        if any(side < 1 for side in self.shorter) or (self.longer or 1) < 1:
            raise ValueError(
                f"shorter and longer must be at least 1 pixel, got {list(self.shorter)} and "
                f"{self.longer}"
            )

    def for_evaluation(self) -> Augmentation:
        """The same without chance: never mirrored, and the largest of the sizes."""
        return Augmentation(0.0, tuple(self.shorter and [max(self.shorter)]), self.longer)

    def size(self, height: int, width: int, choice: int = 0) -> tuple[int, int]:
        """Height and width of an image afterwards; `choice` is the number of the shorter side."""
        scales = []
        if self.shorter:
            scales.append(self.shorter[choice] / min(height, width))
        if self.longer is not None:
            scales.append(self.longer / max(height, width))
        if not scales:
            return height, width
        return max(1, round(height * min(scales))), max(1, round(width * min(scales)))

    def apply(
        self, image: Tensor, boxes: Any, seed: int, epoch: int, index: int
    ) -> tuple[Tensor, Any]:
        """An image (C, H, W) and its `BoundingBoxes` (M, 4) after the transforms drawn for it."""
        where = np.array([index])
        share = float(draw(seed, epoch, where, _FLIP)[0] >> np.uint64(11)) * 2.0**-53
        if share < self.flip:
            image, boxes = vision.horizontal_flip(image), vision.horizontal_flip(boxes)
        num_sizes = max(1, len(self.shorter))
        choice = int(draw(seed, epoch, where, _SCALE)[0] % np.uint64(num_sizes))
        old = int(image.shape[-2]), int(image.shape[-1])
        new = self.size(*old, choice)
        if new != old:
            image = self.resize(image, new)
            boxes = vision.resize(boxes, list(new))
        return image, boxes

    def resize(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """An image (C, H, W) brought to a height and width."""
        return vision.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)
