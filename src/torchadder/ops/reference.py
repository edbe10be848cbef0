"""The specification: the adder operator and its gradients in plain torch, tap by tap.

Written to be obviously right. It serves as the oracle of the tests (in float64) and as the
implementation wherever no kernel exists. Memory is bounded: the largest temporary holds about
``CHUNK_ELEMENTS`` numbers. Shape letters: N batch, G groups, O outputs of a group, C inputs of a
group, P x Q output image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadder.ops.geometry import Geometry, accumulation_dtype, memory_format, output_shape

CHUNK_ELEMENTS = 1 << 22


def sign(difference: Tensor) -> Tensor:
    """Sign with ``sign(0) = 0`` that keeps NaN (torch.sign turns NaN into 0)."""
    return torch.where(difference.isnan(), difference, difference.sign())


def _identity(difference: Tensor) -> Tensor:
    return difference


def _clip(difference: Tensor) -> Tensor:
    return difference.clamp(-1, 1)


INPUT_FACTOR: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": _clip,
    "sign": sign,
    "l2": _identity,
    "exact": sign,
}
"""d output / d input as a function of ``w - x``, by gradient rule."""

WEIGHT_FACTOR: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": _identity,
    "sign": _identity,
    "l2": _identity,
    "exact": sign,
}
"""d output / d weight as a function of ``x - w``, by gradient rule."""


def _tap(padded: Tensor, r: int, s: int, size: tuple[int, int], geometry: Geometry) -> Tensor:
    """View of the padded input that tap (r, s) of every window position sees: (N, G, C, P, Q)."""
    (sh, sw), _, (dh, dw), _ = geometry
    P, Q = size
    rows = slice(r * dh, r * dh + (P - 1) * sh + 1, sh)
    cols = slice(s * dw, s * dw + (Q - 1) * sw + 1, sw)
    return padded[..., rows, cols]


def _pad(input: Tensor, geometry: Geometry) -> Tensor:
    """Zero-padded input in the accumulation dtype, channels split by group: (N, G, C, H, W)."""
    ph, pw = geometry.padding
    padded = F.pad(input.to(accumulation_dtype(input.dtype)), (pw, pw, ph, ph))
    return padded.unflatten(1, (geometry.groups, -1))


def _chunks(N: int, num_outputs: int, elements_per_output: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of the batch and of a group's outputs that together stay below CHUNK_ELEMENTS."""
    outputs = max(1, min(num_outputs, CHUNK_ELEMENTS // max(1, elements_per_output)))
    images = max(1, CHUNK_ELEMENTS // max(1, elements_per_output * outputs))
    for n in range(0, N, images):
        for o in range(0, num_outputs, outputs):
            yield slice(n, n + images), slice(o, o + outputs)


def adder2d(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``y[n,o,p,q] = bias[o] - sum_{c,r,s} |x[n,c,p sh + r dh - ph,...] - w[o,c,r,s]|``."""
    N, O, P, Q = output_shape(input, weight, bias, geometry)
    x_NGCHW = _pad(input, geometry)
    w_GOCRS = weight.to(x_NGCHW.dtype).unflatten(0, (geometry.groups, -1))
    y_NGOPQ = x_NGCHW.new_zeros((N, geometry.groups, O // geometry.groups, P, Q))
    R, S = weight.shape[2:]
    for images, outputs in _chunks(N, O // geometry.groups, x_NGCHW.shape[1:3].numel() * P * Q):
        for r in range(R):
            for s in range(S):
                x = _tap(x_NGCHW[images], r, s, (P, Q), geometry).unsqueeze(2)
                w = w_GOCRS[:, outputs, :, r, s, None, None]
                y_NGOPQ[images, :, outputs] -= (x - w).abs_().sum(3)
    output = y_NGOPQ.flatten(1, 2)
    if bias is not None:
        output += bias.to(output.dtype)[:, None, None]
    return output.to(input.dtype, memory_format=memory_format(input))


def adder2d_backward_input(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, grad: str
) -> Tensor:
    """``grad_input = sum over taps and outputs of INPUT_FACTOR[grad](w - x) * grad_output``."""
    N, O, P, Q = grad_output.shape
    x_NGCHW = _pad(input, geometry)
    w_GOCRS = weight.to(x_NGCHW.dtype).unflatten(0, (geometry.groups, -1))
    g_NGOPQ = grad_output.to(x_NGCHW.dtype).unflatten(1, (geometry.groups, -1))
    result_NGCHW = torch.zeros_like(x_NGCHW)
    R, S = weight.shape[2:]
    for images, outputs in _chunks(N, O // geometry.groups, x_NGCHW.shape[1:3].numel() * P * Q):
        g = g_NGOPQ[images, :, outputs].unsqueeze(3)
        for r in range(R):
            for s in range(S):
                x = _tap(x_NGCHW[images], r, s, (P, Q), geometry).unsqueeze(2)
                w = w_GOCRS[:, outputs, :, r, s, None, None]
                tap = _tap(result_NGCHW[images], r, s, (P, Q), geometry)
                tap += (INPUT_FACTOR[grad](w - x) * g).sum(2)
    ph, pw = geometry.padding
    H, W = input.shape[2:]
    result = result_NGCHW.flatten(1, 2)[:, :, ph : ph + H, pw : pw + W]
    return result.to(input.dtype).contiguous(memory_format=memory_format(input))


def adder2d_backward_weight(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, grad: str
) -> Tensor:
    """``grad_weight = sum over images and positions of WEIGHT_FACTOR[grad](x - w) * g``."""
    N, O, P, Q = grad_output.shape
    x_NGCHW = _pad(input, geometry)
    w_GOCRS = weight.to(x_NGCHW.dtype).unflatten(0, (geometry.groups, -1))
    g_NGOPQ = grad_output.to(x_NGCHW.dtype).unflatten(1, (geometry.groups, -1))
    result_GOCRS = torch.zeros_like(w_GOCRS)
    R, S = weight.shape[2:]
    for images, outputs in _chunks(N, O // geometry.groups, x_NGCHW.shape[1:3].numel() * P * Q):
        g = g_NGOPQ[images, :, outputs].unsqueeze(3)
        for r in range(R):
            for s in range(S):
                x = _tap(x_NGCHW[images], r, s, (P, Q), geometry).unsqueeze(2)
                w = w_GOCRS[:, outputs, :, r, s, None, None]
                factor = WEIGHT_FACTOR[grad](x - w)
                result_GOCRS[:, outputs, :, r, s] += (factor * g).sum((0, 4, 5))
    return result_GOCRS.flatten(0, 1).to(weight.dtype).contiguous()
