"""The layers that are timed: those of ResNets on CIFAR and ImageNet, and one of a detector."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """One layer: N images of C x H x W (W = H unless told), O filters of R x R, padding R // 2."""

    batch: int
    in_channels: int
    out_channels: int
    size: int
    kernel: int
    stride: int = 1
    width: int | None = None

    @property
    def name(self) -> str:
        """For instance ``3x3 64->128 @56 /2 b8``; images that are no squares: ``@100x168``."""
        stride = f" /{self.stride}" if self.stride > 1 else ""
        height, width = self.image_size
        image = f"{height}" if height == width else f"{height}x{width}"
        return (
            f"{self.kernel}x{self.kernel} {self.in_channels}->{self.out_channels} "
            f"@{image}{stride} b{self.batch}"
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns of an image."""
        return self.size, self.size if self.width is None else self.width

    @property
    def padding(self) -> int:
        """Padding on every side."""
        return self.kernel // 2

    @property
    def output_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        height, width = self.image_size
        margin = 2 * self.padding - self.kernel
        return (height + margin) // self.stride + 1, (width + margin) // self.stride + 1

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return self.batch, self.in_channels, *self.image_size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(O, C, R, R)."""
        return self.out_channels, self.in_channels, self.kernel, self.kernel

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, O, P, Q)."""
        return self.batch, self.out_channels, *self.output_size

    @property
    def num_taps(self) -> int:
        """Pairs |x - w| of one forward."""
        return math.prod(self.output_shape) * self.in_channels * self.kernel**2

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read a name such as ``3x3 64->128 @56 /2 b8``; batch 8 where it is left out.

        Raises:
            ValueError: the text is no shape.
        """
        pattern = r"(\d+)x(\d+) (\d+)->(\d+) @(\d+)(?:x(\d+))?(?: /(\d+))?(?: b(\d+))?"
        match = re.fullmatch(pattern, text.strip())
        if match is None or match[1] != match[2]:
            raise ValueError(f"a shape looks like '3x3 64->128 @56 /2 b8', got {text!r}")
        kernel, _, channels, filters, size, width, stride, batch = match.groups()
        numbers = (batch or 8, channels, filters, size, kernel, stride or 1)
        shape = cls(
            *(int(number) for number in numbers),
            width=None if width in (None, size) else int(width),
        )
        if min(*shape.input_shape, *shape.weight_shape, shape.stride) < 1:
            raise ValueError(f"the numbers of a shape must be at least 1, got {text!r}")
        return shape


SHAPES = (
    Shape(128, 16, 16, 32, 3),
    Shape(128, 32, 32, 16, 3),
    Shape(128, 64, 64, 8, 3),
    Shape(8, 64, 64, 56, 3),
    Shape(8, 128, 128, 28, 3),
    Shape(8, 256, 256, 14, 3),
    Shape(8, 512, 512, 7, 3),
    Shape(8, 64, 256, 56, 1),
    Shape(8, 256, 64, 56, 1),
    Shape(8, 64, 128, 56, 3, stride=2),
    Shape(8, 3, 64, 224, 7, stride=2),
)

FCOS_HEAD = Shape(1, 256, 256, 100, 3, width=168)
"""One of the eight layers of an FCOS head, on the largest map of an 800 x 1344 image."""

GPU_BATCH = 256
GPU_SHAPES = (*(replace(shape, batch=GPU_BATCH) for shape in SHAPES), FCOS_HEAD)
