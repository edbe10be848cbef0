"""A float net as a list of steps that integers can do: layers with their batch norm folded in.

`torchadder.quantize.tracing` makes it of a net. Ranges, scales and integers are not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, fx

from torchadder.ops import Geometry

Kind = Literal[
    "adder", "conv", "add", "max_pool", "avg_pool", "flatten", "affine", "upsample", "group_norm"
]  # fmt: skip
Pair = tuple[int, int]

PASSING = ("max_pool", "upsample", "flatten")
"""Kinds of steps that only hand numbers on: what they make has the integers of what they read."""


class QuantizationError(ValueError):
    """A net that cannot be quantised; the message is one line with the layer and the reason."""


@dataclass
class Step:
    """One step of a net.

    `adder` and `conv` are `y = scale[o] * sum + shift[o] (+ residual)`, then ReLU if `relu`, where
    the sum is `-sum |x - w|` or `sum x w`; a linear layer is a `conv` of 1x1 images.

    Attributes:
        kind: What it does.
        name: Path of the layer in the net, or of the operation in the graph.
        inputs: Names of the values it reads; the residual of a layer is the second one.
        output: Name of the value it makes.
        relu: Whether negative results become 0.
        parameter: Where the net keeps the weight of a layer or norm: the same for every use of it.
        weight: Filters (O, C / groups, R, S) of a layer.
        window: Stride, padding, dilation and groups of a layer, or of a pool.
        kernel: Height and width of a pool; None for all of the image.
        factor: How many rows and columns become of one, of an `upsample` step.
        scale: Factor of each channel, of a layer, an `affine` or a `group_norm` step; float64.
        shift: Likewise added.
        num_groups: Groups of channels of a `group_norm`.
        eps: What it adds to a variance.
    """

    kind: Kind
    name: str
    inputs: list[str]
    output: str
    relu: bool = False
    parameter: str = ""
    weight: Tensor | None = None
    window: Geometry | None = None
    kernel: Pair | None = None
    factor: Pair = (1, 1)
    scale: Tensor | None = None
    shift: Tensor | None = None
    num_groups: int = 0
    eps: float = 0.0


@dataclass
class FloatGraph:
    """Steps in the order of computation.

    Attributes:
        input: Name of the images.
        outputs: Names of the logits and maps, in the order in which the net returns them.
        are_maps: Whether each of them is an image.
        takes_any_size: Whether `module` runs on images of any size, and the steps hold for all.
        steps: The steps.
        module: The net as exported, for running it node by node.
        nodes: Name of the node after which each value is complete, by the value's name.
    """

    input: str
    outputs: tuple[str, ...]
    are_maps: tuple[bool, ...]
    takes_any_size: bool
    steps: list[Step]
    module: fx.GraphModule = field(repr=False)
    nodes: dict[str, str] = field(repr=False)

    def readers(self, value: str) -> list[Step]:
        """The steps that read a value."""
        return [step for step in self.steps if value in step.inputs]

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Channels, height and width of every value; features without an image are (C, 1, 1)."""
        nodes = {node.name: node for node in self.module.graph.nodes}
        result = {}
        for value, name in self.nodes.items():
            C, H, W, *_ = (*(int(size) for size in nodes[name].meta["val"].shape[1:]), 1, 1)
            result[value] = (C, H, W)
        return result
