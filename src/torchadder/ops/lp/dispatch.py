"""Declares ``torchadder::adder2d_lp`` and chooses its kernels, as ``ops/dispatch.py`` does.

By p: at 1 the kernels of ``adder2d`` serve, at 2 convolutions (and for the clipped gradient again
those kernels), between them the C++ kernels on a CPU and the reference elsewhere. p is rounded to
the dtype in which sums are taken.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from torchadder.ops.declaration import Kernels, declare
from torchadder.ops.geometry import Geometry, accumulation_dtype, memory_format
from torchadder.ops.lp import cpu, reference, squares


def check_exponent(p: float) -> None:
    """Raise unless ``p`` is an exponent the operator is defined for.

    Raises:
        TypeError: it is no number.
        ValueError: it lies outside 1 .. 2.
    """
    if isinstance(p, bool) or not isinstance(p, int | float | torch.SymFloat):
        raise TypeError(f"p must be a number, got {p!r}")
    if not 1 <= p <= 2:
        raise ValueError(f"p must be within 1 .. 2, got {p}")


def _check_options(p: float, clip: bool) -> None:
    check_exponent(p)


def _exponent(p: float, dtype: torch.dtype) -> float:
    """``p`` as the kernels see it."""
    return p if accumulation_dtype(dtype) == torch.float64 else ctypes.c_float(p).value


def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    size: tuple[int, int, int, int],
    p: float,
    clip: bool,
) -> Tensor:
    p = _exponent(p, input.dtype)
    if p == 1:
        return torch.ops.torchadder.adder2d(input, weight, bias, *geometry, "exact")
    if p == 2:
        return squares.adder2d(input, weight, bias, geometry)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return reference.adder2d_lp(input, weight, bias, geometry, p)
    return cpu.adder2d_lp(handle, input, weight, bias, geometry, p, size)


def _clipped_squares(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """``clamp(2 (w - x), -1, 1)`` is AdderNet's clipped factor of 2 w and 2 x."""
    g, x, w = (t.to(accumulation_dtype(input.dtype)) for t in (grad_output, input, weight))
    gradient = torch.ops.torchadder.adder2d_backward_input(g, 2 * x, 2 * w, *geometry, "clip")
    return gradient.to(input.dtype).contiguous(memory_format=memory_format(input))


def _backward_input(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, p: float, clip: bool
) -> Tensor:
    operands = (grad_output, input, weight)
    p = _exponent(p, input.dtype)
    if p == 1:
        return torch.ops.torchadder.adder2d_backward_input(*operands, *geometry, "exact")
    if p == 2 and clip:
        return _clipped_squares(*operands, geometry)
    if p == 2:
        return squares.adder2d_backward_input(*operands, geometry)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return reference.adder2d_lp_backward_input(*operands, geometry, p, clip)
    return cpu.adder2d_lp_backward_input(handle, *operands, geometry, p, clip)


def _backward_weight(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, p: float, clip: bool
) -> Tensor:
    operands = (grad_output, input, weight)
    p = _exponent(p, input.dtype)
    if p == 1:
        return torch.ops.torchadder.adder2d_backward_weight(*operands, *geometry, "exact")
    if p == 2:
        return squares.adder2d_backward_weight(*operands, geometry)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return reference.adder2d_lp_backward_weight(*operands, geometry, p)
    return cpu.adder2d_lp_backward_weight(handle, *operands, geometry, p)


declare(
    "adder2d_lp",
    "float p, bool clip",
    _check_options,
    Kernels(_forward, _backward_input, _backward_weight),
    why_no_double_backward="the clipped gradient is no derivative of a function",
)
