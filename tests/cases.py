"""The shapes that every implementation of the operator is tested on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchadder.ops.geometry import Geometry


@dataclass(frozen=True)
class Case:
    """One problem: input (N, C, H, W), O filters of R x S, a window and a memory layout."""

    name: str
    input: tuple[int, int, int, int]
    filters: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    layout: str = "contiguous"
    bias: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    @property
    def weight(self) -> tuple[int, int, int, int]:
        O, R, S = self.filters
        return O, self.input[1] // self.groups, R, S

    def draw(self, dtype: torch.dtype = torch.float32, device: str = "cpu"):
        """Random (input, weight, bias or None) of this case."""
        weight = torch.randn(self.weight, dtype=dtype, device=device)
        bias = torch.randn(self.filters[0], dtype=dtype, device=device) if self.bias else None
        return self.laid_out(torch.randn(self.input, dtype=dtype, device=device)), weight, bias

    def laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same numbers in the memory layout of this case."""
        if self.layout == "channels_last":
            return tensor.contiguous(memory_format=torch.channels_last)
        if self.layout == "sliced":
            wide = tensor.new_full((*tensor.shape[:3], 2 * tensor.shape[3] + 1), float("nan"))
            wide[..., 1::2] = tensor
            return wide[..., 1::2]
        if self.layout == "cropped":
            large = torch.nn.functional.pad(tensor, (1, 2, 3, 1), value=float("nan"))
            return large[..., 3:-1, 1:-2]
        if self.layout == "transposed":
            return tensor.transpose(2, 3).contiguous().transpose(2, 3)
        if self.layout == "expanded":
            return tensor[:1, :, :1].expand(tensor.shape)
        return tensor


