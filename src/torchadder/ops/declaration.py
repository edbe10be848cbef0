"""What torch asks of an operator with a window, once for all of ours.

An operator and its gradients for input and weight get a schema, checks before every kernel, fake
kernels, autograd, a refusal of double backward, and autocast to float32: the policy torch has for
``cdist``. The outputs are sums of K absolute values whose mean is large against their spread; eight
bits of mantissa would round the spread away before the normalisation that follows can rescale it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchadder.ops.geometry import (
    Geometry,
    check_operands,
    make_geometry,
    memory_format,
    output_shape,
)

_WINDOW = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
_library = torch.library.Library("torchadder", "DEF")


@dataclass(frozen=True)
class Kernels:
    """The functions that compute; each chooses the implementation by the device of its operands.

    Operands and options are checked before they are called. One function serves every device: two
    dispatch keys would register the same checks twice.

    Attributes:
        forward: (input, weight, bias, geometry, size, *options) to the output of shape ``size``.
        backward_input: (grad_output, input, weight, geometry, *options) to the input's gradient.
        backward_weight: the same for the weight's.
    """

    forward: Callable[..., Tensor]
    backward_input: Callable[..., Tensor]
    backward_weight: Callable[..., Tensor]


def declare(
    name: str,
    options: str,
    check_options: Callable[..., None],
    kernels: Kernels,
    *,
    why_no_double_backward: str,
) -> None:
    """Declare ``torchadder::NAME``, ``NAME_backward_input`` and ``NAME_backward_weight``.

    They are deterministic on every device and mutate none of their arguments. The output follows
    the memory format of the input, as does the input's gradient; the weight's is contiguous.

    Args:
        name: of the operator.
        options: what follows the window in the schema, such as ``"str grad"``.
        check_options: called with the options; raises where one is wrong.
        kernels: what computes.
        why_no_double_backward: the reason in the message of the refusal.
    """

    def read(arguments: tuple[Any, ...]) -> tuple[Geometry, list[Any]]:
        stride, padding, dilation, groups, *options = arguments
        check_options(*options)
        return make_geometry(stride, padding, dilation, groups), options

    _declare_forward(name, options, read, kernels.forward)
    for which, kernel in (("input", kernels.backward_input), ("weight", kernels.backward_weight)):
        _declare_gradient(name, which, options, read, kernel)
        _refuse_double_backward(name, which, why_no_double_backward)
    _differentiate(name)
    for device_type in ("cpu", "cuda"):
        torch.library.register_autocast(
            f"torchadder::{name}", device_type, torch.float32, lib=_library
        )


_Read = Callable[[tuple[Any, ...]], tuple[Geometry, list[Any]]]
"""Checks the arguments behind the tensors: the window and the options."""


def register(name: str, schema: str, compute: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register ``torchadder::NAME``: one function for every device, and one for shapes alone."""
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"torchadder::{name}", fake, lib=_library)


def _declare_forward(name: str, options: str, read: _Read, kernel: Callable[..., Tensor]) -> None:
    def compute(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
        geometry, options = read(arguments)
        size = output_shape(input, weight, bias, geometry)
        return kernel(input, weight, bias, geometry, size, *options)

    def fake(input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
        geometry, _ = read(arguments)
        size = output_shape(input, weight, bias, geometry)
        return input.new_empty(size).to(memory_format=memory_format(input))

    schema = f"(Tensor input, Tensor weight, Tensor? bias, {_WINDOW}, {options}) -> Tensor"
    register(name, schema, compute, fake)


def _declare_gradient(
    name: str, which: str, options: str, read: _Read, kernel: Callable[..., Tensor]
) -> None:
    def compute(grad_output: Tensor, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        geometry, options = read(arguments)
        _check_grad_output(grad_output, input, weight, geometry)
        return kernel(grad_output, input, weight, geometry, *options)

    def fake(grad_output: Tensor, input: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        geometry, _ = read(arguments)
        _check_grad_output(grad_output, input, weight, geometry)
        if which == "weight":
            return torch.empty_like(weight, memory_format=torch.contiguous_format)
        return torch.empty_like(input, memory_format=memory_format(input))

    schema = f"(Tensor grad_output, Tensor input, Tensor weight, {_WINDOW}, {options}) -> Tensor"
    register(f"{name}_backward_{which}", schema, compute, fake)


def _check_grad_output(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> None:
    expected = output_shape(input, weight, None, geometry)
    if tuple(grad_output.shape) != tuple(expected):
        raise ValueError(
            f"grad_output must have shape {tuple(expected)}, got {tuple(grad_output.shape)}"
        )
    check_operands(input, grad_output=grad_output)


def _differentiate(name: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, bias, *ctx.arguments = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(input, weight)

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        ops = torch.ops.torchadder
        operands = (grad_output, input, weight, *ctx.arguments)
        grad_input = getattr(ops, f"{name}_backward_input")(*operands) if needs_input else None
        grad_weight = getattr(ops, f"{name}_backward_weight")(*operands) if needs_weight else None
        grad_bias = None
        if ctx.bias_dtype is not None and needs_bias:
            grad_bias = grad_output.sum((0, 2, 3)).to(ctx.bias_dtype)
        return grad_input, grad_weight, grad_bias, *(None for _ in ctx.arguments)

    torch.library.register_autograd(
        f"torchadder::{name}", backward, setup_context=setup_context, lib=_library
    )


def _refuse_double_backward(name: str, which: str, why: str) -> None:
    def refuse(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"{name} has no double backward: {why}; call backward() without create_graph=True"
        )

    torch.library.register_autograd(f"torchadder::{name}_backward_{which}", refuse, lib=_library)
