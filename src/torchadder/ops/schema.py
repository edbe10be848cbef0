"""Declares the operators ``torchadder::adder2d``, ``adder2d_backward_input``, ``..._weight``.

One place for schema strings, fake kernels, autograd and autocast policy. The kernels come from
``reference`` (every device), ``cpu`` (the C++ library) and ``triton`` (GPUs), the flop formulas
from ``flops``.

* Deterministic on every backend; no operator mutates its arguments.
* Autocast: float32, the policy torch has for ``cdist``. The outputs are sums of K absolute values
  whose mean is large against their spread; eight bits of mantissa would round the spread away
  before the normalisation that follows can rescale it.
* Double backward is refused: the gradient rules are not derivatives of a function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchadder.ops import cpu, gpu, reference, weight_gradient
from torchadder.ops.geometry import (
    check_operands,
    check_rule,
    make_geometry,
    memory_format,
    output_shape,
)

_WINDOW = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, str grad"

_library = torch.library.Library("torchadder", "DEF")
_library.define(
    f"adder2d(Tensor input, Tensor weight, Tensor? bias, {_WINDOW}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
for _which in ("input", "weight"):
    _library.define(
        f"adder2d_backward_{_which}(Tensor grad_output, Tensor input, Tensor weight, {_WINDOW})"
        " -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )

Ints = Sequence[int]


def _check_backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, window: tuple[Any, ...]
) -> None:
    expected = output_shape(input, weight, None, window)  # type: ignore[arg-type]
    if tuple(grad_output.shape) != tuple(expected):
        raise ValueError(
            f"grad_output must have shape {tuple(expected)}, got {tuple(grad_output.shape)}"
        )
    check_operands(input, grad_output, None)


# Kernels ----------------------------------------------------------------------------------------
# One function serves every device: it checks, then picks the implementation by the device of the
# operands. Two dispatch keys would register the same checks twice.


@torch.library.impl(_library, "adder2d", "CompositeExplicitAutograd")
def _adder2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    grad: str,
) -> Tensor:
    check_rule(grad)
    geometry = make_geometry(stride, padding, dilation, groups)
    size = output_shape(input, weight, bias, geometry)
    operands = (input, weight, bias, geometry)
    if kernels := gpu.kernels(input):
        return gpu.run(kernels.adder2d, lambda: reference.adder2d(*operands), *operands, size)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return reference.adder2d(*operands)
    return cpu.adder2d(handle, *operands, size)


@torch.library.impl(_library, "adder2d_backward_input", "CompositeExplicitAutograd")
def _adder2d_backward_input(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    grad: str,
) -> Tensor:
    check_rule(grad)
    geometry = make_geometry(stride, padding, dilation, groups)
    _check_backward(grad_output, input, weight, geometry)
    operands = (grad_output, input, weight, geometry, grad)
    if kernels := gpu.kernels(input):
        return gpu.run(
            kernels.adder2d_backward_input,
            lambda: reference.adder2d_backward_input(*operands),
            *operands,
        )
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return reference.adder2d_backward_input(*operands)
    return cpu.adder2d_backward_input(handle, *operands)


@torch.library.impl(_library, "adder2d_backward_weight", "CompositeExplicitAutograd")
def _adder2d_backward_weight(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    grad: str,
) -> Tensor:
    check_rule(grad)
    geometry = make_geometry(stride, padding, dilation, groups)
    _check_backward(grad_output, input, weight, geometry)
    if grad != "exact":
        return weight_gradient.adder2d_backward_weight(grad_output, input, weight, geometry)
    operands = (grad_output, input, weight, geometry)
    if kernels := gpu.kernels(input):
        return gpu.run(
            kernels.adder2d_backward_weight_sign,
            lambda: reference.adder2d_backward_weight(*operands, grad),
            *operands,
        )
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return reference.adder2d_backward_weight(*operands, grad)
    return cpu.adder2d_backward_weight_sign(handle, *operands)


# Fake kernels -----------------------------------------------------------------------------------


@torch.library.register_fake("torchadder::adder2d", lib=_library)
def _adder2d_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    grad: str,
) -> Tensor:
    check_rule(grad)
    shape = output_shape(input, weight, bias, make_geometry(stride, padding, dilation, groups))
    return input.new_empty(shape).to(memory_format=memory_format(input))


@torch.library.register_fake("torchadder::adder2d_backward_input", lib=_library)
def _adder2d_backward_input_fake(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    grad: str,
) -> Tensor:
    check_rule(grad)
    _check_backward(grad_output, input, weight, make_geometry(stride, padding, dilation, groups))
    return torch.empty_like(input, memory_format=memory_format(input))


@torch.library.register_fake("torchadder::adder2d_backward_weight", lib=_library)
def _adder2d_backward_weight_fake(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    grad: str,
) -> Tensor:
    check_rule(grad)
    _check_backward(grad_output, input, weight, make_geometry(stride, padding, dilation, groups))
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


# Autograd ---------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, *ctx.window = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(input, weight)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    ops = torch.ops.torchadder
    arguments = (grad_output, input, weight, *ctx.window)
    grad_input = ops.adder2d_backward_input(*arguments) if needs_input else None
    grad_weight = ops.adder2d_backward_weight(*arguments) if needs_weight else None
    grad_bias = None
    if ctx.bias_dtype is not None and needs_bias:
        grad_bias = grad_output.sum((0, 2, 3)).to(ctx.bias_dtype)
    return grad_input, grad_weight, grad_bias, None, None, None, None, None


torch.library.register_autograd(
    "torchadder::adder2d", _backward, setup_context=_setup_context, lib=_library
)


def _refuse_double_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "adder2d has no double backward: its gradient rules are surrogates, not derivatives of a "
        "function; call backward() without create_graph=True"
    )


for _which in ("input", "weight"):
    torch.library.register_autograd(
        f"torchadder::adder2d_backward_{_which}", _refuse_double_backward, lib=_library
    )

for _device_type in ("cpu", "cuda"):
    torch.library.register_autocast(
        "torchadder::adder2d", _device_type, torch.float32, lib=_library
    )
