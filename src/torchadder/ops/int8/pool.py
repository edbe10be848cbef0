"""Declares ``torchadder::max_pool2d_int8``: the largest bytes of windows.

torch has one for bytes, but it refuses channels-last images of more than 255 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from torchadder.ops.geometry import Geometry, make_geometry, output_size
from torchadder.ops.int8 import cpu

Ints = Sequence[int]
Shape = tuple[int, int, int, int]

_SCHEMA = (
    "max_pool2d_int8(Tensor input, SymInt[2] kernel, SymInt[2] stride, SymInt[2] padding, "
    "SymInt[2] dilation) -> Tensor"
)


def _check(input: Tensor, kernel: Ints, geometry: Geometry) -> Shape:
    """Checks the operands and returns the shape of the result."""
    if input.dtype != torch.uint8:
        raise TypeError(f"input must be uint8, got {input.dtype}")
    if input.dim() != 4:
        raise ValueError(f"input must have 4 dimensions, got {tuple(input.shape)}")
    sizes = []
    for size, window, step, padding, dilation in zip(
        input.shape[2:], kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True
    ):
        if window < 1 or 2 * padding > dilation * (window - 1) + 1:
            raise ValueError(
                f"padding must be at most half of the window, got padding {padding}, kernel "
                f"{window}, dilation {dilation}"
            )
        sizes.append(output_size(size, window, step, padding, dilation))
    if min(sizes) < 1:
        raise ValueError(
            f"input of {input.shape[2]} x {input.shape[3]} with padding {geometry.padding} is "
            f"smaller than the window: kernel {tuple(kernel)}, dilation {geometry.dilation}"
        )
    return input.shape[0], input.shape[1], sizes[0], sizes[1]


def _max_pool2d(input: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    geometry = make_geometry(stride, padding, dilation, 1)
    size = _check(input, kernel, geometry)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is not None:
        return cpu.max_pool(handle, input, (kernel[0], kernel[1]), geometry, size)
    # Bytes are exact in float32.
    y = F.max_pool2d(input.float(), list(kernel), geometry.stride, geometry.padding,
                     geometry.dilation)  # fmt: skip
    return y.clamp_(min=0).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _fake_max_pool2d(
    input: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    size = _check(input, kernel, make_geometry(stride, padding, dilation, 1))
    return input.new_empty(size).to(memory_format=torch.channels_last)


_library = torch.library.Library("torchadder", "FRAGMENT")
_library.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("max_pool2d_int8", _max_pool2d, "CompositeExplicitAutograd")
torch.library.register_fake("torchadder::max_pool2d_int8", _fake_max_pool2d, lib=_library)
