"""A float net as a list of steps that integers can do: layers with their batch norm folded in.

`torch.export` writes down what a net in evaluation mode computes, whatever Python its forward is
made of; from that graph this module picks the steps, folds every batch norm into the layer before
it and joins the addition of a residual and a ReLU to the layer they follow. A net that does
something else is refused, with the layer and the reason. Ranges, scales and integers are not known
here.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from torchadder.ops import Geometry

Kind = Literal["adder", "conv", "add", "max_pool", "avg_pool", "flatten", "affine"]


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
        weight: Filters (O, C / groups, R, S) of a layer.
        window: Stride, padding, dilation and groups of a layer, or of a pool.
        kernel: Height and width of a pool; None for all of the image.
        scale: Factor of each channel, of a layer or of an `affine` step; float64.
        shift: Likewise added.
    """

    kind: Kind
    name: str
    inputs: list[str]
    output: str
    relu: bool = False
    weight: Tensor | None = None
    window: Geometry | None = None
    kernel: tuple[int, int] | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


@dataclass
class FloatGraph:
    """Steps in the order of computation.

    Attributes:
        input: Name of the images.
        output: Name of the logits.
        steps: The steps.
        module: The net as exported, for running it node by node.
        nodes: Name of the node after which each value is complete, by the value's name.
    """

    input: str
    output: str
    steps: list[Step]
    module: fx.GraphModule = field(repr=False)
    nodes: dict[str, str] = field(repr=False)

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Channels, height and width of every value; features without an image are (C, 1, 1)."""
        nodes = {node.name: node for node in self.module.graph.nodes}
        result = {}
        for value, name in self.nodes.items():
            C, H, W, *_ = (*(int(size) for size in _shape(nodes[name])[1:]), 1, 1)
            result[value] = (C, H, W)
        return result


def trace(model: nn.Module, images: Tensor) -> FloatGraph:
    """Writes a net down as steps.

    Args:
        model: In evaluation mode, images to logits.
        images: A batch that it takes, (N, C, H, W).

    Raises:
        QuantizationError: If the net is in training mode, cannot be exported, or does something
            that integers cannot do here.
    """
    if model.training:
        raise QuantizationError("the net is in training mode: call model.eval() first")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A batch of one is a special case to torch.export.
            example = images[:2] if len(images) > 1 else images.repeat(2, 1, 1, 1)
            batch = torch.export.Dim("batch")
            program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises dozens of types, without a common base
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise QuantizationError(f"the net cannot be exported: {reason[0]}") from error
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return _Reader(module).read()


class _Reader:
    """Turns the nodes of an exported graph into steps, one after the other."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.steps: dict[str, Step] = {}
        # What a node's value is called: its own name, or that of the value it passes on.
        self.names: dict[fx.Node, str] = {}

    def read(self) -> FloatGraph:
        """All nodes."""
        source, result = "", ""
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                if source:
                    raise QuantizationError("the net takes more than one input")
                source = self.names[node] = node.name
            elif node.op == "output":
                (values,) = node.args
                if not isinstance(values, Sequence) or len(values) != 1:
                    raise QuantizationError("the net has more than one output")
                result = self.names[values[0]]
            elif node.op == "call_function" and node.users:
                self._call(node)
        last = {value: node.name for node, value in self.names.items()}
        return FloatGraph(source, result, list(self.steps.values()), self.module, last)

    def _call(self, node: fx.Node) -> None:
        name = _operator_name(node.target)
        handler = _HANDLERS.get(name)
        if handler is None:
            raise QuantizationError(f"{layer_of(node)}: {name} cannot be done in integers")
        handler(self, node)

    def _add(self, node: fx.Node, step: Step) -> None:
        self.steps[step.output] = step
        self.names[node] = step.output

    def tensor(self, argument: Any) -> Tensor | None:
        """A weight or buffer behind an argument."""
        if argument is None:
            return None
        assert isinstance(argument, fx.Node)
        assert argument.op == "get_attr"
        value: Any = self.module
        for part in str(argument.target).split("."):
            value = getattr(value, part)
        return value.detach().cpu()

    def value(self, argument: Any, node: fx.Node) -> str:
        """The name of a value that an operation reads."""
        if not isinstance(argument, fx.Node) or argument not in self.names:
            raise QuantizationError(
                f"{layer_of(node)}: {_operator_name(node.target)} of a constant cannot be done in "
                "integers"
            )
        return self.names[argument]

    def only_reader(self, value: str, node: fx.Node) -> bool:
        """Whether nothing but `node` reads what the value was."""
        readers = {
            user
            for source, name in self.names.items()
            if name == value
            for user in source.users
            if user not in self.names
        }
        return readers == {node}

    # Layers -------------------------------------------------------------------------------------

    def layer(self, node: fx.Node) -> None:
        """An adder layer or a convolution."""
        arguments = _arguments(node)
        kind: Kind = "adder" if "adder2d" in _operator_name(node.target) else "conv"
        weight = self.tensor(arguments["weight"])
        assert weight is not None
        if arguments.get("padding") in ("same", "valid"):
            raise QuantizationError(f"{layer_of(node)}: padding must be given in numbers")
        window = Geometry(
            _pair(arguments.get("stride", 1)),
            _pair(arguments.get("padding", 0)),
            _pair(arguments.get("dilation", 1)),
            arguments.get("groups", 1),
        )
        self._add(
            node,
            Step(
                kind,
                layer_of(node),
                [self.value(arguments["input"], node)],
                node.name,
                weight=weight,
                window=window,
                scale=torch.ones(len(weight), dtype=torch.float64),
                shift=_shift(self.tensor(arguments.get("bias")), len(weight)),
            ),
        )

    def linear(self, node: fx.Node) -> None:
        """A linear layer: a convolution of images of one pixel."""
        arguments = _arguments(node)
        weight = self.tensor(arguments["weight"])
        assert weight is not None
        if len(_shape(node)) != 2:
            raise QuantizationError(f"{layer_of(node)}: linear layers take (N, C) only")
        self._add(
            node,
            Step(
                "conv",
                layer_of(node),
                [self.value(arguments["input"], node)],
                node.name,
                weight=weight[:, :, None, None],
                window=Geometry((1, 1), (0, 0), (1, 1), 1),
                scale=torch.ones(len(weight), dtype=torch.float64),
                shift=_shift(self.tensor(arguments.get("bias")), len(weight)),
            ),
        )

    def batch_norm(self, node: fx.Node) -> None:
        """Folded into the layer before; a step of its own where there is none."""
        arguments = _arguments(node)
        mean = self.tensor(arguments["running_mean"])
        variance = self.tensor(arguments["running_var"])
        if mean is None or variance is None or arguments.get("training"):
            raise QuantizationError(f"{layer_of(node)}: a batch norm without running statistics")
        scale = torch.rsqrt(variance.double() + arguments["eps"])
        weight, bias = self.tensor(arguments.get("weight")), self.tensor(arguments.get("bias"))
        if weight is not None:
            scale = scale * weight.double()
        shift = _shift(bias, len(mean)) - mean.double() * scale
        value = self.value(arguments["input"], node)
        before = self.steps.get(value)
        if (
            before is not None
            and before.kind in ("adder", "conv")
            and not before.relu
            and len(before.inputs) == 1
            and self.only_reader(value, node)
        ):
            assert before.scale is not None
            assert before.shift is not None
            before.shift = before.shift * scale + shift
            before.scale = before.scale * scale
            self.names[node] = value
            return
        self._add(
            node, Step("affine", layer_of(node), [value], node.name, scale=scale, shift=shift)
        )

    # What joins a layer ---------------------------------------------------------------------------

    def relu(self, node: fx.Node) -> None:
        """Joined to the step before, unless something else reads its value without the ReLU."""
        value = self.value(node.args[0], node)
        before = self.steps.get(value)
        if (
            before is not None
            and before.kind in ("adder", "conv", "add", "affine")
            and self.only_reader(value, node)
        ):
            before.relu = True
            self.names[node] = value
            return
        channels = _shape(node)[1]
        one = torch.ones(channels, dtype=torch.float64)
        self._add(
            node,
            Step(
                "affine",
                layer_of(node),
                [value],
                node.name,
                relu=True,
                scale=one,
                shift=torch.zeros_like(one),
            ),
        )

    def add(self, node: fx.Node) -> None:
        """A residual: joined to the later of the two layers, if nothing else reads its value."""
        if node.kwargs.get("alpha", 1) != 1:
            raise QuantizationError(f"{layer_of(node)}: an addition with a factor")
        values = [self.value(argument, node) for argument in node.args[:2]]
        one, two = (_shape(argument) for argument in node.args[:2])
        if one[1:] != two[1:]:
            raise QuantizationError(f"{layer_of(node)}: an addition of unequal shapes")
        order = list(self.steps)
        values.sort(key=lambda value: order.index(value) if value in order else -1)
        other, value = values
        before = self.steps.get(value)
        if (
            before is not None
            and before.kind in ("adder", "conv")
            and not before.relu
            and len(before.inputs) == 1
            and other != value
            and self.only_reader(value, node)
        ):
            before.inputs.append(other)
            self.names[node] = value
            return
        self._add(node, Step("add", layer_of(node), values, node.name))

    # Pools and shapes -----------------------------------------------------------------------------

    def pool(self, node: fx.Node) -> None:
        """Maxima or means over windows."""
        arguments = _arguments(node)
        kind: Kind = "max_pool" if "max" in _operator_name(node.target) else "avg_pool"
        if arguments.get("ceil_mode"):
            raise QuantizationError(f"{layer_of(node)}: pooling with ceil_mode")
        kernel = _pair(arguments["kernel_size"])
        padding = _pair(arguments.get("padding") or 0)
        if kind == "avg_pool" and (
            arguments.get("divisor_override")
            or (padding != (0, 0) and not arguments.get("count_include_pad", True))
        ):
            raise QuantizationError(f"{layer_of(node)}: a mean with another divisor")
        window = Geometry(
            _pair(arguments.get("stride") or kernel),
            padding,
            _pair(arguments.get("dilation", 1)),
            1,
        )
        value = self.value(arguments["self"], node)
        self._add(
            node, Step(kind, layer_of(node), [value], node.name, window=window, kernel=kernel)
        )

    def mean(self, node: fx.Node) -> None:
        """Means over whole images."""
        arguments = _arguments(node)
        dims = {dim % 4 for dim in arguments.get("dim") or ()}
        if dims != {2, 3} or len(_shape(node.args[0])) != 4:
            raise QuantizationError(f"{layer_of(node)}: a mean over {arguments.get('dim')}")
        value = self.value(arguments["self"], node)
        self._add(node, Step("avg_pool", layer_of(node), [value], node.name))

    def adaptive_pool(self, node: fx.Node) -> None:
        """Means over equal windows; a step only where there is more than one value in each."""
        arguments = _arguments(node)
        size = _shape(node.args[0])[2:]
        wanted = _pair(arguments["output_size"])
        if any(have % want for have, want in zip(size, wanted, strict=True)):
            raise QuantizationError(
                f"{layer_of(node)}: pooling of {size[0]}x{size[1]} to {wanted[0]}x{wanted[1]} has "
                "unequal windows"
            )
        kernel = (size[0] // wanted[0], size[1] // wanted[1])
        value = self.value(arguments["self"], node)
        if kernel == (1, 1):
            self.names[node] = value
            return
        window = Geometry(kernel, (0, 0), (1, 1), 1)
        self._add(
            node, Step("avg_pool", layer_of(node), [value], node.name, window=window, kernel=kernel)
        )

    def reshape(self, node: fx.Node) -> None:
        """Changes of shape that keep the order of the values of an image of one pixel."""
        before, after = _shape(node.args[0]), _shape(node)
        value = self.value(node.args[0], node)
        if math.prod(before[1:]) == before[1] and math.prod(after[1:]) == after[1] == before[1]:
            self.names[node] = value
            return
        if len(after) == 2 and after[1] == math.prod(before[1:]):
            self._add(node, Step("flatten", layer_of(node), [value], node.name))
            return
        raise QuantizationError(
            f"{layer_of(node)}: {_operator_name(node.target)} of {tuple(before[1:])} to "
            f"{tuple(after[1:])} cannot be done in integers"
        )

    def passes(self, node: fx.Node) -> None:
        """Dropout in evaluation mode and the like."""
        self.names[node] = self.value(node.args[0], node)


_Handler = Callable[[_Reader, fx.Node], None]

_HANDLERS: dict[str, _Handler] = {
    "torchadder.adder2d": _Reader.layer,
    "aten.conv2d": _Reader.layer,
    "aten.linear": _Reader.linear,
    "aten.batch_norm": _Reader.batch_norm,
    "aten.relu": _Reader.relu,
    "aten.relu_": _Reader.relu,
    "aten.add": _Reader.add,
    "aten.add_": _Reader.add,
    "aten.max_pool2d": _Reader.pool,
    "aten.avg_pool2d": _Reader.pool,
    "aten.adaptive_avg_pool2d": _Reader.adaptive_pool,
    "aten.mean": _Reader.mean,
    "aten.flatten": _Reader.reshape,
    "aten.view": _Reader.reshape,
    "aten.reshape": _Reader.reshape,
    "aten.unsqueeze": _Reader.reshape,
    "aten.squeeze": _Reader.reshape,
    "aten.slice": _Reader.reshape,
    "aten.dropout": _Reader.passes,
    "aten.dropout_": _Reader.passes,
    "aten.contiguous": _Reader.passes,
    "aten.alias": _Reader.passes,
}


def _operator_name(target: Any) -> str:
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


def _arguments(node: fx.Node) -> dict[str, Any]:
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


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = list(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _shift(bias: Tensor | None, channels: int) -> Tensor:
    return torch.zeros(channels, dtype=torch.float64) if bias is None else bias.double()
