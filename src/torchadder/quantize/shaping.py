"""Operators of an exported graph that change the shape of a value, as steps."""

from __future__ import annotations

import math
import sys

from torch import fx

from torchadder.ops import Geometry
from torchadder.quantize.graph import Kind, QuantizationError, Step
from torchadder.quantize.reader import (
    Reader,
    arguments_of,
    layer_of,
    operator_name,
    pair,
    shape_of,
)


def pool(reader: Reader, node: fx.Node) -> None:
    """Maxima or means over windows."""
    arguments = arguments_of(node)
    kind: Kind = "max_pool" if "max" in operator_name(node.target) else "avg_pool"
    if arguments.get("ceil_mode"):
        raise QuantizationError(f"{layer_of(node)}: pooling with ceil_mode")
    kernel = pair(arguments["kernel_size"])
    padding = pair(arguments.get("padding") or 0)
    if kind == "avg_pool" and (
        arguments.get("divisor_override")
        or (padding != (0, 0) and not arguments.get("count_include_pad", True))
    ):
        raise QuantizationError(f"{layer_of(node)}: a mean with another divisor")
    window = Geometry(
        pair(arguments.get("stride") or kernel),
        padding,
        pair(arguments.get("dilation", 1)),
        1,
    )
    value = reader.value(arguments["self"], node)
    reader.add(node, Step(kind, layer_of(node), [value], node.name, window=window, kernel=kernel))


def mean(reader: Reader, node: fx.Node) -> None:
    """Means over whole images."""
    arguments = arguments_of(node)
    dims = {dim % 4 for dim in arguments.get("dim") or ()}
    if dims != {2, 3} or len(shape_of(node.args[0])) != 4:
        raise QuantizationError(f"{layer_of(node)}: a mean over {arguments.get('dim')}")
    value = reader.value(arguments["self"], node)
    reader.takes_any_size = False
    reader.add(node, Step("avg_pool", layer_of(node), [value], node.name))


def adaptive_pool(reader: Reader, node: fx.Node) -> None:
    """Means over equal windows; a step only where there is more than one value in each."""
    arguments = arguments_of(node)
    reader.takes_any_size = False
    size = shape_of(node.args[0])[2:]
    wanted = pair(arguments["output_size"])
    if any(have % want for have, want in zip(size, wanted, strict=True)):
        raise QuantizationError(
            f"{layer_of(node)}: pooling of {size[0]}x{size[1]} to {wanted[0]}x{wanted[1]} has "
            "unequal windows"
        )
    kernel = (size[0] // wanted[0], size[1] // wanted[1])
    value = reader.value(arguments["self"], node)
    if kernel == (1, 1):
        reader.names[node] = value
        return
    window = Geometry(kernel, (0, 0), (1, 1), 1)
    reader.add(
        node, Step("avg_pool", layer_of(node), [value], node.name, window=window, kernel=kernel)
    )


def reshape(reader: Reader, node: fx.Node) -> None:
    """Changes of shape that keep the order of the values of an image of one pixel."""
    before, after = shape_of(node.args[0]), shape_of(node)
    value = reader.value(node.args[0], node)
    has_channels = len(after) > 1
    if has_channels and math.prod(before[1:]) == math.prod(after[1:]) == before[1] == after[1]:
        reader.names[node] = value
        return
    if len(after) == 2 and after[1] == math.prod(before[1:]):
        reader.takes_any_size = False
        reader.add(node, Step("flatten", layer_of(node), [value], node.name))
        return
    raise QuantizationError(
        f"{layer_of(node)}: {operator_name(node.target)} of {tuple(before[1:])} to "
        f"{tuple(after[1:])} cannot be done in integers"
    )


def thinned(reader: Reader, node: fx.Node) -> None:
    """Every so many rows or columns: a max pool of one pixel."""
    arguments = arguments_of(node)
    step, end = arguments["step"], arguments["end"]
    shape = shape_of(node.args[0])
    dim = arguments["dim"] % len(shape)
    is_open = end is None or (isinstance(end, int) and end >= sys.maxsize)
    whole = is_open or (dim > 0 and isinstance(end, int) and end >= shape[dim])
    whole &= arguments["start"] in (None, 0)
    if whole and not is_open and dim > 1:
        reader.takes_any_size = False
    if whole and step == 1:
        passes(reader, node)
        return
    if dim == 0:
        raise QuantizationError(
            f"{layer_of(node)}: a part of the batch cannot be done in integers, wanted all of it"
        )
    if len(shape) != 4 or dim == 1 or not whole:
        reshape(reader, node)
        return
    value = reader.value(arguments["self"], node)
    stride = (step, 1) if dim == 2 else (1, step)
    before = reader.joinable(value, node, "max_pool")
    if before is not None and before.kernel == (1, 1) and before.window is not None:
        tall, wide = before.window.stride
        before.window = before.window._replace(stride=(tall * stride[0], wide * stride[1]))
        reader.names[node] = value
        return
    window = Geometry(stride, (0, 0), (1, 1), 1)
    reader.add(
        node,
        Step("max_pool", layer_of(node), [value], node.name, window=window, kernel=(1, 1)),
    )


def upsample(reader: Reader, node: fx.Node) -> None:
    """Nearest neighbours by whole factors."""
    arguments = arguments_of(node)
    before, after = shape_of(node.args[0])[2:], shape_of(node)[2:]
    if any(new % old for old, new in zip(before, after, strict=True)):
        raise QuantizationError(
            f"{layer_of(node)}: enlarging {before[0]}x{before[1]} to {after[0]}x{after[1]} is "
            "no whole factor"
        )
    factor = (after[0] // before[0], after[1] // before[1])
    # By factors instead of sizes, so that the graph runs on images of other sizes, too.
    node.args = (node.args[0], None, [float(number) for number in factor])
    value = reader.value(arguments["input"], node)
    reader.add(node, Step("upsample", layer_of(node), [value], node.name, factor=factor))


def dropout(reader: Reader, node: fx.Node) -> None:
    """Nothing in evaluation mode, unless a forward asks for it nevertheless."""
    if arguments_of(node)["train"]:
        raise QuantizationError(
            f"{layer_of(node)}: dropout in evaluation mode (train=True) cannot be done in integers"
        )
    passes(reader, node)


def passes(reader: Reader, node: fx.Node) -> None:
    """What changes nothing."""
    reader.names[node] = reader.value(node.args[0], node)
