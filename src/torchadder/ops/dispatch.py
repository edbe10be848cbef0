"""Declares ``torchadder::adder2d`` and chooses its kernels.

They come from ``reference`` (every device), ``cpu`` (the C++ library) and ``triton`` (GPUs); what
every operator of ours needs besides is in ``declaration``, the flop formulas are in ``flops``.
"""

from __future__ import annotations

from torch import Tensor

from torchadder.ops import cpu, gpu, reference, weight_gradient
from torchadder.ops.declaration import Kernels, declare
from torchadder.ops.geometry import Geometry, check_rule


def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    size: tuple[int, int, int, int],
    grad: str,
) -> Tensor:
    operands = (input, weight, bias, geometry)
    if kernels := gpu.kernels(input):
        return gpu.run(kernels.adder2d, lambda: reference.adder2d(*operands), *operands, size)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return reference.adder2d(*operands)
    return cpu.adder2d(handle, *operands, size)


def _backward_input(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, grad: str
) -> Tensor:
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


def _backward_weight(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, grad: str
) -> Tensor:
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


declare(
    "adder2d",
    "str grad",
    check_rule,
    Kernels(_forward, _backward_input, _backward_weight),
    why_no_double_backward="its gradient rules are surrogates, not derivatives of a function",
)
