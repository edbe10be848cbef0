"""What an integer program computes, in plain torch: the reference of every faster way.

Exact integers in NCHW order, one step after the other, nothing fused and nothing packed. Slow: it
is there to be compared with.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from torchadder.ops.geometry import Geometry
from torchadder.ops.int8 import reference
from torchadder.quantize import program as p


def to_bytes(images: Tensor, scale: float, zero_point: int) -> Tensor:
    """`clamp(round(x / scale) + zero_point, 0, 255)`, in float32, rounded half to even; uint8."""
    numbers = torch.div(images.float(), scale).round_()
    return numbers.add_(zero_point).clamp_(0, 255).to(torch.uint8)


def run(program: p.Program, images: Tensor) -> dict[str, Tensor]:
    """Every value of a program.

    Args:
        program: The program.
        images: Bytes (N, C, H, W), uint8; float numbers are turned into bytes as
            `program.input` says.

    Returns:
        Values by name: uint8 or int32, (N, C, H, W).

    Raises:
        ValueError: If the images are of another shape.
    """
    source = program.input
    shape = (source.channels, source.height, source.width)
    if images.dim() != 4 or tuple(images.shape[1:]) != shape:
        raise ValueError(f"images must have shape (N, {shape}), got {tuple(images.shape)}")
    if images.is_floating_point() and program.values[source.name].dtype == "uint8":
        images = to_bytes(images, source.scale, source.zero_point)
    values = {source.name: images}
    for step in program.steps:
        inputs = [values[name] for name in step.inputs]
        about = [program.values[name] for name in (*step.inputs, step.output)]
        values[step.output] = compute(step, inputs, about)
    return values


def logits(program: p.Program, images: Tensor) -> Tensor:
    """The integer logits (N, num_classes) of images; arguments as of `run`."""
    return run(program, images)[program.output.name].flatten(1)


def outputs(program: p.Program, images: Tensor) -> tuple[Tensor, ...]:
    """What a program makes of images, integers; arguments as of `run`."""
    values = run(program, images)
    return tuple(
        values[output.name] if output.is_map else values[output.name].flatten(1)
        for output in program.outputs
    )


@functools.singledispatch
def compute(step: p.Step, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    """One step.

    Args:
        step: The step.
        inputs: The values it reads.
        values: What is known of them and, last, of the value it makes.
    """
    raise TypeError(f"no such step: {type(step).__name__}")


@compute.register
def _(step: p.Layer, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    kind = "adder2d" if step.kind == "adder" else "conv2d"
    window = Geometry(step.stride, step.padding, step.dilation, step.groups)
    sums = reference.layer(kind, inputs[0], step.weight, values[0].zero_point, window)
    residual = inputs[1] if step.residual is not None else None
    return _requantise(sums, step.requantisation, values[-1], residual)


@compute.register
def _(step: p.FloatLayer, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    x, (source, result) = inputs[0], values
    if source.dtype == "uint8":
        x = (x.float() - source.zero_point) * source.scale
    y = F.conv2d(x, step.weight, step.bias, step.stride, step.padding, step.dilation, step.groups)
    y = y.relu() if step.relu else y
    return y if result.dtype == "float32" else to_bytes(y, result.scale, result.zero_point)


@compute.register
def _(step: p.Add, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    return _requantise(inputs[0], step.requantisation, values[-1], inputs[1])


@compute.register
def _(step: p.Affine, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    return _requantise(inputs[0], step.requantisation, values[-1])


@compute.register
def _(step: p.MaxPool, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    # Bytes are exact in float64, and padding is minus infinity there.
    x = inputs[0].double()
    y = F.max_pool2d(x, step.kernel, step.stride, step.padding, step.dilation)
    return y.to(torch.uint8)


@compute.register
def _(step: p.AvgPool, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    (height, width), (ph, pw) = step.kernel, step.padding
    padded = F.pad(inputs[0].to(torch.int64), (pw, pw, ph, ph), value=values[0].zero_point)
    windows = padded.unfold(2, height, step.stride[0]).unfold(3, width, step.stride[1])
    return _requantise(windows.sum((4, 5)), step.requantisation, values[-1])


@compute.register
def _(step: p.Upsample, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    return inputs[0].repeat_interleave(step.factor[0], 2).repeat_interleave(step.factor[1], 3)


@compute.register
def _(step: p.GroupNorm, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    (x,), (source, result) = inputs, values
    channels = x.shape[1] // step.num_groups
    terms = channels * x.shape[2] * x.shape[3]
    numbers = x.to(torch.int64).reshape(len(x), step.num_groups, terms)
    # Sums are exact, and everything after them is rounded number by number: any order will do.
    mean = numbers.sum(2).double() / terms
    variance = (numbers.square().sum(2).double() / terms - mean.square()).clamp(min=0)
    steps = (variance + step.eps / source.scale**2).sqrt() * result.scale
    factor = step.weight.double() / steps.repeat_interleave(channels, 1)
    mean = mean.repeat_interleave(channels, 1)
    constant = step.bias.double() / result.scale + result.zero_point
    y = (x.double() - mean[..., None, None]) * factor[..., None, None] + constant[:, None, None]
    return y.round_().clamp_(step.low, step.high).to(torch.uint8)


@compute.register
def _(step: p.Flatten, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    return inputs[0].flatten(1)[:, :, None, None]


@compute.register
def _(step: p.Concat, inputs: list[Tensor], values: list[p.Value]) -> Tensor:
    return torch.cat(inputs, 1)[:, step.order]


def _requantise(
    sums: Tensor, how: p.Requantisation, output: p.Value, residual: Tensor | None = None
) -> Tensor:
    numbers = sums.to(torch.int64) * how.multiplier.to(torch.int64)[:, None, None]
    numbers = numbers + how.offset[:, None, None]
    if residual is not None:
        numbers = numbers + how.residual_multiplier * residual.to(torch.int64)
    numbers = (numbers >> how.shift).clamp(how.low, how.high)
    return numbers.to(torch.uint8 if output.dtype == "uint8" else torch.int32)
