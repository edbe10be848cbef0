"""The steps of an integer program as plain data: values, requantisation and what each step does.

Nothing is computed here; `torchadder.quantize.interpreter` says what every step means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

Pair = tuple[int, int]
Shape = tuple[int, int, int]
"""Channels, height and width of a value; features without an image are (C, 1, 1)."""

DType = Literal["uint8", "int32", "float32"]


@dataclass(frozen=True)
class Value:
    """What a step makes and others read.

    Attributes:
        name: Unique in the program.
        shape: Channels, height, width.
        scale: Real number of one step, positive.
        zero_point: Integer that stands for the real zero.
        dtype: "uint8", "int32" for logits, or "float32" beside layers that stay in float.
    """

    name: str
    shape: Shape
    scale: float = 1.0
    zero_point: int = 0
    dtype: DType = "uint8"


@dataclass(frozen=True, eq=False)
class Requantisation:
    """`clamp((multiplier[c] sum + offset[c] + residual_multiplier r) >> shift, low, high)`.

    The sums are exact integers of up to 32 bits, everything here is in 64 bits, and the shift
    rounds down. `torchadder_int8.h` says the same.

    Attributes:
        multiplier: int32, one for each channel.
        offset: int64, one for each channel; magnitudes below 2^61.
        shift: 0 .. 62.
        low: Smallest result.
        high: Largest result.
        residual_multiplier: Factor of the residual r, a byte; int32.
    """

    multiplier: Tensor
    offset: Tensor
    shift: int
    low: int
    high: int
    residual_multiplier: int = 0


@dataclass(frozen=True, eq=False)
class Layer:
    """`-sum |x - w|` ("adder") or `sum x w` ("conv") over windows, requantised.

    A linear layer is a "conv" of 1x1 images. Filters of an adder layer have the scale and zero
    point of its input, which cancel in the difference. Those of a convolution are int8; the zero
    point of its input is in the offset.

    Attributes:
        kind: "adder" or "conv".
        name: Unique in the program; the path of the float net's layer where there was one.
        input: Name of the value it reads.
        output: Name of the value it makes.
        weight: (O, C / groups, R, S), uint8 or int8.
        stride: Vertical, horizontal.
        padding: Likewise.
        dilation: Likewise.
        groups: Groups of channels.
        requantisation: What becomes of the sums.
        residual: Name of a value of the output's shape that is added, or None.
    """

    op: ClassVar[str] = "layer"
    kind: Literal["adder", "conv"]
    name: str
    input: str
    output: str
    weight: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    requantisation: Requantisation
    residual: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        return (self.input,) if self.residual is None else (self.input, self.residual)


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A convolution that was left in float: bytes to real numbers, the layer, and back to bytes.

    Such a program runs in Python; it is no integer program and cannot be exported. An input or
    output of dtype "float32" is read or written as it is.

    Attributes:
        name: Path of the layer.
        input: Name of the value it reads.
        output: Name of the value it makes.
        weight: (O, C / groups, R, S), float32, with a batch norm folded in.
        bias: (O), float32.
        stride: Vertical, horizontal.
        padding: Likewise.
        dilation: Likewise.
        groups: Groups of channels.
        relu: Whether negative results become 0.
    """

    op: ClassVar[str] = "float_layer"
    name: str
    input: str
    output: str
    weight: Tensor
    bias: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    relu: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        return (self.input,)


@dataclass(frozen=True, eq=False)
class Add:
    """`clamp((multiplier a + offset + residual_multiplier b) >> shift, low, high)`.

    Attributes:
        name: Unique in the program.
        input: Name of the value a.
        residual: Name of the value b, of the same shape.
        output: Name of the value it makes.
        requantisation: The same numbers for every channel.
    """

    op: ClassVar[str] = "add"
    name: str
    input: str
    residual: str
    output: str
    requantisation: Requantisation

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        return (self.input, self.residual)


@dataclass(frozen=True, eq=False)
class Affine:
    """A value on another scale, with a factor and a shift for each channel.

    This is a batch norm or ReLU that follows no layer, and the logits of a net that ends in none.

    Attributes:
        name: Unique in the program.
        input: Name of the value it reads.
        output: Name of the value it makes.
        requantisation: What becomes of each byte.
    """

    op: ClassVar[str] = "affine"
    name: str
    input: str
    output: str
    requantisation: Requantisation

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        return (self.input,)


class Requantise(Affine):
    """A value on another scale, the same for every channel: what a group of filters reads."""

    op: ClassVar[str] = "requantise"


@dataclass(frozen=True, eq=False)
class MaxPool:
    """Largest byte of each window; padding does not count. Scale and zero point stay.

    Attributes:
        name: Unique in the program.
        input: Name of the value it reads.
        output: Name of the value it makes.
        kernel: Height and width of the windows.
        stride: Vertical, horizontal.
        padding: Likewise.
        dilation: Likewise.
    """

    op: ClassVar[str] = "max_pool"
    name: str
    input: str
    output: str
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        return (self.input,)


@dataclass(frozen=True, eq=False)
class AvgPool:
    """Mean of each window: its sum, requantised with the same numbers for every channel.

    Padding counts, as zeros of the real numbers.

    Attributes:
        name: Unique in the program.
        input: Name of the value it reads.
        output: Name of the value it makes.
        kernel: Height and width of the windows.
        stride: Vertical, horizontal.
        padding: Likewise.
        requantisation: Holds the division by the number of pixels.
    """

    op: ClassVar[str] = "avg_pool"
    name: str
    input: str
    output: str
    kernel: Pair
    stride: Pair
    padding: Pair
    requantisation: Requantisation

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        return (self.input,)


@dataclass(frozen=True, eq=False)
class Flatten:
    """(C, H, W) to (C H W, 1, 1), channels outermost, as `torch.flatten` of NCHW images.

    Attributes:
        name: Unique in the program.
        input: Name of the value it reads.
        output: Name of the value it makes.
    """

    op: ClassVar[str] = "flatten"
    name: str
    input: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        return (self.input,)


@dataclass(frozen=True, eq=False)
class Concat:
    """Channels of one or several values in a given order, all of them or some.

    Groups of filters end in one, and one takes a group's channels from a residual.

    Attributes:
        name: Unique in the program.
        inputs: Names of the values it reads, one scale and zero point for all.
        output: Name of the value it makes.
        order: int64 (C): channel c of the result is channel order[c] of the inputs side by side.
    """

    op: ClassVar[str] = "concat"
    name: str
    inputs: tuple[str, ...]
    output: str
    order: Tensor


Step = Layer | FloatLayer | Add | Affine | Requantise | MaxPool | AvgPool | Flatten | Concat

STEPS: dict[str, type[Any]] = {
    step.op: step
    for step in (
        Layer, FloatLayer, Add, Affine, Requantise, MaxPool, AvgPool, Flatten, Concat,
    )
}  # fmt: skip
"""Class of each kind of step, by the name it has in a file."""
