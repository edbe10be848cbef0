"""Layers, norms, additions and ReLUs of an exported graph as steps.

Every batch norm is folded into the layer before it, and the addition of a residual and a ReLU are
joined to the layer they follow.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from torchadder.ops import Geometry
from torchadder.quantize.graph import Kind, QuantizationError, Step
from torchadder.quantize.reader import (
    Reader,
    arguments_of,
    bias_of,
    layer_of,
    operator_name,
    pair,
    parameter_of,
    shape_of,
)


def layer(reader: Reader, node: fx.Node) -> None:
    """An adder layer or a convolution."""
    arguments = arguments_of(node)
    kind: Kind = "adder" if "adder2d" in operator_name(node.target) else "conv"
    weight = reader.tensor(arguments["weight"])
    assert weight is not None
    if arguments.get("padding") in ("same", "valid"):
        raise QuantizationError(f"{layer_of(node)}: padding must be given in numbers")
    window = Geometry(
        pair(arguments.get("stride", 1)),
        pair(arguments.get("padding", 0)),
        pair(arguments.get("dilation", 1)),
        arguments.get("groups", 1),
    )
    reader.add(
        node,
        Step(
            kind,
            layer_of(node),
            [reader.value(arguments["input"], node)],
            node.name,
            parameter=parameter_of(arguments["weight"]),
            weight=weight,
            window=window,
            scale=torch.ones(len(weight), dtype=torch.float64),
            shift=bias_of(reader.tensor(arguments.get("bias")), len(weight)),
        ),
    )


def linear(reader: Reader, node: fx.Node) -> None:
    """A linear layer: a convolution of images of one pixel."""
    arguments = arguments_of(node)
    weight = reader.tensor(arguments["weight"])
    assert weight is not None
    if len(shape_of(node)) != 2:
        raise QuantizationError(f"{layer_of(node)}: linear layers take (N, C) only")
    reader.add(
        node,
        Step(
            "conv",
            layer_of(node),
            [reader.value(arguments["input"], node)],
            node.name,
            parameter=parameter_of(arguments["weight"]),
            weight=weight[:, :, None, None],
            window=Geometry((1, 1), (0, 0), (1, 1), 1),
            scale=torch.ones(len(weight), dtype=torch.float64),
            shift=bias_of(reader.tensor(arguments.get("bias")), len(weight)),
        ),
    )


def batch_norm(reader: Reader, node: fx.Node) -> None:
    """Folded into the layer before; a step of its own where there is none."""
    arguments = arguments_of(node)
    mean = reader.tensor(arguments["running_mean"])
    variance = reader.tensor(arguments["running_var"])
    if mean is None or variance is None or arguments.get("training"):
        raise QuantizationError(f"{layer_of(node)}: a batch norm without running statistics")
    scale = torch.rsqrt(variance.double() + arguments["eps"])
    weight, bias = reader.tensor(arguments.get("weight")), reader.tensor(arguments.get("bias"))
    if weight is not None:
        scale = scale * weight.double()
    shift = bias_of(bias, len(mean)) - mean.double() * scale
    _affine(reader, node, reader.value(arguments["input"], node), scale, shift)


def _affine(reader: Reader, node: fx.Node, value: str, scale: Tensor, shift: Tensor) -> None:
    before = reader.joinable(value, node, "adder", "conv", "affine")
    if before is not None and len(before.inputs) == 1:
        assert before.scale is not None
        assert before.shift is not None
        before.shift = before.shift * scale + shift
        before.scale = before.scale * scale
        reader.names[node] = value
        return
    reader.add(node, Step("affine", layer_of(node), [value], node.name, scale=scale, shift=shift))


def group_norm(reader: Reader, node: fx.Node) -> None:
    """A step of its own: its statistics are those of the image, so nothing can be folded."""
    arguments = arguments_of(node)
    weight, bias = reader.tensor(arguments.get("weight")), reader.tensor(arguments.get("bias"))
    channels = shape_of(node)[1]
    if len(shape_of(node)) != 4:
        raise QuantizationError(f"{layer_of(node)}: group norms take (N, C, H, W) only")
    ones = torch.ones(channels, dtype=torch.float64)
    reader.add(
        node,
        Step(
            "group_norm",
            layer_of(node),
            [reader.value(arguments["input"], node)],
            node.name,
            parameter=layer_of(node),
            scale=ones if weight is None else weight.double(),
            shift=bias_of(bias, channels),
            num_groups=arguments["num_groups"],
            eps=arguments["eps"],
        ),
    )


def multiply(reader: Reader, node: fx.Node) -> None:
    """A factor for each channel, as of a frozen batch norm."""
    value, factor = _value_and_constant(reader, node)
    _affine(reader, node, value, factor, torch.zeros_like(factor))


def _value_and_constant(reader: Reader, node: fx.Node) -> tuple[str, Tensor]:
    """What an operation reads, and the numbers for each channel that it takes, float64."""
    one, two = node.args[:2]
    source, other = (one, two) if one in reader.names else (two, one)
    channels = shape_of(node)[1]
    if isinstance(other, int | float):
        numbers: Tensor | None = torch.tensor(float(other))
    elif isinstance(other, fx.Node) and (other.op == "get_attr" or other in reader.constants):
        numbers = reader.tensor(other)
    else:
        numbers = None
    if numbers is not None and numbers.numel() > 1:
        shape = (1,) * (4 - numbers.dim()) + tuple(numbers.shape)
        numbers = numbers if shape == (1, channels, 1, 1) else None
    if numbers is None or len(shape_of(source)) != 4:
        raise QuantizationError(
            f"{layer_of(node)}: {operator_name(node.target)} of anything but numbers for each "
            "channel cannot be done in integers"
        )
    return reader.value(source, node), numbers.double().flatten().expand(channels).clone()


def relu(reader: Reader, node: fx.Node) -> None:
    """Joined to the step before, unless something else reads its value without the ReLU."""
    value = reader.value(node.args[0], node)
    before = reader.joinable(value, node, "adder", "conv", "add", "affine", "group_norm")
    if before is not None:
        before.relu = True
        reader.names[node] = value
        return
    channels = shape_of(node)[1]
    one = torch.ones(channels, dtype=torch.float64)
    reader.add(
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


def add(reader: Reader, node: fx.Node) -> None:
    """A residual: joined to one of the two layers, if nothing else reads its value.

    To the later one if it can be; the earlier one is moved behind the other value.
    """
    if node.kwargs.get("alpha", 1) != 1:
        raise QuantizationError(f"{layer_of(node)}: an addition with a factor")
    if any(argument not in reader.names for argument in node.args[:2]):
        value, shift = _value_and_constant(reader, node)
        _affine(reader, node, value, torch.ones_like(shift), shift)
        return
    values = [reader.value(argument, node) for argument in node.args[:2]]
    one, two = (shape_of(argument) for argument in node.args[:2])
    if one[1:] != two[1:]:
        raise QuantizationError(f"{layer_of(node)}: an addition of unequal shapes")
    order = list(reader.steps)
    values.sort(key=lambda value: order.index(value) if value in order else -1)
    for other, value in (values, values[::-1]):
        before = reader.joinable(value, node, "adder", "conv")
        if before is not None and len(before.inputs) == 1 and other != value:
            before.inputs.append(other)
            reader.steps[value] = reader.steps.pop(value)
            reader.names[node] = value
            return
    reader.add(node, Step("add", layer_of(node), values, node.name))
