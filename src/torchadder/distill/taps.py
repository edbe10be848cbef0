"""Which layers of two nets are compared, and how their outputs are read.

Layers are matched by name. Outputs are read through forward hooks that live as long as a `with`
block: outside of it a net carries nothing of distillation. What is done with the outputs is not
known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from torchadder.nn import AdderLinear, AdderModule

COMPILED = "_orig_mod."
"""What `torch.compile(net)` puts before the names of the layers of `net`."""


def find_taps(student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that are worth comparing, in the student's order.

    These are the convolution-like layers that both nets have under the same name and that are
    adder layers in at least one of them. If neither net has an adder layer, they are the
    convolutions that an adder net of the same shape would replace: all but the first and the last
    multiplicative layer.

    Args:
        student: the net that learns.
        teacher: a net with the same layer names.

    Raises:
        ValueError: no such layer, or one whose numbers of channels differ.

    Example:
        >>> import torchadder as ta
        >>> cnn = ta.models.lenet5_bn(conv="conv")
        >>> find_taps(ta.models.lenet5_bn(conv="adder"), cnn)
        ('conv2', 'conv3', 'conv4')
        >>> find_taps(ta.models.lenet5_bn(conv="conv"), cnn)
        ('conv2', 'conv3', 'conv4')
    """
    ours, theirs = _layers(student), _layers(teacher)
    shared = [
        name
        for name, layer in ours.items()
        if _is_convolution(layer) and _is_convolution(theirs.get(name))
    ]
    names = [
        name
        for name in shared
        if isinstance(ours[name], AdderModule) or isinstance(theirs[name], AdderModule)
    ]
    if not names and not _has_adder(ours) and not _has_adder(theirs):
        inner = list(_multiplicative(ours))[1:-1]
        names = [name for name in shared if name in inner]
    if not names:
        raise ValueError(
            f"no layer to compare: no adder layer or inner convolution has the same name in the "
            f"student {_describe(student, ours)} and in the teacher {_describe(teacher, theirs)}; "
            f"build both as the same architecture or name the layers with taps="
        )
    return check_taps(student, teacher, names)


def check_taps(student: nn.Module, teacher: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return `names` as a tuple if both nets have comparable layers of these names.

    Args:
        student: the net that learns.
        teacher: the net it learns from.
        names: names as in `named_modules()`; what `torch.compile` adds to them may be left out.

    Raises:
        ValueError: no name or one given twice, a layer that a net does not have, that is no
            convolution or adder layer, or whose numbers of channels differ.
        TypeError: `names` is one string.
    """
    if isinstance(names, str):
        raise TypeError(f"taps must be a sequence of layer names, got the string {names!r}")
    names = tuple(name.replace(COMPILED, "") for name in names)
    if not names:
        raise ValueError("taps is empty; leave it out to find the layers, or use beta=0")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"taps names layer {name!r} more than once")
        channels = []
        for role, net in (("student", student), ("teacher", teacher)):
            layers = _layers(net)
            if name not in layers:
                raise ValueError(
                    f"taps names layer {name!r}, which the {role} {_describe(net, layers)} "
                    f"does not have"
                )
            if not _is_convolution(layers[name]):
                raise ValueError(
                    f"taps names layer {name!r}, which is a {type(layers[name]).__name__} in the "
                    f"{role} {_describe(net, layers)}; wanted a convolution or its adder twin"
                )
            channels.append(num_channels(net, name))
        if channels[0] != channels[1]:
            raise ValueError(
                f"layer {name!r} has {channels[0]} output channels in the student "
                f"{_name(student)} and {channels[1]} in the teacher {_name(teacher)}; "
                f"the nets must have the same shape"
            )
    return names


def num_channels(net: nn.Module, name: str) -> int:
    """Return the number of output channels of the layer called `name`."""
    return int(get_layer(net, name).out_channels)  # type: ignore[arg-type]


def get_layer(net: nn.Module, name: str) -> nn.Module:
    """Return the layer called `name`, whether or not `net` or a part of it is compiled."""
    return _layers(net)[name]


@contextlib.contextmanager
def capture(net: nn.Module, names: Sequence[str], *, detach: bool) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named layers while `net` runs inside the `with` block.

    The dictionary is filled by the forward pass and checked at the end of the block; the hooks are
    removed there whatever happens. Outputs are not copied.

    Args:
        net: the net; may be compiled, if it has not run before in the mode (train or eval,
            with or without gradients) it is now run in.
        names: names of layers.
        detach: whether to cut the outputs from the graph.

    Raises:
        RuntimeError: a layer did not run, ran more than once (a shared layer), or its output was
            overwritten in place by a later layer.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        >>> with capture(net, ["0"], detach=True) as outputs:
        ...     _ = net(torch.zeros(2, 3, 5, 5))
        >>> outputs["0"].shape
        torch.Size([2, 4, 5, 5])
    """
    outputs: dict[str, Tensor] = {}
    calls = dict.fromkeys(names, 0)
    versions: dict[str, int] = {}

    def hook_for(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            calls[name] += 1
            outputs[name] = output.detach() if detach else output
            if not torch.compiler.is_compiling() and not output.is_inference():
                versions[name] = output._version

        return hook

    with contextlib.ExitStack() as hooks:
        for name in names:
            handle = get_layer(net, name).register_forward_hook(hook_for(name))
            hooks.callback(handle.remove)
        yield outputs
    for name, count in calls.items():
        if count != 1:
            raise RuntimeError(
                f"layer {name!r} of {_name(net)} ran {count} times in one forward pass, wanted "
                f"once; leave it out of taps"
                + ("" if count else " (a net compiled and run earlier must be compiled again)")
            )
    for name, version in versions.items():
        if outputs[name]._version != version:
            raise RuntimeError(
                f"the output of layer {name!r} of {_name(net)} was overwritten in place by the "
                f"layer behind it; put a normalisation between them or use inplace=False"
            )


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    """All modules by name, without the marks of `torch.compile`."""
    return {name.replace(COMPILED, ""): module for name, module in net.named_modules()}


def _is_convolution(layer: nn.Module | None) -> bool:
    return isinstance(layer, _ConvNd | AdderModule) and not isinstance(layer, AdderLinear)


def _has_adder(layers: dict[str, nn.Module]) -> bool:
    return any(isinstance(layer, AdderModule) for layer in layers.values())


def _multiplicative(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    return {n: layer for n, layer in layers.items() if isinstance(layer, _ConvNd | nn.Linear)}


def _name(net: nn.Module) -> str:
    return type(getattr(net, "_orig_mod", net)).__name__


def _describe(net: nn.Module, layers: dict[str, nn.Module]) -> str:
    """The class of the net and the names of its convolutions, for one line of an error message."""
    names = [name for name, layer in layers.items() if _is_convolution(layer)]
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"{_name(net)} (convolutions and adder layers: {shown or 'none'})"
