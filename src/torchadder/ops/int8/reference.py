"""What the integer operators compute, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from torchadder.ops.geometry import Geometry

_MAX_ELEMENTS = 2**24
"""Differences held at once."""


def layer(kind: str, input: Tensor, weight: Tensor, zero_point: int, geometry: Geometry) -> Tensor:
    """``y[n,o,p,q] = -sum_{c,r,s} |x[n,c,h,v] - w[o,c,r,s]|`` or ``sum x w``, int32.

    Pixels of the padding are ``zero_point``. Filters of an adder layer are uint8, those of a
    convolution int8. The result is in channels-last form.
    """
    (sh, sw), (ph, pw), (dh, dw), groups = geometry
    O, depth, R, S = weight.shape
    padded = F.pad(input.to(torch.int32), (pw, pw, ph, ph), value=zero_point)
    windows = padded.unfold(2, dh * (R - 1) + 1, sh).unfold(3, dw * (S - 1) + 1, sw)
    windows = windows[..., ::dh, ::dw]  # (N, C, P, Q, R, S)
    N, _, P, Q = windows.shape[:4]
    result = input.new_empty((N, O, P, Q), dtype=torch.int32)
    filters = O // groups
    chunk = max(1, _MAX_ELEMENTS // max(1, N * depth * P * Q * R * S))
    for o in range(0, O, filters):
        group = o // filters
        patches = windows[:, group * depth : (group + 1) * depth, None]  # (N, c, 1, P, Q, R, S)
        for start in range(o, o + filters, chunk):
            part = slice(start, min(start + chunk, o + filters))
            taps = weight[part].to(torch.int32).transpose(0, 1)[None, :, :, None, None]
            terms = -(patches - taps).abs() if kind == "adder2d" else patches * taps
            result[:, part] = terms.sum((1, 5, 6), dtype=torch.int32)
    return result.contiguous(memory_format=torch.channels_last)


def requantise(
    sums: Tensor,
    multiplier: Tensor,
    offset: Tensor,
    shift: int,
    low: int,
    high: int,
    residual: Tensor | None,
    residual_multiplier: int,
) -> Tensor:
    """``clamp((y multiplier[o] + offset[o] + residual_multiplier residual) >> shift, low, high)``.

    In 64 bits, the shift rounding down; uint8, in the memory format of the sums.
    """
    values = sums.to(torch.int64) * multiplier.to(torch.int64)[:, None, None]
    values = values + offset[:, None, None]
    if residual is not None:
        values = values + residual_multiplier * residual.to(torch.int64)
    return (values >> shift).clamp(low, high).to(torch.uint8)
