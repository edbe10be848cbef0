"""How many multiplications and additions one operator call makes.

The rule of the papers (checked on the tables of arXiv 1912.13200 and 2112.13608): a tap of a
convolution or matrix product is 1 multiplication and 1 addition, a tap of an adder layer 2
additions (subtract, accumulate; the absolute value is free). Bias, normalisation, activation,
pooling and residual additions are not counted: `ELEMENTWISE` holds those, for who wants them.

Formulas see shapes only, never values. They are keyed by operator name, so that nothing has to be
registered or imported before a model can be counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Arithmetic:
    """What one operator call does: its kind, multiplications and additions."""

    op: str
    num_mul: int
    num_add: int


Formula = Callable[[tuple[Any, ...], Any], Arithmetic]
"""(positional arguments, output) -> Arithmetic."""


def count_call(
    func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> Arithmetic | None:
    """Return the arithmetic of a product-like operator call, None for any other operator.

    Operators without a formula here fall back on torch's own `flop_registry`, in which a
    multiply-add is two operations, so a user's `register_flop_formula` is honoured.
    """
    formula = PRODUCTS.get(func._schema.name)
    if formula is not None:
        return formula(args, out)
    flops = flop_registry.get(func._overloadpacket)
    if flops is None:
        return None
    taps = int(flops(*args, **kwargs, out_val=out)) // 2
    return Arithmetic(func._schema.name.rpartition("::")[2], taps, taps)


def is_product(func: torch._ops.OpOverload) -> bool:
    """Tell whether `count_call` has a formula for the operator."""
    return func._schema.name in PRODUCTS or func._overloadpacket in flop_registry


def count_elementwise(
    func: torch._ops.OpOverload, args: tuple[Any, ...], out: Any
) -> Arithmetic | None:
    """Return the arithmetic of a normalisation, activation, pooling, sum or bias call.

    Integer results (indices, shapes) cost nothing; neither do exponentials and their like, which
    are neither multiplications nor additions.
    """
    formula = ELEMENTWISE.get(func._schema.name)
    result = out[0] if isinstance(out, tuple | list) else out
    if formula is None or not isinstance(result, Tensor) or not result.is_floating_point():
        return None
    return formula(args, result)


def count_bias(func: torch._ops.OpOverload, args: tuple[Any, ...], out: Any) -> Arithmetic | None:
    """Return the additions of the bias of a product-like call, None if it has none."""
    position = _BIAS_POSITION.get(func._schema.name)
    if position is None or len(args) <= position or not isinstance(args[position], Tensor):
        return None
    return Arithmetic("bias", 0, out.numel())


def _convolution(args: tuple[Any, ...], out: Tensor) -> Arithmetic:
    input, weight, transposed = args[0], args[1], args[6]
    # weight is (O, C/groups, *kernel) and each output sums over one filter; transposed it is
    # (C, O/groups, *kernel) and each input is spread over one filter.
    taps = (input if transposed else out).numel() * prod(weight.shape[1:])
    name = f"conv{'_transpose' if transposed else ''}{weight.dim() - 2}d"
    return Arithmetic(name, taps, taps)


def _adder(args: tuple[Any, ...], out: Tensor) -> Arithmetic:
    taps = out.numel() * prod(args[1].shape[1:])
    return Arithmetic("adder2d", 0, 2 * taps)


def _adder_lp(args: tuple[Any, ...], out: Tensor) -> Arithmetic:
    # A power counts as the one multiplication it is at p = 2: between 1 and 2 it costs more.
    taps = out.numel() * prod(args[1].shape[1:])
    return Arithmetic("adder2d_lp", taps if args[7] > 1 else 0, 2 * taps)


def _distance(args: tuple[Any, ...], out: Tensor) -> Arithmetic:
    left, power = args[0], args[2]
    taps = out.numel() * left.shape[-1]
    return Arithmetic("cdist", taps if power == 2 else 0, 2 * taps)


def _trilinear(args: tuple[Any, ...], out: Tensor) -> Arithmetic:
    """Sum over products of three factors, as `nn.Bilinear` takes it.

    Each tensor lacks the dimensions of its list, and every point that all three span is a tap. The
    product of the first two is a multiplication of its own for each tap.
    """
    dims = out.dim() + len(args[6])
    sizes = [1] * dims
    for tensor, lacking in zip(args[:3], args[3:6], strict=True):
        own = [dim for dim in range(dims) if dim not in lacking]
        for dim, size in zip(own, tensor.shape, strict=True):
            sizes[dim] = size
    taps = prod(sizes)
    return Arithmetic("bilinear", 2 * taps, taps)


def _matmul(first: int) -> Formula:
    """Formula of a matrix product whose left factor is argument number `first`."""

    def formula(args: tuple[Any, ...], out: Any) -> Arithmetic:
        left, right = args[first], args[first + 1]
        columns = right.shape[-1] if right.dim() > 1 else 1
        taps = left.numel() * columns
        return Arithmetic("matmul", taps, taps)

    return formula


PRODUCTS: dict[str, Formula] = {
    "torchadder::adder2d": _adder,
    "torchadder::adder2d_lp": _adder_lp,
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::_cdist_forward": _distance,
    "aten::_euclidean_dist": lambda args, out: _distance((*args, 2.0), out),
    "aten::mm": _matmul(0),
    "aten::bmm": _matmul(0),
    "aten::mv": _matmul(0),
    "aten::dot": _matmul(0),
    "aten::vdot": _matmul(0),
    "aten::_int_mm": _matmul(0),
    "aten::_trilinear": _trilinear,
    "aten::addmm": _matmul(1),
    "aten::addmv": _matmul(1),
    "aten::addbmm": _matmul(1),
    "aten::baddbmm": _matmul(1),
    "aten::_addmm_activation": _matmul(1),
}
"""Formulas of the operators that the papers count, by operator name."""

_BIAS_POSITION = {
    "torchadder::adder2d": 2,
    "torchadder::adder2d_lp": 2,
    "aten::convolution": 2,
    "aten::_convolution": 2,
    "aten::addmm": 0,
    "aten::addmv": 0,
    "aten::addbmm": 0,
    "aten::baddbmm": 0,
    "aten::_addmm_activation": 0,
}


def _per_output(op: str, num_mul: int, num_add: int) -> Formula:
    def formula(args: tuple[Any, ...], out: Tensor) -> Arithmetic:
        return Arithmetic(op, num_mul * out.numel(), num_add * out.numel())

    return formula


def _pool(op: str, num_mul: int, dims: int) -> Formula:
    """Pooling over k taps: k - 1 additions or comparisons; an average multiplies once more."""

    def formula(args: tuple[Any, ...], out: Tensor) -> Arithmetic:
        kernel = list(args[1])
        taps = prod(kernel * dims if len(kernel) == 1 else kernel)
        return Arithmetic(op, num_mul * out.numel(), (taps - 1) * out.numel())

    return formula


def _reduce(op: str, num_mul: int) -> Formula:
    def formula(args: tuple[Any, ...], out: Tensor) -> Arithmetic:
        return Arithmetic(op, num_mul * out.numel(), args[0].numel() - out.numel())

    return formula


def _table(formula: Formula, *names: str) -> dict[str, Formula]:
    return {f"aten::{name}": formula for name in names}


ELEMENTWISE: dict[str, Formula] = {
    **_table(_per_output("add", 0, 1), "add", "add_", "sub", "sub_", "rsub"),
    **_table(_per_output("mul", 1, 0), "mul", "mul_", "div", "div_"),
    # A comparison costs as much as the subtraction that decides it.
    **_table(_per_output("relu", 0, 1), "relu", "relu_", "threshold", "threshold_"),
    **_table(_per_output("clamp", 0, 2), "clamp", "clamp_", "hardtanh", "hardtanh_"),
    **_table(_per_output("clamp", 0, 1), "clamp_min", "clamp_min_", "clamp_max", "clamp_max_"),
    **_table(_per_output("max", 0, 1), "maximum", "minimum"),
    **_table(_per_output("leaky_relu", 1, 1), "leaky_relu", "leaky_relu_", "_prelu_kernel"),
    # With running statistics: one scale, one shift.
    **_table(
        _per_output("batch_norm", 1, 1),
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_batch_norm_no_update",
        "_batch_norm_with_update",
        "cudnn_batch_norm",
        "miopen_batch_norm",
    ),
    # Mean (1 addition), variance (1 multiplication, 2 additions), scale and shift.
    **_table(_per_output("norm", 2, 4), "native_layer_norm", "native_group_norm"),
    **_table(_pool("max_pool", 0, 1), "max_pool1d_with_indices"),
    **_table(_pool("max_pool", 0, 2), "max_pool2d_with_indices"),
    **_table(_pool("max_pool", 0, 3), "max_pool3d_with_indices"),
    **_table(_pool("avg_pool", 1, 1), "avg_pool1d"),
    **_table(_pool("avg_pool", 1, 2), "avg_pool2d"),
    **_table(_pool("avg_pool", 1, 3), "avg_pool3d"),
    **_table(_reduce("avg_pool", 1), "mean", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    **_table(_reduce("sum", 0), "sum"),
}
"""Formulas of what the papers do not count, by operator name."""


_AVERAGES = {f"aten::{name}" for name in ("avg_pool2d", "mean", "_adaptive_avg_pool2d", "sum")}
_POOLS = _AVERAGES | {"aten::max_pool2d_with_indices"}


@dataclass(frozen=True)
class IntegerSide:
    """What a call would be in an integer net that folds norms, biases and activations into layers.

    Attributes:
        num_outputs: sums that are requantised.
        num_residuals: results that a residual is added to.
        num_moved: numbers that are read and written.
    """

    num_outputs: int = 0
    num_residuals: int = 0
    num_moved: int = 0


def integer_side(
    func: torch._ops.OpOverload, args: tuple[Any, ...], out: Any
) -> IntegerSide | None:
    """Return what a call adds to requantisation and memory traffic, None if it is folded away.

    A product reads its operands once and writes its result, a pool likewise; a residual addition
    belongs to the layer before it and reads one more operand.
    """
    name = func._schema.name
    result = out[0] if isinstance(out, tuple | list) else out
    if not isinstance(result, Tensor):
        return None
    if is_product(func):
        operands = (value for value in args if isinstance(value, Tensor) and value.dim() > 1)
        moved = sum(operand.numel() for operand in operands) + result.numel()
        return IntegerSide(num_outputs=result.numel(), num_moved=moved)
    if not result.is_floating_point():
        return None
    if name in _POOLS:
        moved = args[0].numel() + result.numel()
        return IntegerSide(result.numel() if name in _AVERAGES else 0, 0, moved)
    if name in ("aten::add", "aten::add_") and _are_alike(args[0], args[1]):
        return IntegerSide(num_residuals=result.numel(), num_moved=result.numel())
    return None


def _are_alike(left: Any, right: Any) -> bool:
    tensors = isinstance(left, Tensor) and isinstance(right, Tensor)
    return tensors and left.dim() > 1 and left.shape == right.shape
