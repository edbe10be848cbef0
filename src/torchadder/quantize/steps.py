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
        dtype: "uint8", "int32" for logits and what group norms read, or "float32" beside layers
            that stay in float.
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
        shared: Name of the earlier step whose layer this is, used again; its filters and
            requantisation are the same tensors. None for a layer of its own.
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
    shared: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        return (self.input,) if self.residual is None else (self.input, self.residual)


@dataclass(frozen=True, eq=False)
class _OneInput:
    """A step that makes one value from another one.

    Attributes:
        name: Unique in the program; the path of the float net's layer where there was one.
        input: Name of the value it reads.
        output: Name of the value it makes.
    """

    name: str
    input: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        return (self.input,)


@dataclass(frozen=True, eq=False)
class FloatLayer(_OneInput):
    """A convolution that was left in float: bytes to real numbers, the layer, and back to bytes.

    Such a program runs in Python; it is no integer program and cannot be exported. An input or
    output of dtype "float32" is read or written as it is.

    Attributes:
        weight: (O, C / groups, R, S), float32, with a batch norm folded in.
        bias: (O), float32.
        stride: Vertical, horizontal.
        padding: Likewise.
        dilation: Likewise.
        groups: Groups of channels.
        relu: Whether negative results become 0.
        shared: As of `Layer`.
    """

    op: ClassVar[str] = "float_layer"
    weight: Tensor
    bias: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    relu: bool
    shared: str | None = None


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
class Affine(_OneInput):
    """A value on another scale, with a factor and a shift for each channel.

    This is a batch norm or ReLU that follows no layer, and the logits of a net that ends in none.

    Attributes:
        requantisation: What becomes of each byte.
    """

    op: ClassVar[str] = "affine"
    requantisation: Requantisation


class Requantise(Affine):
    """A value on another scale, the same for every channel: what a group of filters reads."""

    op: ClassVar[str] = "requantise"


@dataclass(frozen=True, eq=False)
class MaxPool(_OneInput):
    """Largest byte of each window; padding does not count. Scale and zero point stay.

    Attributes:
        kernel: Height and width of the windows; (1, 1) with a stride leaves out pixels.
        stride: Vertical, horizontal.
        padding: Likewise.
        dilation: Likewise.
    """

    op: ClassVar[str] = "max_pool"
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


@dataclass(frozen=True, eq=False)
class AvgPool(_OneInput):
    """Mean of each window: its sum, requantised with the same numbers for every channel.

    Padding counts, as zeros of the real numbers.

    Attributes:
        kernel: Height and width of the windows.
        stride: Vertical, horizontal.
        padding: Likewise.
        requantisation: Holds the division by the number of pixels.
    """

    op: ClassVar[str] = "avg_pool"
    kernel: Pair
    stride: Pair
    padding: Pair
    requantisation: Requantisation


@dataclass(frozen=True, eq=False)
class Upsample(_OneInput):
    """Every pixel repeated: nearest neighbour by whole factors. Scale and zero point stay.

    Attributes:
        factor: Vertical, horizontal.
    """

    op: ClassVar[str] = "upsample"
    factor: Pair


@dataclass(frozen=True, eq=False)
class GroupNorm(_OneInput):
    """A group norm, in float between integers: its statistics are those of each image.

    A program that has one runs in Python and cannot be exported. Mean and variance come from exact
    integer sums over each group of channels; what follows is float64, number by number, so the
    bytes do not depend on the order of computation. The scale of its input cancels but for `eps`.

    Attributes:
        input: Name of the value it reads: bytes, or int32 that a layer has left as it summed.
        weight: (C), float32.
        bias: (C), float32.
        num_groups: Groups of channels.
        eps: Added to the variance of real numbers.
        low: Smallest result; a ReLU is one that is the zero point.
        high: Largest result.
        shared: As of `Layer`.
    """

    op: ClassVar[str] = "group_norm"
    weight: Tensor
    bias: Tensor
    num_groups: int
    eps: float
    low: int
    high: int
    shared: str | None = None


@dataclass(frozen=True, eq=False)
class Flatten(_OneInput):
    """(C, H, W) to (C H W, 1, 1), channels outermost, as `torch.flatten` of NCHW images."""

    op: ClassVar[str] = "flatten"


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


Step = (
    Layer | FloatLayer | Add | Affine | Requantise | MaxPool | AvgPool | Upsample | GroupNorm
    | Flatten | Concat
)  # fmt: skip

STEPS: dict[str, type[Any]] = {
    step.op: step
    for step in (
        Layer, FloatLayer, Add, Affine, Requantise, MaxPool, AvgPool, Upsample, GroupNorm, Flatten,
        Concat,
    )
}  # fmt: skip
"""Class of each kind of step, by the name it has in a file."""

NORM_LIMIT = 2**18
"""Largest magnitude of an int32 that a group norm reads."""

MAX_NORM_TERMS = 2**26
"""Numbers of one group: with these two bounds the sum of their squares fits 64 bits."""
