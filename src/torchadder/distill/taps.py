"""Which layers of two nets are compared, and how their outputs are read.

Layers are matched by name. Outputs are read through forward hooks that live as long as a `with`
block: outside of it a net carries nothing of distillation. What is done with the outputs is not
known here.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from torchadder.nn import AdderLinear, AdderModule

COMPILED = "_orig_mod."
"""What `torch.compile(net)` puts before the names of the layers of `net`."""

MAX_SHOWN = 8
"""Layers of a net that an error message lists."""

_WIDTHS = ("out_channels", "out_features", "num_features")
"""What layers call the number of channels that they put out."""


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
        ValueError: no such layer, one whose numbers of channels differ, or one that only one of
            the nets has: blocks of nets of different depths do not correspond by their names.

    Examples:
        >>> import torchadder as ta
        >>> cnn = ta.models.lenet5_bn(conv="conv")
        >>> find_taps(ta.models.lenet5_bn(conv="adder"), cnn)
        ('conv2', 'conv3', 'conv4')
        >>> find_taps(ta.models.lenet5_bn(conv="conv"), cnn)
        ('conv2', 'conv3', 'conv4')
    """
    names = _find_layers(student, teacher)
    _check_partners(student, teacher)
    return check_taps(student, teacher, names)


def shared_layers(student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    """Return the names that `find_taps` would find in the layers that both nets have; any widths.

    Empty if there are none. Layers that only one of the nets has do not matter.
    """
    try:
        return tuple(_find_layers(student, teacher))
    except ValueError:
        return ()


def check_taps(student: nn.Module, teacher: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return the convolution-like layers that `names` stands for if the nets can be compared there.

    Args:
        student: the net that learns.
        teacher: the net it learns from.
        names: names as in `named_modules()`, or shell patterns such as "layer2.*.conv1", which
            stand for layers of `shared_layers`; what `torch.compile` adds to names may be
            left out.

    Raises:
        ValueError: no name or one given twice, a layer that a net does not have, that is no
            convolution or adder layer, or whose numbers of channels differ; the message lists the
            layers of both nets.
        TypeError: `names` is one string.
    """
    names = _expand(student, names, lambda: _find_layers(student, teacher))
    layers = _in_both(student, teacher, names)
    for name in names:
        for role, of_role in layers.items():
            if not _is_convolution(of_role[name]):
                raise ValueError(
                    f"taps names layer {name!r}, which is a {type(of_role[name]).__name__} in the "
                    f"{role}; wanted a convolution or its adder twin; {_both(student, teacher)}"
                )
    check_equal_channels(student, teacher, names, "the comparison of layers")
    return names


def find_stages(student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    """Return the names of the parts whose activations are worth comparing, in the student's order.

    These are the direct children of the net that hold layers of `shared_layers`, such as the stages
    `layer1` ... of a ResNet, and behind a direct child that is such a layer the first normalisation
    that follows it. (Our reading: the papers tap the ends of groups of blocks.)

    Args:
        student: the net that learns.
        teacher: a net with the same layer names, of any width.

    Raises:
        ValueError: no such part.

    Examples:
        >>> import torchadder as ta
        >>> nets = [ta.models.resnet20(conv=kind) for kind in ("adder", "conv")]
        >>> find_stages(*nets)
        ('layer1', 'layer2', 'layer3')
        >>> nets = [ta.models.lenet5_bn(conv=kind) for kind in ("adder", "conv")]
        >>> find_stages(*nets)
        ('bn2', 'bn3', 'bn4')
    """
    inner = _find_layers(student, teacher)
    theirs = _layers(teacher)
    children = [name.replace(COMPILED, "") for name in _children(student)]
    stages = []
    for name in inner:
        child = name.partition(".")[0]
        if child == name:
            layers = _layers(student)
            behind = children[children.index(name) + 1 :]
            child = next(
                (n for n in behind if isinstance(layers[n], nn.modules.batchnorm._NormBase)), name
            )
        if child not in stages and child in theirs:
            stages.append(child)
    if not stages:
        raise ValueError(
            f"no part of the nets to compare; name it with taps=; {_both(student, teacher)}"
        )
    return tuple(stages)


def match_layers(student: nn.Module, teacher: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return the parts of both nets that `names` stands for.

    Args:
        student: the net that learns.
        teacher: the net it learns from.
        names: names as in `named_modules()`, or shell patterns of such names. A pattern does not
            cross a dot: "layer?" stands for stages, "layer?.*" for blocks.

    Raises:
        ValueError: no name or one given twice, or a part that a net does not have; the message
            lists the layers of both nets.
        TypeError: `names` is one string.
    """
    names = _expand(student, names, lambda: [name for name in _layers(student) if name])
    _in_both(student, teacher, names)
    return names


def name_layers(net: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return the parts of one net that `names` stands for, see `match_layers`."""
    names = _expand(net, names, lambda: [name for name in _layers(net) if name])
    for name in names:
        if name not in _layers(net):
            raise ValueError(
                f"taps names layer {name!r}, which the student does not have; "
                f"it has {_describe(net)}"
            )
    return names


def find_head(net: nn.Module) -> str:
    """Return the name of the last multiplicative layer, the classifier.

    Raises:
        ValueError: there is none.
    """
    names = list(_multiplicative(_layers(net)))
    if not names:
        raise ValueError(f"{_name(net)} has no multiplicative layer; name a layer with taps=")
    return names[-1]


def check_equal_channels(
    student: nn.Module, teacher: nn.Module, names: Sequence[str], what: str
) -> None:
    """Raise ValueError unless they are of equal widths, listing both nets' layers that are not."""
    unequal = [name for name in names if num_channels(student, name) != num_channels(teacher, name)]
    if unequal:
        sides = [
            _listed([_describe_part(net, name) for name in unequal]) for net in (student, teacher)
        ]
        raise ValueError(
            f"{what} needs layers of equal widths, got {sides[0]} in the student "
            f"{_name(student)} and {sides[1]} in the teacher {_name(teacher)}"
        )


def num_channels(net: nn.Module, name: str) -> int:
    """Return the number of channels that the part called `name` puts out.

    That of the part itself, or of the last layer in it that has a number, or, where none has, such
    as in an activation function, of the last layer before it.

    Raises:
        ValueError: there is no such layer.
    """
    layers = _layers(net)
    inside = list(layers[name].modules())
    before = list(itertools.takewhile(lambda layer: layer is not layers[name], layers.values()))
    for layer in (*reversed(inside), *reversed(before)):
        # What computes the weight of a layer is no layer in it.
        inner = [child for child, _ in layer.named_children() if child != "parametrizations"]
        widths = (getattr(layer, key, None) for key in _WIDTHS)
        channels = next((width for width in widths if isinstance(width, int)), None)
        if channels is not None and not inner:
            return channels
    raise ValueError(f"the number of channels of {name!r} in {_name(net)} is not known")


def get_layer(net: nn.Module, name: str) -> nn.Module:
    """Return the layer called `name`, whether or not `net` or a part of it is compiled.

    Raises:
        ValueError: there is none.
    """
    layers = _layers(net)
    if name not in layers:
        raise ValueError(f"{type(net).__name__} has no layer {name!r}")
    return layers[name]


def module_key(name: str) -> str:
    """`name` as a key of `nn.ModuleDict`, which refuses dots."""
    return name.replace(".", "/")


Reading = Callable[[nn.Module, Tensor], Tensor]
"""What is read of a layer and its input, in place of its output."""


@contextlib.contextmanager
def capture(
    net: nn.Module,
    names: Sequence[str],
    *,
    detach: bool,
    activations: bool = False,
    readings: Mapping[str, Reading] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named layers while `net` runs inside the `with` block.

    The dictionary is filled by the forward pass and checked at the end of the block; the hooks are
    removed there whatever happens. Outputs are not copied.

    Args:
        net: the net; may be compiled, if it has not run before in the mode (train or eval,
            with or without gradients) it is now run in.
        names: names of layers.
        detach: whether to cut the outputs from the graph.
        activations: whether an output may be overwritten in place by a later layer, such as
            `nn.ReLU(inplace=True)`; what is read then is the result.
        readings: functions of a layer and its input, by name of the layer, whose results are read
            in place of the layer's output.

    Raises:
        RuntimeError: a layer did not run, ran more than once (a shared layer), or its output was
            overwritten in place by a later layer without leave.

    Examples:
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
            if readings is not None and name in readings:
                with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
                    output = readings[name](layer, inputs[0])
            outputs[name] = output.detach() if detach else output
            checked = not activations and not torch.compiler.is_compiling()
            if checked and not output.is_inference():
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


def _children(net: nn.Module) -> list[str]:
    """Names of the direct children."""
    return [name for name, _ in getattr(net, "_orig_mod", net).named_children()]


def _find_layers(student: nn.Module, teacher: nn.Module) -> list[str]:
    """The layers of `find_taps`, whatever their widths."""
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
            f"no layer to compare: no adder layer or inner convolution has the same name in both "
            f"nets; build both as the same architecture or name the layers with taps=; "
            f"{_both(student, teacher)}"
        )
    return names


def _check_partners(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ValueError, naming them, if one net has adder layers or convolutions without partner.

    The first and the last multiplicative layer of a net need none.
    """
    layers = {"student": _layers(student), "teacher": _layers(teacher)}
    for role, other in (("student", "teacher"), ("teacher", "student")):
        inner = list(_multiplicative(layers[role]))[1:-1]
        alone = [
            name
            for name, layer in layers[role].items()
            if _is_convolution(layer)
            and (name in inner or isinstance(layer, AdderModule))
            and not _is_convolution(layers[other].get(name))
        ]
        if alone:
            raise ValueError(
                f"these layers of the {role} have no partner of their name in the {other}: "
                f"{_listed(alone)}; name the layers to compare with taps=; "
                f"{_both(student, teacher)}"
            )


def _expand(
    net: nn.Module, names: Sequence[str], candidates: Callable[[], list[str]]
) -> tuple[str, ...]:
    """`names` with every pattern replaced by the candidates that it fits, in their order."""
    if isinstance(names, str):
        raise TypeError(f"taps must be a sequence of layer names, got the string {names!r}")
    if not names:
        raise ValueError("taps is empty; leave it out to find the layers, or use beta=0")
    found: list[str] = []
    for name in (name.replace(COMPILED, "") for name in names):
        fitting = [name]
        if set(name) & set("*?["):
            fitting = [
                each for each in candidates() if fits_pattern(each, name) and each not in found
            ]
            if not fitting and not any(fits_pattern(each, name) for each in candidates()):
                known = ", ".join(candidates())
                raise ValueError(f"taps: no layer fits the pattern {name!r}; there are {known}")
        for each in fitting:
            if each in found:
                raise ValueError(f"taps names layer {each!r} more than once")
            found.append(each)
    return tuple(found)


def fits_pattern(name: str, pattern: str) -> bool:
    """Whether a name fits a shell pattern, part by part between the dots."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _in_both(
    student: nn.Module, teacher: nn.Module, names: Sequence[str]
) -> dict[str, dict[str, nn.Module]]:
    """The layers of both nets by role, or ValueError if one of `names` is missing."""
    layers = {"student": _layers(student), "teacher": _layers(teacher)}
    for name in names:
        for role, of_role in layers.items():
            if name not in of_role:
                raise ValueError(
                    f"taps names layer {name!r}, which the {role} does not have; "
                    f"{_both(student, teacher)}"
                )
    return layers


def _is_convolution(layer: nn.Module | None) -> bool:
    return isinstance(layer, _ConvNd | AdderModule) and not isinstance(layer, AdderLinear)


def _has_adder(layers: dict[str, nn.Module]) -> bool:
    return any(isinstance(layer, AdderModule) for layer in layers.values())


def _multiplicative(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    return {n: layer for n, layer in layers.items() if isinstance(layer, _ConvNd | nn.Linear)}


def _name(net: nn.Module) -> str:
    return type(getattr(net, "_orig_mod", net)).__name__


def _both(student: nn.Module, teacher: nn.Module) -> str:
    """Both nets' classes, layers and widths, for one line of an error message."""
    return f"the student is {_describe(student)}, the teacher {_describe(teacher)}"


def _describe(net: nn.Module) -> str:
    layers = {n: layer for n, layer in _layers(net).items() if _is_convolution(layer)}
    shown = [_describe_part(net, name) for name in layers]
    return f"{_name(net)} with {_listed(shown) or 'no convolution'}"


def _describe_part(net: nn.Module, name: str) -> str:
    """A layer's name and the shape of its weight, or the number of channels of another part."""
    part = _layers(net)[name]
    if _is_convolution(part):
        return f"{name} {tuple(part.weight.shape)}"  # type: ignore[union-attr]
    return f"{name} with {num_channels(net, name)} channels"


def _listed(words: list[str]) -> str:
    """Words for one line of an error message; of many only the first ones and the last."""
    if len(words) > MAX_SHOWN:
        words = [*words[: MAX_SHOWN - 1], "...", words[-1]]
    return ", ".join(words)
