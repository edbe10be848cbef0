"""Declares ``torchadder::adder2d_lp`` and its two gradients, as ``ops/schema.py`` does ``adder2d``.

By p: at 1 the kernels of ``adder2d`` serve, at 2 convolutions, between them the C++ kernels on a
CPU and the reference elsewhere. p is rounded to the dtype in which sums are taken.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchadder.ops import cpu as plain_cpu
from torchadder.ops import reference as plain_reference
from torchadder.ops.geometry import (
    Geometry,
    accumulation_dtype,
    make_geometry,
    memory_format,
    output_shape,
)
from torchadder.ops.lp import cpu, reference, squares
from torchadder.ops.schema import _check_backward

_WINDOW = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
_LP = f"{_WINDOW}, float p, bool clip"

_library = torch.library.Library("torchadder", "FRAGMENT")
_library.define(
    f"adder2d_lp(Tensor input, Tensor weight, Tensor? bias, {_LP}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
for _which in ("input", "weight"):
    _library.define(
        f"adder2d_lp_backward_{_which}(Tensor grad_output, Tensor input, Tensor weight, {_LP})"
        " -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )

Ints = Sequence[int]


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


def _exponent(p: float, dtype: torch.dtype) -> float:
    """``p`` as the kernels see it."""
    check_exponent(p)
    return p if accumulation_dtype(dtype) == torch.float64 else ctypes.c_float(p).value


# Kernels ----------------------------------------------------------------------------------------


@torch.library.impl(_library, "adder2d_lp", "CompositeExplicitAutograd")
def _adder2d_lp(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    p: float,
    clip: bool,
) -> Tensor:
    geometry = make_geometry(stride, padding, dilation, groups)
    size = output_shape(input, weight, bias, geometry)
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
    wide = [t.to(accumulation_dtype(input.dtype)) for t in (grad_output, input, weight)]
    doubled = (wide[0], 2 * wide[1], 2 * wide[2], geometry, "clip")
    handle = plain_cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return plain_reference.adder2d_backward_input(*doubled).to(input.dtype)
    return plain_cpu.adder2d_backward_input(handle, *doubled).to(input.dtype)


@torch.library.impl(_library, "adder2d_lp_backward_input", "CompositeExplicitAutograd")
def _adder2d_lp_backward_input(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    p: float,
    clip: bool,
) -> Tensor:
    geometry = make_geometry(stride, padding, dilation, groups)
    _check_backward(grad_output, input, weight, geometry)
    p = _exponent(p, input.dtype)
    if p == 1:
        return torch.ops.torchadder.adder2d_backward_input(
            grad_output, input, weight, *geometry, "exact"
        )
    if p == 2 and clip:
        return _clipped_squares(grad_output, input, weight, geometry)
    if p == 2:
        return squares.adder2d_backward_input(grad_output, input, weight, geometry)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return reference.adder2d_lp_backward_input(grad_output, input, weight, geometry, p, clip)
    return cpu.adder2d_lp_backward_input(handle, grad_output, input, weight, geometry, p, clip)


@torch.library.impl(_library, "adder2d_lp_backward_weight", "CompositeExplicitAutograd")
def _adder2d_lp_backward_weight(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    p: float,
    clip: bool,
) -> Tensor:
    geometry = make_geometry(stride, padding, dilation, groups)
    _check_backward(grad_output, input, weight, geometry)
    p = _exponent(p, input.dtype)
    if p == 1:
        return torch.ops.torchadder.adder2d_backward_weight(
            grad_output, input, weight, *geometry, "exact"
        )
    if p == 2:
        return squares.adder2d_backward_weight(grad_output, input, weight, geometry)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return reference.adder2d_lp_backward_weight(grad_output, input, weight, geometry, p)
    return cpu.adder2d_lp_backward_weight(handle, grad_output, input, weight, geometry, p)


# Fake kernels -----------------------------------------------------------------------------------


@torch.library.register_fake("torchadder::adder2d_lp", lib=_library)
def _adder2d_lp_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    p: float,
    clip: bool,
) -> Tensor:
    check_exponent(p)
    shape = output_shape(input, weight, bias, make_geometry(stride, padding, dilation, groups))
    return input.new_empty(shape).to(memory_format=memory_format(input))


@torch.library.register_fake("torchadder::adder2d_lp_backward_input", lib=_library)
def _adder2d_lp_backward_input_fake(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    p: float,
    clip: bool,
) -> Tensor:
    check_exponent(p)
    _check_backward(grad_output, input, weight, make_geometry(stride, padding, dilation, groups))
    return torch.empty_like(input, memory_format=memory_format(input))


@torch.library.register_fake("torchadder::adder2d_lp_backward_weight", lib=_library)
def _adder2d_lp_backward_weight_fake(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    p: float,
    clip: bool,
) -> Tensor:
    check_exponent(p)
    _check_backward(grad_output, input, weight, make_geometry(stride, padding, dilation, groups))
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


# Autograd ---------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, *ctx.arguments = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(input, weight)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    ops = torch.ops.torchadder
    arguments = (grad_output, input, weight, *ctx.arguments)
    grad_input = ops.adder2d_lp_backward_input(*arguments) if needs_input else None
    grad_weight = ops.adder2d_lp_backward_weight(*arguments) if needs_weight else None
    grad_bias = None
    if ctx.bias_dtype is not None and needs_bias:
        grad_bias = grad_output.sum((0, 2, 3)).to(ctx.bias_dtype)
    return grad_input, grad_weight, grad_bias, None, None, None, None, None, None


torch.library.register_autograd(
    "torchadder::adder2d_lp", _backward, setup_context=_setup_context, lib=_library
)


def _refuse_double_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "adder2d_lp has no double backward: the clipped gradient is no derivative of a function; "
        "call backward() without create_graph=True"
    )


for _which in ("input", "weight"):
    torch.library.register_autograd(
        f"torchadder::adder2d_lp_backward_{_which}", _refuse_double_backward, lib=_library
    )

for _device_type in ("cpu", "cuda"):
    torch.library.register_autocast(
        "torchadder::adder2d_lp", _device_type, torch.float32, lib=_library
    )
