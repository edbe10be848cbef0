"""What must hold in an integer program, so that every reader of one can rely on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchadder.ops.geometry import output_size
from torchadder.quantize.steps import (
    MAX_NORM_TERMS,
    NORM_LIMIT,
    Add,
    AvgPool,
    Concat,
    Flatten,
    FloatLayer,
    GroupNorm,
    Layer,
    MaxPool,
    Pair,
    Requantisation,
    Shape,
    Step,
    Upsample,
    Value,
)

if TYPE_CHECKING:
    from torchadder.quantize.program import Program

_LIMITS = {"uint8": (0, 255), "int32": (-(2**31), 2**31 - 1)}
_MAX_PRODUCT = 2**61
"""Bound of each term of a requantisation, so that their sum fits 64 bits."""


def check(program: Program) -> None:
    """Raises ValueError unless the steps fit together."""
    values, source = program.values, program.input
    _want(len({step.name for step in program.steps}) == len(program.steps), "steps share a name")
    made = [source.name, *(step.output for step in program.steps)]
    _want(len(set(made)) == len(made), "two steps make one value")
    _want(set(made) == set(values), "values and steps name different things")
    for value in values.values():
        _want(
            math.isfinite(value.scale) and value.scale > 0,
            f"value {value.name}: the scale is {value.scale}",
        )
        _want(
            value.dtype != "uint8" or 0 <= value.zero_point <= 255,
            f"value {value.name}: the zero point is {value.zero_point}",
        )
    first = values[source.name]
    shape = (source.channels, source.height, source.width)
    _want(first.shape == shape, f"the images are {shape}, their value {first.shape}")
    _want(
        (first.scale, first.zero_point) == (source.scale, source.zero_point),
        "the images and their value differ in scale or zero point",
    )
    makers: dict[str, Step] = {}
    steps: dict[str, Step] = {}
    for step in program.steps:
        for name in step.inputs:
            _want(
                name in makers or name == source.name,
                f"{step.name}: reads {name} before it is made",
            )
        _check_step(step, values)
        if isinstance(step, GroupNorm):
            _check_norm(step, values, makers.get(step.input))
        if isinstance(step, Layer | FloatLayer | GroupNorm) and step.shared is not None:
            _want(step.shared in steps, f"{step.name}: there is no step {step.shared} before it")
            _check_shared(step, steps[step.shared], values)
        makers[step.output] = steps[step.name] = step
    _want(len(program.outputs) > 0, "there is no output")
    fixed = [step.name for step in program.steps if isinstance(step, Flatten)]
    fixed += [output.name for output in program.outputs if not output.is_map]
    for name in fixed if program.takes_any_size else ():
        raise ValueError(f"integer program: {name} depends on the size of the images")
    for result in program.outputs:
        _want(result.name in values, f"nothing makes the output {result.name}")
        last = values[result.name]
        H, W = last.shape[1:] if result.is_map else (1, 1)
        _want(
            last.shape == (result.num_classes, H, W) and last.dtype in ("int32", "float32"),
            f"the output is {last.dtype} {last.shape}, wanted int32 ({result.num_classes}, {H}, "
            f"{W})",
        )


def _check_step(step: Step, values: Mapping[str, Value]) -> None:
    inputs, output = [values[name] for name in step.inputs], values[step.output]
    beside = {FloatLayer: "float32", GroupNorm: "int32"}.get(type(step))
    for value in inputs:
        _want(value.dtype in ("uint8", beside), f"{step.name}: reads {value.dtype} values")
    shape = output_shape(step, [value.shape for value in inputs])
    _want(shape == output.shape, f"{step.name}: makes {shape}, its value is {output.shape}")
    if isinstance(step, MaxPool | Upsample | Flatten | Concat):
        for value in inputs:
            _want(
                (value.scale, value.zero_point) == (output.scale, output.zero_point),
                f"{step.name}: scale and zero point of {value.name} and {output.name} differ",
            )
    elif not isinstance(step, FloatLayer | GroupNorm):
        _check_requantisation(step.name, step.requantisation, output)
    if isinstance(step, Layer):
        wanted = torch.uint8 if step.kind == "adder" else torch.int8
        _want(step.weight.dtype == wanted, f"{step.name}: the weight is {step.weight.dtype}")


def _check_norm(step: GroupNorm, values: Mapping[str, Value], maker: Step | None) -> None:
    (C, H, W), output = values[step.input].shape, values[step.output]
    for field, tensor in (("weight", step.weight), ("bias", step.bias)):
        _want(
            tensor.dtype == torch.float32 and tuple(tensor.shape) == (C,),
            f"{step.name}: {field} is {tensor.dtype} {tuple(tensor.shape)}, wanted float32 ({C},)",
        )
    _want(
        step.num_groups > 0 and C % step.num_groups == 0,
        f"{step.name}: {C} channels in {step.num_groups} groups",
    )
    terms = C // step.num_groups * H * W
    _want(terms <= MAX_NORM_TERMS, f"{step.name}: statistics of {terms} numbers may overflow")
    _want(
        output.dtype == "uint8" and 0 <= step.low <= step.high <= 255,
        f"{step.name}: {step.low} .. {step.high} is no range of {output.dtype} values",
    )
    if values[step.input].dtype == "int32":
        how = getattr(maker, "requantisation", None)
        bounded = how is not None and -NORM_LIMIT <= how.low <= how.high <= NORM_LIMIT
        _want(bounded, f"{step.name}: reads numbers beyond {NORM_LIMIT}")


def _check_shared(step: Step, first: Step, values: Mapping[str, Value]) -> None:
    """Raises ValueError unless a step is another use of the layer of an earlier one."""
    differ = type(step) is not type(first) or getattr(first, "shared", None) is not None
    for field in () if differ else dataclasses.fields(step):
        one, two = getattr(step, field.name), getattr(first, field.name)
        if field.name == "residual":
            differ |= one is not None or two is not None
        elif field.name in ("input", "output"):
            one, two = (dataclasses.replace(values[name], name="", shape=()) for name in (one, two))
            differ |= one != two
        elif field.name not in ("name", "shared"):
            differ |= not _equal(one, two)
    _want(not differ, f"{step.name}: is no other use of {getattr(step, 'shared', None)}")


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Requantisation):
        pairs = ((getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(one))
        return all(_equal(*pair) for pair in pairs)
    return one is two or (torch.equal(one, two) if isinstance(one, Tensor) else one == two)


def _check_requantisation(name: str, how: Requantisation, output: Value) -> None:
    channels = output.shape[0]
    for field, tensor, dtype in (
        ("multiplier", how.multiplier, torch.int32),
        ("offset", how.offset, torch.int64),
    ):
        _want(
            tensor.dtype == dtype and tuple(tensor.shape) == (channels,),
            f"{name}: {field} is {tensor.dtype} {tuple(tensor.shape)}, wanted {dtype} "
            f"({channels},)",
        )
    _want(0 <= how.shift <= 62, f"{name}: shift must be within 0 .. 62, got {how.shift}")
    least, most = _LIMITS.get(output.dtype, (1, 0))
    _want(
        least <= how.low <= how.high <= most,
        f"{name}: {how.low} .. {how.high} is no range of {output.dtype} values",
    )
    largest = int(how.offset.abs().max()) if channels else 0
    _want(largest < _MAX_PRODUCT, f"{name}: an offset of {largest} may overflow 64 bits")
    factor = how.residual_multiplier
    _want(-(2**31) <= factor < 2**31, f"{name}: a residual multiplier of {factor}")


def output_shape(step: Step, shapes: list[Shape]) -> Shape:
    """Shape of what a step makes of values of these shapes; ValueError if they do not fit."""
    C, H, W = shapes[0]
    if isinstance(step, Layer | FloatLayer):
        O, depth, R, S = step.weight.shape
        _want(
            depth * step.groups == C and O % step.groups == 0,
            f"{step.name}: {O} filters of depth {depth} in {step.groups} groups on {C} channels",
        )
        shape = (O, *_windows(step.name, H, W, (R, S), step.stride, step.padding, step.dilation))
        residual = shapes[1] if len(shapes) > 1 else shape
    elif isinstance(step, Add):
        shape, residual = shapes
    elif isinstance(step, MaxPool):
        windows = _windows(step.name, H, W, step.kernel, step.stride, step.padding, step.dilation)
        return (C, *windows)
    elif isinstance(step, AvgPool):
        return (C, *_windows(step.name, H, W, step.kernel, step.stride, step.padding, (1, 1)))
    elif isinstance(step, Upsample):
        _want(min(step.factor) > 0, f"{step.name}: enlarges by {step.factor}")
        return (C, H * step.factor[0], W * step.factor[1])
    elif isinstance(step, Flatten):
        return (C * H * W, 1, 1)
    elif isinstance(step, Concat):
        channels = sum(shape[0] for shape in shapes)
        _want(
            step.order.dtype == torch.int64
            and step.order.dim() == 1
            and bool(((step.order >= 0) & (step.order < channels)).all()),
            f"{step.name}: order names channels beyond {channels}",
        )
        _want(all(s[1:] == (H, W) for s in shapes), f"{step.name}: images of unequal size")
        return (len(step.order), H, W)
    else:
        return shapes[0]
    _want(residual == shape, f"{step.name}: adds {residual} to {shape}")
    return shape


def _windows(
    name: str, H: int, W: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Pair:
    P = output_size(H, kernel[0], stride[0], padding[0], dilation[0])
    Q = output_size(W, kernel[1], stride[1], padding[1], dilation[1])
    _want(P > 0 and Q > 0, f"{name}: an image of {H}x{W} is smaller than the window")
    return P, Q


def _want(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(f"integer program: {otherwise}")
