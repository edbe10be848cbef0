"""What a net in evaluation mode computes, read from the graph that `torch.export` writes down.

Whatever Python its forward is made of: every batch norm is folded into the layer before it, and the
addition of a residual and a ReLU are joined to the layer they follow. A net that does something
else is refused, with the layer and the reason.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from torchadder.ops import Geometry
from torchadder.quantize.graph import FloatGraph, Kind, QuantizationError, Step


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
        self.constants: dict[fx.Node, Tensor] = {}

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
            len(_shape(node)) == 4 and (len(outputs) > 1 or math.prod(_shape(node)[2:]) > 1)
            for node in outputs
        )
        names = tuple(self.names[node] for node in outputs)
        return FloatGraph(source, names, are_maps, list(self.steps.values()), self.module, last)

    def _outputs(self, node: fx.Node) -> tuple[fx.Node, ...]:
        values: Any = node.args[0]
        for value in values:
            if not isinstance(value, fx.Node) or value not in self.names:
                raise QuantizationError(f"the net returns {value}, which no image decides")
            if len(_shape(value)) not in (2, 4):
                raise QuantizationError(
                    f"the net returns a tensor of shape {tuple(_shape(value))}, wanted "
                    "(N, classes) or (N, C, H, W)"
                )
        return tuple(values)

    def _call(self, node: fx.Node) -> None:
        if self._is_constant(node):
            self.constants[node] = self._compute(node)
            return
        name = _operator_name(node.target)
        handler = _HANDLERS.get(name)
        if handler is None:
            raise QuantizationError(f"{layer_of(node)}: {name} cannot be done in integers")
        handler(self, node)

    def _add(self, node: fx.Node, step: Step) -> None:
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
        # An addition that was joined to a layer is no reader any more, but the layer's step is.
        return readers == {node} and not any(value in step.inputs for step in self.steps.values())

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
                parameter=_parameter(arguments["weight"]),
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
                parameter=_parameter(arguments["weight"]),
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
        self._affine(node, self.value(arguments["input"], node), scale, shift)

    def _affine(self, node: fx.Node, value: str, scale: Tensor, shift: Tensor) -> None:
        before = self.steps.get(value)
        if (
            before is not None
            and before.kind in ("adder", "conv", "affine")
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

    def group_norm(self, node: fx.Node) -> None:
        """A step of its own: its statistics are those of the image, so nothing can be folded."""
        arguments = _arguments(node)
        weight, bias = self.tensor(arguments.get("weight")), self.tensor(arguments.get("bias"))
        channels = _shape(node)[1]
        if len(_shape(node)) != 4:
            raise QuantizationError(f"{layer_of(node)}: group norms take (N, C, H, W) only")
        ones = torch.ones(channels, dtype=torch.float64)
        self._add(
            node,
            Step(
                "group_norm",
                layer_of(node),
                [self.value(arguments["input"], node)],
                node.name,
                parameter=layer_of(node),
                scale=ones if weight is None else weight.double(),
                shift=_shift(bias, channels),
                num_groups=arguments["num_groups"],
                eps=arguments["eps"],
            ),
        )

    def multiply(self, node: fx.Node) -> None:
        """A factor for each channel, as of a frozen batch norm."""
        value, factor = self._value_and_constant(node)
        self._affine(node, value, factor, torch.zeros_like(factor))

    def _value_and_constant(self, node: fx.Node) -> tuple[str, Tensor]:
        """What an operation reads, and the numbers for each channel that it takes, float64."""
        one, two = node.args[:2]
        source, other = (one, two) if one in self.names else (two, one)
        channels = _shape(node)[1]
        if isinstance(other, int | float):
            numbers: Tensor | None = torch.tensor(float(other))
        elif isinstance(other, fx.Node) and (other.op == "get_attr" or other in self.constants):
            numbers = self.tensor(other)
        else:
            numbers = None
        if numbers is not None and numbers.numel() > 1:
            shape = (1,) * (4 - numbers.dim()) + tuple(numbers.shape)
            numbers = numbers if shape == (1, channels, 1, 1) else None
        if numbers is None or len(_shape(source)) != 4:
            raise QuantizationError(
                f"{layer_of(node)}: {_operator_name(node.target)} of anything but numbers for each "
                "channel cannot be done in integers"
            )
        return self.value(source, node), numbers.double().flatten().expand(channels).clone()

    # What joins a layer ---------------------------------------------------------------------------

    def relu(self, node: fx.Node) -> None:
        """Joined to the step before, unless something else reads its value without the ReLU."""
        value = self.value(node.args[0], node)
        before = self.steps.get(value)
        if (
            before is not None
            and before.kind in ("adder", "conv", "add", "affine", "group_norm")
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
        """A residual: joined to one of the two layers, if nothing else reads its value.

        To the later one if it can be; the earlier one is moved behind the other value.
        """
        if node.kwargs.get("alpha", 1) != 1:
            raise QuantizationError(f"{layer_of(node)}: an addition with a factor")
        if any(argument not in self.names for argument in node.args[:2]):
            value, shift = self._value_and_constant(node)
            self._affine(node, value, torch.ones_like(shift), shift)
            return
        values = [self.value(argument, node) for argument in node.args[:2]]
        one, two = (_shape(argument) for argument in node.args[:2])
        if one[1:] != two[1:]:
            raise QuantizationError(f"{layer_of(node)}: an addition of unequal shapes")
        order = list(self.steps)
        values.sort(key=lambda value: order.index(value) if value in order else -1)
        for other, value in (values, values[::-1]):
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
                self.steps[value] = self.steps.pop(value)
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

    def thinned(self, node: fx.Node) -> None:
        """Every so many rows or columns: a max pool of one pixel."""
        arguments = _arguments(node)
        dim, step = arguments["dim"], arguments["step"]
        shape = _shape(node.args[0])
        whole = not arguments["start"] and (arguments["end"] or shape[dim]) >= shape[dim]
        if step == 1 or len(shape) != 4 or dim not in (2, 3) or not whole:
            self.reshape(node)
            return
        value = self.value(arguments["self"], node)
        stride = (step, 1) if dim == 2 else (1, step)
        before = self.steps.get(value)
        if (
            before is not None
            and before.kind == "max_pool"
            and before.kernel == (1, 1)
            and before.window is not None
            and self.only_reader(value, node)
        ):
            tall, wide = before.window.stride
            before.window = before.window._replace(stride=(tall * stride[0], wide * stride[1]))
            self.names[node] = value
            return
        window = Geometry(stride, (0, 0), (1, 1), 1)
        self._add(
            node,
            Step("max_pool", layer_of(node), [value], node.name, window=window, kernel=(1, 1)),
        )

    def upsample(self, node: fx.Node) -> None:
        """Nearest neighbours by whole factors."""
        arguments = _arguments(node)
        before, after = _shape(node.args[0])[2:], _shape(node)[2:]
        if any(new % old for old, new in zip(before, after, strict=True)):
            raise QuantizationError(
                f"{layer_of(node)}: enlarging {before[0]}x{before[1]} to {after[0]}x{after[1]} is "
                "no whole factor"
            )
        factor = (after[0] // before[0], after[1] // before[1])
        # By factors instead of sizes, so that the graph runs on images of other sizes, too.
        node.args = (node.args[0], None, [float(number) for number in factor])
        value = self.value(arguments["input"], node)
        self._add(node, Step("upsample", layer_of(node), [value], node.name, factor=factor))

    def passes(self, node: fx.Node) -> None:
        """Dropout in evaluation mode and the like."""
        self.names[node] = self.value(node.args[0], node)


_Handler = Callable[[_Reader, fx.Node], None]

_HANDLERS: dict[str, _Handler] = {
    "torchadder.adder2d": _Reader.layer,
    "aten.conv2d": _Reader.layer,
    "aten.linear": _Reader.linear,
    "aten.batch_norm": _Reader.batch_norm,
    "aten.group_norm": _Reader.group_norm,
    "aten.mul": _Reader.multiply,
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
    "aten.slice": _Reader.thinned,
    "aten.upsample_nearest2d": _Reader.upsample,
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


def _parameter(node: Any) -> str:
    """Where a weight is kept; nowhere if it was computed."""
    return str(node.target) if node.op == "get_attr" else ""


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = list(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _shift(bias: Tensor | None, channels: int) -> Tensor:
    return torch.zeros(channels, dtype=torch.float64) if bias is None else bias.double()
