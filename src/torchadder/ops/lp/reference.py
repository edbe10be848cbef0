"""The lp operator in plain torch: the specification that every kernel is tested against.

Loops over taps and over chunks of the batch and the outputs, so that at most a few chunks of
``CHUNK_ELEMENTS`` numbers exist beside the operands. Shape letters as in
:mod:`torchadder.ops.reference`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torchadder.ops.geometry import Geometry, memory_format, output_shape
from torchadder.ops.reference import _chunks, _pad, _tap, sign


def derivative(difference: Tensor, p: float) -> Tensor:
    """``p |d|^(p-1) sign(d)``, 0 at 0."""
    return p * difference.abs().pow(p - 1) * sign(difference)


def _clipped(difference: Tensor, p: float) -> Tensor:
    return derivative(difference, p).clamp(-1, 1)


INPUT_FACTOR = {False: derivative, True: _clipped}
"""d output / d input as a function of ``w - x`` and p, by ``clip``."""


class _Part(NamedTuple):
    """One tap for one chunk: where it lies, its inputs and its filters, ready to be broadcast."""

    images: slice
    outputs: slice
    tap: tuple[int, int]
    x: Tensor  # (N, G, 1, C, P, Q)
    w: Tensor  # (G, O, C, 1, 1)


def _parts(
    x_NGCHW: Tensor, w_GOCRS: Tensor, size: tuple[int, int], geometry: Geometry
) -> Iterator[_Part]:
    num_outputs, (R, S) = w_GOCRS.shape[1], w_GOCRS.shape[3:]
    elements = x_NGCHW.shape[1:3].numel() * size[0] * size[1]
    for images, outputs in _chunks(x_NGCHW.shape[0], num_outputs, elements):
        for r in range(R):
            for s in range(S):
                x = _tap(x_NGCHW[images], r, s, size, geometry).unsqueeze(2)
                w = w_GOCRS[:, outputs, :, r, s, None, None]
                yield _Part(images, outputs, (r, s), x, w)


def _operands(input: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    x_NGCHW = _pad(input, geometry)
    return x_NGCHW, weight.to(x_NGCHW.dtype).unflatten(0, (geometry.groups, -1))


def adder2d_lp(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, p: float
) -> Tensor:
    """``y[n,o,p,q] = bias[o] - sum_{c,r,s} |x[n,c,...] - w[o,c,r,s]|^p``."""
    N, O, P, Q = output_shape(input, weight, bias, geometry)
    x_NGCHW, w_GOCRS = _operands(input, weight, geometry)
    y_NGOPQ = x_NGCHW.new_zeros((N, geometry.groups, O // geometry.groups, P, Q))
    for part in _parts(x_NGCHW, w_GOCRS, (P, Q), geometry):
        powers = (part.x - part.w).abs_().pow_(p)
        y_NGOPQ[part.images, :, part.outputs] -= powers.sum(3)
    output = y_NGOPQ.flatten(1, 2)
    if bias is not None:
        output += bias.to(output.dtype)[:, None, None]
    return output.to(input.dtype, memory_format=memory_format(input))


def adder2d_lp_backward_input(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, p: float, clip: bool
) -> Tensor:
    """``grad_input = sum over taps and outputs of INPUT_FACTOR[clip](w - x, p) * grad_output``."""
    size = (grad_output.shape[2], grad_output.shape[3])
    x_NGCHW, w_GOCRS = _operands(input, weight, geometry)
    g_NGOPQ = grad_output.to(x_NGCHW.dtype).unflatten(1, (geometry.groups, -1))
    result_NGCHW = torch.zeros_like(x_NGCHW)
    for part in _parts(x_NGCHW, w_GOCRS, size, geometry):
        factor = INPUT_FACTOR[clip](part.w - part.x, p)
        tap = _tap(result_NGCHW[part.images], *part.tap, size, geometry)
        tap += (factor * g_NGOPQ[part.images, :, part.outputs].unsqueeze(3)).sum(2)
    ph, pw = geometry.padding
    H, W = input.shape[2:]
    result = result_NGCHW.flatten(1, 2)[:, :, ph : ph + H, pw : pw + W]
    return result.to(input.dtype).contiguous(memory_format=memory_format(input))


def adder2d_lp_backward_weight(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, p: float
) -> Tensor:
    """``grad_weight = sum over images and positions of derivative(x - w, p) * grad_output``."""
    size = (grad_output.shape[2], grad_output.shape[3])
    x_NGCHW, w_GOCRS = _operands(input, weight, geometry)
    g_NGOPQ = grad_output.to(x_NGCHW.dtype).unflatten(1, (geometry.groups, -1))
    result_GOCRS = torch.zeros_like(w_GOCRS)
    for part in _parts(x_NGCHW, w_GOCRS, size, geometry):
        factor = derivative(part.x - part.w, p)
        terms = factor * g_NGOPQ[part.images, :, part.outputs].unsqueeze(3)
        r, s = part.tap
        result_GOCRS[:, part.outputs, :, r, s] += terms.sum((0, 4, 5))
    return result_GOCRS.flatten(0, 1).to(weight.dtype).contiguous()
