"""An integer net as data: every step from the bytes of an image to its logits or maps of them.

A `Program` is what quantisation makes and what everything after it reads: the modules that compute
(`torchadder.quantize.modules`), the interpreter that says what is right
(`torchadder.quantize.interpreter`), the exports and the counts of operations. It is plain data:
JSON and tensors, there and back. How its numbers were found is not known here. What the steps are
is written in `torchadder.quantize.steps`, what must hold in `torchadder.quantize.consistency`.

A value holds one integer q for each channel, row and column; it stands for the real number
`scale (q - zero_point)`. Values are unsigned bytes, but the logits are int32, and so is what a
group norm reads. Padding with real zeros is padding with the zero point. Every step that changes
scales ends in the same way,

    q = clamp((multiplier sum + offset) >> shift, low, high)

with an arithmetic shift, which rounds down; the offset holds the half that makes it round to the
nearest. A ReLU is a `low` that is the zero point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torchadder.ops.int8 import packing
from torchadder.quantize import consistency, storage
from torchadder.quantize.steps import STEPS as STEPS
from torchadder.quantize.steps import Add as Add
from torchadder.quantize.steps import Affine as Affine
from torchadder.quantize.steps import AvgPool as AvgPool
from torchadder.quantize.steps import Concat as Concat
from torchadder.quantize.steps import DType as DType
from torchadder.quantize.steps import Flatten as Flatten
from torchadder.quantize.steps import FloatLayer as FloatLayer
from torchadder.quantize.steps import GroupNorm as GroupNorm
from torchadder.quantize.steps import Layer as Layer
from torchadder.quantize.steps import MaxPool as MaxPool
from torchadder.quantize.steps import Pair as Pair
from torchadder.quantize.steps import Requantisation as Requantisation
from torchadder.quantize.steps import Requantise as Requantise
from torchadder.quantize.steps import Shape as Shape
from torchadder.quantize.steps import Step as Step
from torchadder.quantize.steps import Upsample as Upsample
from torchadder.quantize.steps import Value as Value

FORMAT_VERSION = 2
"""Of what `Program.to_dict` writes. Format 1 knew one output, which it called "output"."""


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
    """Logits: int32, one for each class, or an image of them.

    Attributes:
        name: Of the value.
        num_classes: Number of logits, or channels of the image.
        scale: Real number of one step.
        is_map: Whether it is an image (N, num_classes, H, W), or (N, num_classes).
    """

    name: str
    num_classes: int
    scale: float
    is_map: bool = False


@dataclass(frozen=True, eq=False)
class Program:
    """An integer net.

    Attributes:
        input: The images.
        outputs: What the net makes: one set of logits, or several outputs in the float net's order.
        steps: In the order of computation.
        values: Every value by its name, the images and the logits among them.
        bits: Width of the integers that layers compute with; 8 or fewer, for the record.
        takes_any_size: Whether nothing but the shapes of values depends on the size of the images.
            So it is where all outputs are maps, nothing is flattened, and means are over windows.
    """

    input: Input
    outputs: tuple[Output, ...]
    steps: tuple[Step, ...]
    values: Mapping[str, Value]
    bits: int = 8
    takes_any_size: bool = False

    def __post_init__(self) -> None:
        consistency.check(self)

    @property
    def output(self) -> Output:
        """The only output.

        Raises:
            ValueError: If there are several.
        """
        return only(self.outputs)

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Names of the layers that compute in float; empty for an integer program."""
        return tuple(
            step.name
            for step in self.steps
            if isinstance(step, FloatLayer | GroupNorm) and step.shared is None
        )

    def resized(self, height: int, width: int) -> Program:
        """The same program for images of another size.

        Raises:
            ValueError: If it takes images of one size only, or the size does not fit its steps.
        """
        source = self.input
        if not self.takes_any_size:
            raise ValueError(
                f"the program takes images of {source.height}x{source.width} only, got "
                f"{height}x{width}"
            )
        first = self.values[source.name]
        values = {first.name: dataclasses.replace(first, shape=(source.channels, height, width))}
        for step in self.steps:
            shape = consistency.output_shape(step, [values[name].shape for name in step.inputs])
            values[step.output] = dataclasses.replace(self.values[step.output], shape=shape)
        source = dataclasses.replace(source, height=height, width=width)
        return dataclasses.replace(self, input=source, values=values)

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
            "takes_any_size": self.takes_any_size,
            "input": dataclasses.asdict(self.input),
            "outputs": [dataclasses.asdict(output) for output in self.outputs],
            "values": [dataclasses.asdict(value) for value in self.values.values()],
            "steps": [storage.describe(step, tensors) for step in self.steps],
        }
        return storage.lists(described), tensors

    @staticmethod
    def from_dict(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
        """What `to_dict` has written down, by this version or one before it.

        Raises:
            ValueError: If something is missing, of another kind, or does not fit together; one line
                that says what.
        """
        version = described.get("version")
        if version not in range(1, FORMAT_VERSION + 1):
            raise ValueError(
                f"an integer program of format {version}, this version reads 1 to {FORMAT_VERSION}"
            )
        try:
            outputs = [described["output"]] if version == 1 else described["outputs"]
            values = [Value(**storage.tuples(value)) for value in described["values"]]
            return Program(
                input=Input(**storage.tuples(described["input"])),
                outputs=tuple(Output(**output) for output in outputs),
                steps=tuple(storage.read_step(step, tensors) for step in described["steps"]),
                values={value.name: value for value in values},
                bits=described["bits"],
                takes_any_size=described.get("takes_any_size", False),
            )
        except (KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"a damaged integer program: {reason}") from error


def only(outputs: Sequence[Output]) -> Output:
    """The output of a net that has one.

    Raises:
        ValueError: If there are several.
    """
    if len(outputs) > 1:
        raise ValueError(f"the net has {len(outputs)} outputs: use outputs instead of output")
    return outputs[0]


def weight_bytes(steps: Iterable[Step]) -> int:
    """Bytes of the filters as the kernels hold them, the filling of blocks included.

    A layer that is used several times is held once.
    """
    return sum(
        packing.packed_size(_filters(step.weight), step.dilation[1], step.groups)
        if isinstance(step, Layer)
        else step.weight.numel() * step.weight.element_size()
        for step in steps
        if isinstance(step, Layer | FloatLayer) and step.shared is None
    )


def _filters(weight: Tensor) -> tuple[int, int, int, int]:
    O, depth, R, S = weight.shape
    return O, depth, R, S
