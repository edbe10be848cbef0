"""The calls that are timed on a GPU: forward, both gradients and a step of one layer, by side.

Single operators are called for the gradients, not autograd, whose work on the host belongs to no
kernel. Nothing is measured here; what is measured is first compared with the plain version.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadder import functional as AF
from torchadder.bench.baseline import unfold_adder2d
from torchadder.bench.shapes import Shape
from torchadder.bench.timing import Call

CHECKED_NUMBERS = 1 << 27
TOLERANCE = 1e-4
"""Of the largest value; float32 sums of any order stay far below, a lost tap does not."""


@dataclass(frozen=True)
class Operands:
    """One set: input, weight and the gradient of the output."""

    x: Tensor
    w: Tensor
    g: Tensor

    @classmethod
    def draw(cls, shape: Shape, device: torch.device) -> Operands:
        """Normally distributed numbers."""
        sizes = (shape.input_shape, shape.weight_shape, shape.output_shape)
        return cls(*(torch.randn(size, device=device) for size in sizes))

    def to(self, **options: Any) -> Operands:
        """All three in another format, see `torch.Tensor.to`."""
        return Operands(self.x.to(**options), self.w.to(**options), self.g.to(**options))


def _step(operator: Callable[[Tensor, Tensor], Tensor], operands: Operands) -> object:
    x, w = operands.x.detach().requires_grad_(), operands.w.detach().requires_grad_()
    return torch.autograd.grad(operator(x, w), (x, w), operands.g)


def adder_calls(shape: Shape, operands: Operands) -> dict[str, Call]:
    """Our four parts, by name."""
    x, w, g = operands.x, operands.w, operands.g
    stride, padding = shape.stride, shape.padding
    window = ([stride] * 2, [padding] * 2, [1, 1], 1, "clip")
    gradients = torch.ops.torchadder
    return {
        "forward": lambda: AF.adder2d(x, w, None, stride, padding),
        "input gradient": lambda: gradients.adder2d_backward_input(g, x, w, *window),
        "weight gradient": lambda: gradients.adder2d_backward_weight(g, x, w, *window),
        "step": lambda: _step(lambda x, w: AF.adder2d(x, w, None, stride, padding), operands),
    }


def conv_calls(shape: Shape, operands: Operands) -> dict[str, Call]:
    """Those of torch's convolution, in the dtype and layout of the operands."""
    x, w, g = operands.x, operands.w, operands.g
    stride, padding = shape.stride, shape.padding
    window = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
    backward = torch.ops.aten.convolution_backward
    return {
        "forward": lambda: F.conv2d(x, w, None, stride, padding),
        "input gradient": lambda: backward(g, x, w, None, *window, [True, False, False]),
        "weight gradient": lambda: backward(g, x, w, None, *window, [False, True, False]),
        "step": lambda: _step(lambda x, w: F.conv2d(x, w, None, stride, padding), operands),
    }


def unfold_calls(shape: Shape, operands: Operands) -> dict[str, Call]:
    """Those of the unfold-and-broadcast version."""
    stride, padding = shape.stride, shape.padding

    def operator(x: Tensor, w: Tensor) -> Tensor:
        return unfold_adder2d(x, w, stride, padding)

    def gradient(of_input: bool) -> object:
        return torch.autograd.grad(graphs[of_input][0], graphs[of_input][1:], operands.g, True)

    graphs: dict[bool, tuple[Tensor, Tensor]] = {}
    for of_input in (True, False):
        x, w = operands.x.detach(), operands.w.detach()
        target = (x if of_input else w).requires_grad_()
        graphs[of_input] = (operator(x, w), target)
    return {
        "forward": lambda: operator(operands.x, operands.w),
        "input gradient": lambda: gradient(True),
        "weight gradient": lambda: gradient(False),
        "step": lambda: _step(operator, operands),
    }


def check_layer(shape: Shape, device: torch.device) -> None:
    """Compare our three parts with the plain version: first and last image, the first filters.

    Ours runs on the whole batch, with a gradient that is zero wherever the plain version does not
    look, so that every part has one right answer.

    Raises:
        FloatingPointError: they differ by more than rounding; a wrong kernel is not timed.
    """
    operands = Operands.draw(shape, device)
    products = math.prod(shape.output_size) * shape.in_channels * shape.kernel**2
    filters = slice(0, max(1, min(shape.out_channels, CHECKED_NUMBERS // products)))
    images = sorted({0, shape.batch - 1})
    few = Operands(operands.x[images], operands.w[filters], operands.g[images, filters])
    operands.g.zero_()
    operands.g[images, filters] = few.g
    ours, plain = adder_calls(shape, operands), unfold_calls(replace(shape, batch=len(images)), few)
    compared: dict[str, tuple[Any, ...]] = {
        "forward": (images, filters),
        "input gradient": (images,),
        "weight gradient": (filters,),
    }
    for part, numbers in compared.items():
        got, want = _tensor(ours[part]())[numbers], _tensor(plain[part]())
        error = ((got - want).abs().max() / want.abs().max()).item()
        if not error <= TOLERANCE:
            raise FloatingPointError(
                f"the {part} of {shape.name} on {device} differs from the plain version by "
                f"{error:.1e} of its largest value, wanted at most {TOLERANCE:.0e}"
            )


def _tensor(result: Any) -> Tensor:
    """The only tensor of a call's result; autograd returns tuples."""
    return result[0] if isinstance(result, tuple) else result
