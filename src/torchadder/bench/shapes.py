"""The layers that are timed: those of ResNets on CIFAR and ImageNet."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One layer: N images of C x H x H, O filters of R x R, padding R // 2."""

    batch: int
    in_channels: int
    out_channels: int
    size: int
    kernel: int
    stride: int = 1

    @property
    def name(self) -> str:
        """For instance ``3x3 64->128 @56 /2 b8``."""
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return (
            f"{self.kernel}x{self.kernel} {self.in_channels}->{self.out_channels} "
            f"@{self.size}{stride} b{self.batch}"
        )

    @property
    def padding(self) -> int:
        """Padding on every side."""
        return self.kernel // 2

    @property
    def output_size(self) -> int:
        """Rows and columns of the output."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def num_taps(self) -> int:
        """Pairs |x - w| of one forward."""
        outputs = self.batch * self.out_channels * self.output_size**2
        return outputs * self.in_channels * self.kernel**2

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read a name such as ``3x3 64->128 @56 /2 b8``; batch 8 where it is left out.

        Raises:
            ValueError: the text is no shape.
        """
        pattern = r"(\d+)x(\d+) (\d+)->(\d+) @(\d+)(?: /(\d+))?(?: b(\d+))?"
        match = re.fullmatch(pattern, text.strip())
        if match is None or match[1] != match[2]:
            raise ValueError(f"a shape looks like '3x3 64->128 @56 /2 b8', got {text!r}")
        kernel, _, channels, filters, size, stride, batch = match.groups()
        numbers = (batch or 8, channels, filters, size, kernel, stride or 1)
        shape = cls(*(int(number) for number in numbers))
        if (
            min(
                shape.batch,
                shape.in_channels,
                shape.out_channels,
                shape.size,
                shape.kernel,
                shape.stride,
            )
            < 1
        ):
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