CASES = (
    Case("1x1", (2, 5, 6, 7), (4, 1, 1)),
    Case("1x1 stride 2", (2, 18, 9, 8), (20, 1, 1), stride=(2, 2)),
    Case("3x3", (2, 3, 8, 9), (5, 3, 3), padding=(1, 1), bias=True),
    Case("3x3 no padding", (1, 16, 5, 6), (16, 3, 3)),
    Case("3x3 stride 2", (2, 4, 8, 8), (6, 3, 3), stride=(2, 2), padding=(1, 1)),
    Case("3x3 stride 3", (3, 2, 11, 10), (7, 3, 3), stride=(3, 3), padding=(1, 1)),
    Case("3x3 stride (2, 1)", (2, 17, 9, 7), (33, 3, 3), stride=(2, 1), padding=(1, 1)),
    Case("5x5 padding 4", (2, 3, 7, 6), (18, 5, 5), padding=(4, 4)),
    Case("5x5 stride 3 padding 4", (1, 19, 9, 12), (35, 5, 5), stride=(3, 3), padding=(4, 4)),
    Case("7x7 stride 2", (1, 3, 21, 23), (64, 7, 7), stride=(2, 2), padding=(3, 3)),
    Case("3x2 kernel", (2, 6, 8, 7), (9, 3, 2), padding=(2, 0), bias=True),
    Case("1x7 kernel", (1, 17, 4, 19), (50, 1, 7), padding=(0, 3)),
    Case("padding beyond the kernel", (1, 2, 3, 3), (3, 2, 2), padding=(4, 5)),
    Case("dilation 2", (2, 16, 11, 12), (32, 3, 3), padding=(2, 2), dilation=(2, 2)),
    Case(
        "dilation (3, 2) stride (2, 3)", (2, 5, 14, 13), (17, 3, 3),
        stride=(2, 3), padding=(3, 1), dilation=(3, 2),
    ),
    Case("dilation 8", (1, 130, 18, 17), (33, 3, 3), padding=(8, 8), dilation=(8, 8)),
    Case("dilation beyond the image", (2, 17, 4, 5), (18, 3, 3), padding=(30, 31), dilation=(30, 31)),
    Case("dilation 4 stride 2", (1, 40, 15, 16), (20, 3, 3), stride=(2, 2), padding=(4, 4), dilation=(4, 4)),
    Case("stride beyond the image", (2, 3, 5, 6), (4, 3, 3), stride=(1000, 999), padding=(1, 1)),
    Case("2 groups", (3, 8, 7, 7), (6, 3, 3), padding=(1, 1), groups=2, bias=True),
    Case("5 groups of 20", (1, 100, 5, 5), (100, 3, 3), padding=(1, 1), groups=5),
    Case("32 groups of 4", (2, 128, 6, 5), (64, 3, 3), padding=(1, 1), groups=32),
    Case("groups, stride 2", (2, 12, 9, 9), (24, 3, 3), stride=(2, 2), padding=(1, 1), groups=4),
    Case("depthwise", (2, 21, 9, 8), (21, 3, 3), padding=(1, 1), groups=21),
    Case("depthwise stride 2", (2, 32, 9, 9), (32, 3, 3), stride=(2, 2), padding=(1, 1), groups=32),
    Case("depthwise 5x5 dilation 2", (1, 40, 11, 9), (40, 5, 5), padding=(4, 4), dilation=(2, 2), groups=40),
    Case("depthwise multiplier 3", (2, 7, 6, 6), (21, 3, 3), padding=(1, 1), groups=7),
    Case("K = 27", (2, 3, 8, 8), (16, 3, 3), padding=(1, 1)),
    Case("K = 72", (5, 8, 6, 6), (12, 3, 3), padding=(1, 1)),
    Case("K = 75", (6, 3, 7, 7), (13, 5, 5)),
    Case("K above a block", (2, 70, 5, 5), (70, 3, 3), padding=(1, 1), bias=True),
    Case("K above two blocks", (1, 130, 4, 4), (40, 3, 3), padding=(1, 1)),
    Case("channels 31, 33", (2, 31, 7, 5), (33, 3, 3), padding=(1, 1)),
    Case("95 filters", (1, 16, 6, 6), (95, 3, 3), padding=(1, 1)),
    Case("129 filters", (1, 20, 5, 4), (129, 1, 1)),
    Case("one pixel", (1, 1, 1, 1), (1, 1, 1)),
    Case("one output pixel", (3, 20, 3, 3), (37, 3, 3)),
    Case("linear", (7, 50, 1, 1), (33, 1, 1), bias=True),
    Case("batch 3", (3, 4, 5, 5), (4, 3, 3), padding=(1, 1)),
    Case("batch 5", (5, 17, 7, 7), (34, 3, 3), padding=(1, 1)),
    Case("batch 6", (6, 4, 5, 5), (4, 3, 3), stride=(2, 2)),
    Case("batch 7", (7, 3, 6, 6), (8, 3, 3), padding=(1, 1)),
    Case("batch 0", (0, 4, 5, 5), (6, 3, 3), padding=(1, 1), bias=True),
    Case("several units", (3, 16, 40, 37), (32, 3, 3), padding=(1, 1)),
    Case("wide", (1, 2, 1, 3000), (5, 1, 5), padding=(0, 2)),
    Case("tall", (1, 17, 900, 1), (20, 3, 1), stride=(2, 1)),
    Case("channels_last", (2, 16, 9, 8), (32, 3, 3), padding=(1, 1), layout="channels_last"),
    Case("channels_last odd", (2, 19, 7, 8), (21, 3, 3), stride=(2, 2), layout="channels_last"),
    Case("channels_last depthwise", (2, 32, 7, 8), (32, 3, 3), padding=(1, 1), groups=32, layout="channels_last"),
    Case("sliced", (2, 6, 7, 8), (18, 3, 3), padding=(1, 1), layout="sliced"),
    Case("cropped", (2, 16, 7, 17), (18, 3, 3), padding=(1, 1), layout="cropped"),
    Case("transposed", (2, 16, 7, 17), (18, 3, 3), padding=(1, 1), layout="transposed"),
    Case("expanded", (3, 6, 7, 8), (18, 3, 3), padding=(1, 1), layout="expanded"),
)  # fmt: skip
