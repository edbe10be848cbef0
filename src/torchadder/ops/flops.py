"""Flop formulas of the operators, for torch's own ``FlopCounterMode``.

They are registered when ``torch.utils.flop_counter`` is imported, by whoever imports it: that
module loads Triton, or warns that it cannot, and ``import torchadder`` must do neither.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"


def num_taps(output_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    """Number of pairs |x - w| that the forward sums."""
    N, O, P, Q = output_shape
    _, C_group, R, S = weight_shape
    return N * O * P * Q * C_group * R * S


def forward_flops(
    input_shape: Any, weight_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """Two additions a tap: the subtraction under the absolute value and the accumulation."""
    return 2 * num_taps(out_shape, weight_shape)


def backward_flops(
    grad_output_shape: Any, input_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any
) -> int:
    """A subtraction, a multiplication with the gradient and an accumulation a tap."""
    return 3 * num_taps(grad_output_shape, weight_shape)


def lp_forward_flops(
    input_shape: Any, weight_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """A subtraction, a power (counted as one) and an accumulation a tap."""
    return 3 * num_taps(out_shape, weight_shape)


def lp_backward_flops(
    grad_output_shape: Any, input_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any
) -> int:
    """A subtraction, a power, a multiplication with the gradient and an accumulation a tap."""
    return 4 * num_taps(grad_output_shape, weight_shape)


def _register(counter: ModuleType) -> None:
    ops = torch.ops.torchadder
    counter.register_flop_formula(ops.adder2d)(forward_flops)
    counter.register_flop_formula([ops.adder2d_backward_input, ops.adder2d_backward_weight])(
        backward_flops
    )
    counter.register_flop_formula(ops.adder2d_lp)(lp_forward_flops)
    counter.register_flop_formula([ops.adder2d_lp_backward_input, ops.adder2d_lp_backward_weight])(
        lp_backward_flops
    )


class _AfterImport(MetaPathFinder):
    """Finds the flop counter as usual and registers the formulas when it has run.

    Stays until then: who looks for a module does not always import it.
    """

    def __init__(self) -> None:
        self.looking = False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != _COUNTER or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.looking = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register_with_torch() -> None:
    """Register the formulas now if the flop counter is loaded, else as soon as it is."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _AfterImport())
