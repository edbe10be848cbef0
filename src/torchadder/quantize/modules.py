"""Steps of an integer program as modules: bytes in channels-last form, computed by the C++ kernels.

Each module is made from a step and gives it back. Additions, means and changes of scale are
depthwise convolutions with filters of ones, so that one kernel, exact on every instruction set,
does all of them. Which step follows which is not known here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.ops import int8
from torchadder.ops.int8 import packing
from torchadder.quantize import interpreter
from torchadder.quantize import program as p

_ops = torch.ops.torchadder


class _Integers(nn.Module):
    """Sums over windows, requantised.

    Args:
        step: What it does.
        weight: Its filters.
        window: Stride, padding, dilation and groups.
        zero_point: Byte of the padding.
        dtype: Of the result, "uint8" or "int32".
    """

    kind = "conv2d"
    packed: Tensor
    multiplier: Tensor
    offset: Tensor

    def __init__(
        self,
        step: p.Layer | p.Add | p.Affine | p.AvgPool,
        weight: Tensor,
        window: tuple[p.Pair, p.Pair, p.Pair, int],
        zero_point: int,
        dtype: p.DType,
    ) -> None:
        super().__init__()
        how = step.requantisation
        self.kernel = tuple(weight.shape)
        self.stride, self.padding, self.dilation, self.groups = window
        self.zero_point = zero_point
        self.shift, self.low, self.high = how.shift, how.low, how.high
        self.residual_multiplier = how.residual_multiplier
        self.makes_bytes = dtype == "uint8"
        self.register_buffer("packed", int8.pack(weight, self.dilation, self.groups))
        self.register_buffer("multiplier", how.multiplier.clone())
        self.register_buffer("offset", how.offset.clone())

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Bytes (N, C, H, W) to bytes, or to int32 for logits and group norms."""
        window = (self.stride, self.padding, self.dilation, self.groups)
        operands = (input, self.packed, self.kernel, self.zero_point, *window)
        if self.makes_bytes:
            layer = getattr(_ops, f"{self.kind}_int8_requantised")
            return layer(
                *operands, self.multiplier, self.offset, self.shift, self.low, self.high, residual,
                self.residual_multiplier,
            )  # fmt: skip
        sums = getattr(_ops, f"{self.kind}_int8")(*operands).to(torch.int64)
        numbers = sums * self.multiplier[:, None, None] + self.offset[:, None, None]
        if residual is not None:
            numbers = numbers + self.residual_multiplier * residual.to(torch.int64)
        return (numbers >> self.shift).clamp(self.low, self.high).to(torch.int32)

    def requantisation(self) -> p.Requantisation:
        """What becomes of the sums."""
        return p.Requantisation(
            self.multiplier, self.offset, self.shift, self.low, self.high, self.residual_multiplier
        )

    def extra_repr(self) -> str:
        """As of the layers of torch."""
        O, depth, R, S = self.kernel
        return (
            f"{depth * self.groups}, {O}, kernel_size={(R, S)}, stride={self.stride}, "
            f"padding={self.padding}"
            + (f", dilation={self.dilation}" if self.dilation != (1, 1) else "")
            + (f", groups={self.groups}" if self.groups != 1 else "")
        )


class _LayerInt8(_Integers):
    def __init__(self, step: p.Layer, inputs: list[p.Value], output: p.Value) -> None:
        window = (step.stride, step.padding, step.dilation, step.groups)
        super().__init__(step, step.weight, window, inputs[0].zero_point, output.dtype)
        self._step = dataclasses.replace(step, weight=step.weight[:0])

    @property
    def weight(self) -> Tensor:
        """Filters (O, C / groups, R, S), unpacked."""
        O, depth, R, S = self.kernel
        return packing.unpack(self.packed, (O, depth, R, S), self.dilation[1], self.groups)

    def step(self) -> p.Layer:
        """The step that it does."""
        return dataclasses.replace(
            self._step, weight=self.weight, requantisation=self.requantisation()
        )


class Adder2dInt8(_LayerInt8):
    """`y[n,o,p,q] = -sum_{c,r,s} |x[n,c,h,v] - w[o,c,r,s]|` of bytes, requantised to bytes.

    Filters and input have one scale and zero point (AdderNet, arXiv 1912.13200, equation 2; a
    common scale as in arXiv 2101.10015). Batch norm, bias, residual and ReLU that followed the
    float layer are in the requantisation.

    Args:
        step: What the layer does.
        inputs: The values it reads.
        output: The value it makes.
    """

    kind = "adder2d"


class Conv2dInt8(_LayerInt8):
    """`y[n,o,p,q] = sum_{c,r,s} x[n,c,h,v] w[o,c,r,s]` of bytes, requantised to bytes.

    The logits of a net are int32. Arguments as of `Adder2dInt8`.
    """


class AddInt8(_Integers):
    """A sum of two values on the scale of a third."""

    def __init__(self, step: p.Add, inputs: list[p.Value], output: p.Value) -> None:
        super().__init__(step, *_each_channel(inputs[0]), inputs[0].zero_point, output.dtype)
        self._step = step

    def step(self) -> p.Add:
        """The step that it does."""
        return dataclasses.replace(self._step, requantisation=self.requantisation())


class AffineInt8(_Integers):
    """A value on another scale, with a factor and a shift for each channel."""

    def __init__(self, step: p.Affine, inputs: list[p.Value], output: p.Value) -> None:
        super().__init__(step, *_each_channel(inputs[0]), inputs[0].zero_point, output.dtype)
        self._step = step

    def step(self) -> p.Affine:
        """The step that it does."""
        return dataclasses.replace(self._step, requantisation=self.requantisation())


