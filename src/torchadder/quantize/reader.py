"""From the nodes of an exported graph to steps: what is called what, and what reads it.

What an operator becomes is not known here, see `torchadder.quantize.operators` and
`torchadder.quantize.shaping`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from torchadder.quantize.graph import FloatGraph, Kind, QuantizationError, Step

Handler = Callable[["Reader", fx.Node], None]


class Reader:
    """Turns the nodes of an exported graph into steps, one after the other.

    Args:
        module: The graph.
        handlers: What to do with each operator, by its name.

    Attributes:
        steps: The steps so far by the values that they make, in the order of computation.
        names: What a node's value is called: its own name, or that of the value it passes on.
        constants: What was computed from parameters and buffers alone.
        takes_any_size: Whether no step so far depends on the size of the images.
    """

    def __init__(self, module: fx.GraphModule, handlers: Mapping[str, Handler]) -> None:
        self.module = module
        self.handlers = handlers
        self.steps: dict[str, Step] = {}
        self.names: dict[fx.Node, str] = {}
        self.constants: dict[fx.Node, Tensor] = {}
        self.takes_any_size = True

    def read(self) -> FloatGraph:
        """All nodes."""
        source, outputs = "", ()
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                if source:
                    raise QuantizationError("the net takes more than one input")
                source = self.names[node] = node.name
            elif node.op == "output":
                outputs = self._outputs(node)
            elif node.op == "call_function" and node.users:
                self._call(node)
        last = {value: node.name for node, value in self.names.items()}
        # An image of one pixel is as good as none where it is all that the net makes.
        are_maps = tuple(
            len(shape_of(node)) == 4 and (len(outputs) > 1 or math.prod(shape_of(node)[2:]) > 1)
            for node in outputs
        )
        names = tuple(self.names[node] for node in outputs)
        steps, any_size = list(self.steps.values()), self.takes_any_size and all(are_maps)
        return FloatGraph(source, names, are_maps, any_size, steps, self.module, last)

    def _outputs(self, node: fx.Node) -> tuple[fx.Node, ...]:
        values: Any = node.args[0]
        for value in values:
            if not isinstance(value, fx.Node) or value not in self.names:
                raise QuantizationError(f"the net returns {value}, which no image decides")
            if len(shape_of(value)) not in (2, 4):
                raise QuantizationError(
                    f"the net returns a tensor of shape {tuple(shape_of(value))}, wanted "
                    "(N, classes) or (N, C, H, W)"
                )
        return tuple(values)

    def _call(self, node: fx.Node) -> None:
        if _is_number(node):
            return
        if self._is_constant(node):
            self.constants[node] = self._compute(node)
            return
        name = operator_name(node.target)
        handler = self.handlers.get(name)
        if handler is None:
            raise QuantizationError(f"{layer_of(node)}: {name} cannot be done in integers")
        handler(self, node)

    def add(self, node: fx.Node, step: Step) -> None:
        """Adds what an operation becomes."""
        self.steps[step.output] = step
        self.names[node] = step.output

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether an operation reads parameters and buffers only, as frozen batch norms do."""
        read = node.all_input_nodes
        return bool(read) and all(n.op == "get_attr" or n in self.constants for n in read)

    def _compute(self, node: fx.Node) -> Tensor:
        assert callable(node.target)
        return node.target(*map_arg(node.args, self.tensor), **map_arg(node.kwargs, self.tensor))

    def tensor(self, argument: Any) -> Tensor | None:
        """A weight or buffer behind an argument, or what was computed from some."""
        if argument is None:
            return None
        assert isinstance(argument, fx.Node)
        if argument in self.constants:
            return self.constants[argument]
        if argument.op != "get_attr":
            raise QuantizationError(
                f"{layer_of(argument)}: weights that are computed from the images cannot be done "
                "in integers"
            )
        value: Any = self.module
        for part in str(argument.target).split("."):
            value = getattr(value, part)
        return value.detach().cpu()

    def value(self, argument: Any, node: fx.Node) -> str:
        """The name of a value that an operation reads."""
        if not isinstance(argument, fx.Node) or argument not in self.names:
            raise QuantizationError(
                f"{layer_of(node)}: {operator_name(node.target)} of a constant cannot be done in "
                "integers"
            )
        return self.names[argument]

    def joinable(self, value: str, node: fx.Node, *kinds: Kind) -> Step | None:
        """The step that makes a value, if it is of these kinds and only `node` reads what it makes.

        Nothing can be joined behind a ReLU.
        """
        step = self.steps.get(value)
        is_free = step is not None and step.kind in kinds and not step.relu
        return step if is_free and self.only_reader(value, node) else None

    def only_reader(self, value: str, node: fx.Node) -> bool:
        """Whether nothing but `node` reads what the value was."""
        readers = {
            user
            for source, name in self.names.items()
            if name == value
            for user in source.users
            if user not in self.names and not _is_number(user)
        }
        # An addition that was joined to a layer is no reader any more, but the layer's step is.
        return readers == {node} and not any(value in step.inputs for step in self.steps.values())


def _is_number(node: fx.Node) -> bool:
    """Whether an operation makes no tensor, as `x.size(0)` and what is computed from it."""
    return isinstance(node.meta.get("val"), int | torch.SymInt)


def operator_name(target: Any) -> str:
    """`aten.add_.Tensor` to `aten.add_`."""
    if target is operator.getitem:
        return "getitem"
    parts = str(target).split(".")
    return ".".join(parts[:2])


def layer_of(node: fx.Node) -> str:
    """The path of the layer that an operation belongs to, or the operation's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else node.name


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """All arguments of an operation by name, those left out with their defaults."""
    schema = node.target._schema  # type: ignore[union-attr]
    values = {
        argument.name: argument.default_value
        for argument in schema.arguments
        if argument.has_default_value()
    }
    values |= {
        argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)
    }
    return values | node.kwargs


def shape_of(node: Any) -> tuple[int, ...]:
    """Of what an operation makes; the number of images may be a symbol."""
    return tuple(node.meta["val"].shape)


def parameter_of(node: Any) -> str:
    """Where a weight is kept; nowhere if it was computed."""
    return str(node.target) if node.op == "get_attr" else ""


def pair(value: Any) -> tuple[int, int]:
    """Vertical and horizontal, given once or twice."""
    if isinstance(value, int):
        return value, value
    values = list(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def bias_of(bias: Tensor | None, channels: int) -> Tensor:
    """Zeros where there is none; float64."""
    return torch.zeros(channels, dtype=torch.float64) if bias is None else bias.double()
