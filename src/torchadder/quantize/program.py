"""An integer net as data: every step from the bytes of an image to its logits, without a float.

A `Program` is what quantisation makes and what everything after it reads: the modules that compute
(`torchadder.quantize.modules`), the interpreter that says what is right
(`torchadder.quantize.interpreter`), the exports and the counts of operations. It is plain data:
JSON and tensors, there and back. How its numbers were found is not known here.

A value holds one integer q for each channel, row and column; it stands for the real number
`scale (q - zero_point)`. Values are unsigned bytes, but the logits are int32. Padding with real
zeros is padding with the zero point. Every step that changes scales ends in the same way,

    q = clamp((multiplier sum + offset) >> shift, low, high)

with an arithmetic shift, which rounds down; the offset holds the half that makes it round to the
nearest. A ReLU is a `low` that is the zero point.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from torchadder.ops.geometry import output_size
from torchadder.ops.int8 import packing

Pair = tuple[int, int]
Shape = tuple[int, int, int]
"""Channels, height and width of a value; features without an image are (C, 1, 1)."""

DType = Literal["uint8", "int32", "float32"]

FORMAT_VERSION = 1

_LIMITS = {"uint8": (0, 255), "int32": (-(2**31), 2**31 - 1)}
_MAX_PRODUCT = 2**61
"""Bound of each term of a requantisation, so that their sum fits 64 bits."""


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


@dataclass(frozen=True)
class Input:
    """How a float image becomes the bytes that the program reads.

    A real x of the normalised image is `clamp(round(x / scale) + zero_point, 0, 255)`, rounded half
    to even.

    Attributes:
        name: Of the value.
        channels: C.
        height: H.
        width: W.
        scale: Real number of one step.
        zero_point: Byte of the real zero.
        mean: Of each channel, of pixels in 0..1: what the caller takes away before; None if the
            caller's preprocessing is not known.
        std: Likewise, what the caller divides by.
    """

    name: str
    channels: int
    height: int
    width: int
    scale: float
    zero_point: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Output:
    """The logits: int32, one for each class.

    Attributes:
        name: Of the value.
        num_classes: Number of logits.
        scale: Real number of one step.
    """

    name: str
    num_classes: int
    scale: float


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


@dataclass(frozen=True, eq=False)
class Program:
    """An integer net.

    Attributes:
        input: The images.
        output: The logits.
        steps: In the order of computation.
        values: Every value by its name, the images and the logits among them.
        bits: Width of the integers that layers compute with; 8 or fewer, for the record.
    """

    input: Input
    output: Output
    steps: tuple[Step, ...]
    values: Mapping[str, Value]
    bits: int = 8

    def __post_init__(self) -> None:
        _check(self)

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Names of the layers left in float; empty for an integer program."""
        return tuple(step.name for step in self.steps if isinstance(step, FloatLayer))

    def readers(self, value: str) -> Iterator[Step]:
        """The steps that read a value."""
        return (step for step in self.steps if value in step.inputs)

    def to_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values, and tensors by the names of their steps.

        The JSON names no tensor: what a step's tensors are called follows from its name.
        """
        tensors: dict[str, Tensor] = {}
        described = {
            "version": FORMAT_VERSION,
            "bits": self.bits,
            "input": dataclasses.asdict(self.input),
            "output": dataclasses.asdict(self.output),
            "values": [dataclasses.asdict(value) for value in self.values.values()],
            "steps": [_describe(step, tensors) for step in self.steps],
        }
        return _lists(described), tensors

    @staticmethod
    def from_dict(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
        """What `to_dict` has written down.

        Raises:
            ValueError: If something is missing, of another kind, or does not fit together; one line
                that says what.
        """
        version = described.get("version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"an integer program of format {version}, this version reads {FORMAT_VERSION}"
            )
        try:
            values = [Value(**_tuples(value)) for value in described["values"]]
            return Program(
                input=Input(**_tuples(described["input"])),
                output=Output(**described["output"]),
                steps=tuple(_step(step, tensors) for step in described["steps"]),
                values={value.name: value for value in values},
                bits=described["bits"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"a damaged integer program: {reason}") from error


# To JSON and back --------------------------------------------------------------------------------


def _describe(step: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    described: dict[str, Any] = {"op": step.op}
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if isinstance(value, Tensor):
            tensors[f"{step.name}.{field.name}"] = value
        elif isinstance(value, Requantisation):
            tensors[f"{step.name}.multiplier"] = value.multiplier
            tensors[f"{step.name}.offset"] = value.offset
            described[field.name] = {
                name: getattr(value, name)
                for name in ("shift", "low", "high", "residual_multiplier")
            }
        else:
            described[field.name] = value
    return described


def _step(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Step:
    arguments = _tuples(described)
    kind = STEPS[arguments.pop("op")]
    name = arguments["name"]
    if "requantisation" in arguments:
        arguments["requantisation"] = Requantisation(
            tensors[f"{name}.multiplier"], tensors[f"{name}.offset"], **arguments["requantisation"]
        )
    for tensor in ("weight", "bias", "order"):
        if tensor in {field.name for field in dataclasses.fields(kind)}:
            arguments[tensor] = tensors[f"{name}.{tensor}"]
    return kind(**arguments)


def _lists(value: Any) -> Any:
    """The same with lists for tuples, as JSON would give it back."""
    if isinstance(value, dict):
        return {name: _lists(item) for name, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _tuples(described: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(item) if isinstance(item, list) else item for name, item in described.items()
    }


# What must hold ----------------------------------------------------------------------------------


def _check(program: Program) -> None:
    """Raises ValueError unless the steps fit together."""
    values, source, result = program.values, program.input, program.output
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
    ready = {source.name}
    for step in program.steps:
        for name in step.inputs:
            _want(name in ready, f"{step.name}: reads {name} before it is made")
        _check_step(step, values)
        ready.add(step.output)
    _want(result.name in values, f"nothing makes the output {result.name}")
    last = values[result.name]
    _want(
        last.shape == (result.num_classes, 1, 1) and last.dtype in ("int32", "float32"),
        f"the output is {last.dtype} {last.shape}, wanted int32 ({result.num_classes}, 1, 1)",
    )


def _check_step(step: Step, values: Mapping[str, Value]) -> None:
    inputs, output = [values[name] for name in step.inputs], values[step.output]
    for value in inputs:
        allowed = ("uint8", "float32") if isinstance(step, FloatLayer) else ("uint8",)
        _want(value.dtype in allowed, f"{step.name}: reads {value.dtype} values")
    shape = _output_shape(step, [value.shape for value in inputs])
    _want(shape == output.shape, f"{step.name}: makes {shape}, its value is {output.shape}")
    if isinstance(step, MaxPool | Flatten | Concat):
        for value in inputs:
            _want(
                (value.scale, value.zero_point) == (output.scale, output.zero_point),
                f"{step.name}: scale and zero point of {value.name} and {output.name} differ",
            )
    elif not isinstance(step, FloatLayer):
        _check_requantisation(step.name, step.requantisation, output)
    if isinstance(step, Layer):
        wanted = torch.uint8 if step.kind == "adder" else torch.int8
        _want(step.weight.dtype == wanted, f"{step.name}: the weight is {step.weight.dtype}")


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


def _output_shape(step: Step, shapes: list[Shape]) -> Shape:
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


def weight_bytes(steps: Iterable[Step]) -> int:
    """Bytes of the filters as the kernels hold them, the filling of blocks included."""
    return sum(
        packing.packed_size(_filters(step.weight), step.dilation[1], step.groups)
        if isinstance(step, Layer)
        else step.weight.numel() * step.weight.element_size()
        for step in steps
        if isinstance(step, Layer | FloatLayer)
    )


def _filters(weight: Tensor) -> tuple[int, int, int, int]:
    O, depth, R, S = weight.shape
    return O, depth, R, S