class AvgPool2dInt8(_Integers):
    """Means of windows on another scale."""

    def __init__(self, step: p.AvgPool, inputs: list[p.Value], output: p.Value) -> None:
        weight, window = _each_channel(inputs[0], step.kernel, step.stride, step.padding)
        super().__init__(step, weight, window, inputs[0].zero_point, output.dtype)
        self._step = step

    def step(self) -> p.AvgPool:
        """The step that it does."""
        return dataclasses.replace(self._step, requantisation=self.requantisation())


class MaxPool2dInt8(nn.Module):
    """Largest bytes of windows."""

    def __init__(self, step: p.MaxPool, inputs: list[p.Value], output: p.Value) -> None:
        super().__init__()
        self._step = step

    def forward(self, input: Tensor) -> Tensor:
        """Bytes to bytes."""
        step = self._step
        return _ops.max_pool2d_int8(input, step.kernel, step.stride, step.padding, step.dilation)

    def step(self) -> p.MaxPool:
        """The step that it does."""
        return self._step


class UpsampleInt8(nn.Module):
    """Every pixel repeated."""

    def __init__(self, step: p.Upsample, inputs: list[p.Value], output: p.Value) -> None:
        super().__init__()
        self._step = step

    def forward(self, input: Tensor) -> Tensor:
        """Bytes to bytes."""
        N, C, H, W = input.shape
        tall, wide = self._step.factor
        rows = input.permute(0, 2, 3, 1)[:, :, None, :, None]
        pixels = rows.expand(N, H, tall, W, wide, C).reshape(N, H * tall, W * wide, C)
        return pixels.permute(0, 3, 1, 2)

    def step(self) -> p.Upsample:
        """The step that it does."""
        return self._step


class FlattenInt8(nn.Module):
    """Images to (N, C H W, 1, 1), channels outermost."""

    def __init__(self, step: p.Flatten, inputs: list[p.Value], output: p.Value) -> None:
        super().__init__()
        self._step = step

    def forward(self, input: Tensor) -> Tensor:
        """Bytes to bytes."""
        return input.flatten(1)[:, :, None, None]

    def step(self) -> p.Flatten:
        """The step that it does."""
        return self._step


class ConcatInt8(nn.Module):
    """Channels of several values, in a given order."""

    order: Tensor

    def __init__(self, step: p.Concat, inputs: list[p.Value], output: p.Value) -> None:
        super().__init__()
        self._step = dataclasses.replace(step, order=step.order[:0])
        self.register_buffer("order", step.order.clone())

    def forward(self, *inputs: Tensor) -> Tensor:
        """Bytes to bytes."""
        rows = [value.permute(0, 2, 3, 1) for value in inputs]
        joined = torch.cat(rows, 3) if len(rows) > 1 else rows[0]
        return joined.index_select(3, self.order).permute(0, 3, 1, 2)

    def step(self) -> p.Concat:
        """The step that it does."""
        return dataclasses.replace(self._step, order=self.order)


class _BetweenInt8(nn.Module):
    """A step that computes in float between integers, with weights of its own."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, step: p.FloatLayer | p.GroupNorm, inputs: list[p.Value], output: p.Value
    ) -> None:
        super().__init__()
        self._step = dataclasses.replace(step, weight=step.weight[:0], bias=step.bias[:0])
        self._values = [*inputs, output]
        self.register_buffer("weight", step.weight.clone())
        self.register_buffer("bias", step.bias.clone())

    def forward(self, input: Tensor) -> Tensor:
        """As of the step."""
        return interpreter.compute(self.step(), [input], self._values)

    def step(self) -> p.FloatLayer | p.GroupNorm:
        """The step that it does."""
        return dataclasses.replace(self._step, weight=self.weight, bias=self.bias)


class Conv2dBetweenInt8(_BetweenInt8):
    """A convolution left in float: bytes or images in, bytes or logits out."""


class GroupNormBetweenInt8(_BetweenInt8):
    """A group norm in float: bytes or int32 in, bytes out."""

    def forward(self, input: Tensor) -> Tensor:
        """As of the step."""
        return super().forward(input).contiguous(memory_format=torch.channels_last)


_MODULES: dict[type[Any], Callable[..., nn.Module]] = {
    p.FloatLayer: Conv2dBetweenInt8,
    p.Add: AddInt8,
    p.Affine: AffineInt8,
    p.Requantise: AffineInt8,
    p.MaxPool: MaxPool2dInt8,
    p.AvgPool: AvgPool2dInt8,
    p.Upsample: UpsampleInt8,
    p.GroupNorm: GroupNormBetweenInt8,
    p.Flatten: FlattenInt8,
    p.Concat: ConcatInt8,
}


def module_of(step: p.Step, program: p.Program) -> nn.Module:
    """The module that does a step of a program."""
    inputs, output = [program.values[name] for name in step.inputs], program.values[step.output]
    if isinstance(step, p.Layer):
        return (Adder2dInt8 if step.kind == "adder" else Conv2dInt8)(step, inputs, output)
    return _MODULES[type(step)](step, inputs, output)


def _each_channel(
    value: p.Value,
    kernel: p.Pair = (1, 1),
    stride: p.Pair = (1, 1),
    padding: p.Pair = (0, 0),
) -> tuple[Tensor, tuple[p.Pair, p.Pair, p.Pair, int]]:
    """Filters of ones, one for each channel, and their window."""
    channels = value.shape[0]
    weight = torch.ones(channels, 1, *kernel, dtype=torch.int8)
    return weight, (stride, padding, (1, 1), channels)
