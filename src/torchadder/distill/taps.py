"""Which layers of two nets are compared, and how their outputs are read.

Layers are matched by name. Outputs are read through forward hooks that live as long as a `with`
block: outside of it a net carries nothing of distillation. What is done with the outputs is not
known here.
"""

from __future__ import annotations

import contextlib
import fnmatch
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from torchadder.convert.layers import is_layer
from torchadder.convert.norms import is_norm
from torchadder.convert.tracing import trace
from torchadder.distill.dry_run import dry_run
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
    `layer1` ... of a ResNet. In place of a direct child that is such a layer it is the first
    normalisation that its output reaches in the forward, if that is a direct child, too, and no
    layer lies between; else the layer itself. Where `torch.fx` cannot follow the forward, the order
    of registration decides: of as many normalisations as convolutions it is the one of the same
    number, else the only one before the next layer. (Our reading: the papers tap the ends of groups
    of blocks.)

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
    norms = _norms_behind(student, [name for name in inner if "." not in name])
    stages = []
    for name in inner:
        child = norms.get(name, name.partition(".")[0])
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
    """Raise ValueError unless they are of equal widths, listing both nets' layers that are not.

    Widths that `find_widths` does not find are left to the check of the first batch.
    """
    nets = {"student": student, "teacher": teacher}
    widths = [find_widths(net, names) for net in nets.values()]
    unequal = [
        name for name in names if len({found[name] for found in widths if name in found}) > 1
    ]
    if unequal:
        sides = [
            f"{_listed([_describe_part(net, name, found[name]) for name in unequal])} in the "
            f"{role} {_name(net)}"
            for (role, net), found in zip(nets.items(), widths, strict=True)
        ]
        raise ValueError(f"{what} needs layers of equal widths, got {' and '.join(sides)}")


def find_widths(net: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """Return the numbers of channels that parts of a net put out, as far as they are sure.

    That is the part's own number if it is a layer that has one, else that of its output in a run
    without data, see `dry_run`. Parts of which neither is known are left out.

    Args:
        net: the net.
        names: names of parts.
    """
    parts = {name: get_layer(net, name) for name in names}
    own = {name: _own_width(part) for name, part in parts.items()}
    known = {name: width for name, width in own.items() if width is not None}
    others = {name: part for name, part in parts.items() if name not in known}
    shapes = dry_run(getattr(net, "_orig_mod", net), others) if others else {}
    return known | {name: shape[1] for name, shape in shapes.items() if len(shape) > 1}


def num_channels(net: nn.Module, name: str) -> int:
    """Return the number of channels that the part called `name` puts out, or a guess.

    It is sure for a layer that has such a number. Else it is that of the last layer in the part
    that has one, or, where none has, such as in an activation function, of the last layer before
    it: in the order of registration, so wrong for parts that join maps. `find_widths` does not
    guess.

    Raises:
        ValueError: there is no such layer.
    """
    layers = _layers(net)
    inside = list(layers[name].modules())
    before = list(itertools.takewhile(lambda layer: layer is not layers[name], layers.values()))
    for layer in (*reversed(inside), *reversed(before)):
        channels = _own_width(layer)
        if channels is not None:
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


def input_key(layer: nn.Module, keywords: Mapping[str, Any]) -> str:
    """Name of a layer's first argument, in a call that gives all of them by keyword."""
    first = next(iter(inspect.signature(layer.forward).parameters))
    return first if first in keywords else next(iter(keywords))


def first_input(layer: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """The first argument of a layer's call, given by position or by keyword."""
    return arguments[0] if arguments else keywords[input_key(layer, keywords)]


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
        def hook(layer: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> None:
            calls[name] += 1
            if readings is not None and name in readings:
                with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
                    output = readings[name](layer, first_input(layer, arguments, keywords))
            outputs[name] = output.detach() if detach else output
            checked = not activations and not torch.compiler.is_compiling()
            if checked and not output.is_inference():
                versions[name] = output._version

        return hook

    with contextlib.ExitStack() as hooks:
        for name in names:
            layer = get_layer(net, name)
            handle = layer.register_forward_hook(hook_for(name), with_kwargs=True)
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


def _norms_behind(net: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """The direct children that are the normalisations behind some of the direct children."""
    if not names:
        return {}
    core = getattr(net, "_orig_mod", net)
    modules = dict(core.named_modules())
    graph, _ = trace(core, is_leaf=lambda module: is_layer(module) or is_norm(module))
    norms = {
        name: _norm_by_order(core, name) if graph is None else _norm_reached(graph, modules, name)
        for name in names
    }
    return {name: norm for name, norm in norms.items() if norm is not None and "." not in norm}


def _norm_reached(graph: fx.Graph, modules: Mapping[str, nn.Module], name: str) -> str | None:
    """The first normalisation that the output of a layer reaches past no other layer or norm."""
    reached: set[fx.Node] = set()
    for node in graph.nodes:  # each stands behind its inputs
        called = str(node.target) if node.op == "call_module" else ""
        if called == name:
            reached.add(node)
        elif reached.intersection(node.all_input_nodes):
            if called and is_norm(modules[called]):
                return called
            if not called or not is_layer(modules[called]):
                reached.add(node)
    return None


def _norm_by_order(net: nn.Module, name: str) -> str | None:
    """The normalisation that belongs to a layer by the order in which both are registered."""
    children = {
        n: module for n, module in net.named_children() if is_layer(module) or is_norm(module)
    }
    names = list(children)
    convolutions = [n for n in names if _is_convolution(children[n])]
    norms = [n for n in names if is_norm(children[n])]
    behind = names[names.index(name) + 1 :]
    before_next = list(itertools.takewhile(norms.__contains__, behind))
    if len(convolutions) == len(norms):
        norm = norms[convolutions.index(name)]
    elif len(before_next) == 1:
        norm = before_next[0]
    else:
        return None
    widths = {_own_width(children[n]) for n in (name, norm)} - {None}
    return norm if len(widths) == 1 else None


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
    layers: dict[str, Any] = {n: m for n, m in _layers(net).items() if _is_convolution(m)}
    shown = [f"{name} {tuple(layer.weight.shape)}" for name, layer in layers.items()]
    return f"{_name(net)} with {_listed(shown) or 'no convolution'}"


def _describe_part(net: nn.Module, name: str, width: int) -> str:
    """A convolution's name and the shape of its weight, or the number of channels of a part."""
    part: Any = get_layer(net, name)
    if _is_convolution(part):
        return f"{name} {tuple(part.weight.shape)}"
    return f"{name} with {width} channels"


def _own_width(layer: nn.Module) -> int | None:
    """The number of channels that a layer states itself; None for what holds layers."""
    # What computes the weight of a layer is no layer in it.
    if any(child != "parametrizations" for child, _ in layer.named_children()):
        return None
    widths = (getattr(layer, key, None) for key in _WIDTHS)
    return next((width for width in widths if isinstance(width, int)), None)


def _listed(words: list[str]) -> str:
    """Words for one line of an error message; of many only the first ones and the last."""
    if len(words) > MAX_SHOWN:
        words = [*words[: MAX_SHOWN - 1], "...", words[-1]]
    return ", ".join(words)
