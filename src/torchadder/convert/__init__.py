"""Turn the convolutions of any model into adder layers, in place.

:func:`convert_` swaps ``nn.Conv1d``, ``nn.Conv2d``, ``nn.ConvTranspose2d`` and on request
``nn.Linear`` for their adder twins and reports, layer by layer, what was done and which
normalisation stands behind. It plans first and changes the model afterwards, so an error leaves the
model as it was. It knows modules; it runs no data, builds no normalisation and trains nothing.
The rules are explained in ``docs/convert.md``.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.module import _WrappedHook

from torchadder import nn as adder_nn
from torchadder.ops.geometry import check_rule

__all__ = ["AdderConfig", "ConversionReport", "LayerReport", "convert_"]

_CONV_ARGUMENTS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
# Each torch layer, its adder twin, and the attributes that are the twin's arguments.
_TWINS: dict[type[nn.Module], tuple[type[adder_nn.AdderModule], tuple[str, ...]]] = {
    nn.Conv1d: (adder_nn.Adder1d, _CONV_ARGUMENTS),
    nn.Conv2d: (adder_nn.Adder2d, _CONV_ARGUMENTS),
    nn.ConvTranspose2d: (adder_nn.AdderTranspose2d, (*_CONV_ARGUMENTS, "output_padding")),
    nn.Linear: (adder_nn.AdderLinear, ("in_features", "out_features")),
}
_LINEAR = (nn.Linear, adder_nn.AdderLinear)
_INITS = ("normal", "keep")

# Modules whose forward takes the weights of their children without calling them.
_WEIGHT_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

# What a subclass may define and still compute what its torch base computes.
_HARMLESS_DEFINITIONS = {"__init__", "__module__", "__doc__", "__qualname__", "__annotations__"} | {
    "__firstlineno__",
    "__static_attributes__",
    "__parameters__",
}

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True)
class AdderConfig:
    """What :func:`convert_` converts, and how.

    Attributes:
        keep: layers that stay multiplications: "first" and "last" (see :func:`convert_`), names of
            layers or of modules that contain them, or patterns over names ("*.downsample.0").
        grad: gradient rule of the new layers, see :mod:`torchadder.functional`.
        init: "normal" draws the weights from N(0, 1) and zeroes the biases, as AdderNet does;
            "keep" leaves the values of both.
        linear: whether ``nn.Linear`` is converted, too.

    Raises:
        ValueError: an unknown ``grad`` or ``init``, an empty name in ``keep``.
        TypeError: ``keep`` is no collection of strings, ``linear`` no bool.
    """

    keep: Collection[str] = ("first", "last")
    grad: str = "clip"
    init: str = "normal"
    linear: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.keep, str) or not isinstance(self.keep, Collection):
            raise TypeError(f"keep must be a tuple of names, got {self.keep!r}")
        for name in self.keep:
            if not isinstance(name, str):
                raise TypeError(f"keep must hold strings, got {name!r}")
            if not name:
                raise ValueError("keep must not hold an empty name")
        object.__setattr__(self, "keep", tuple(self.keep))
        check_rule(self.grad)
        if self.init not in _INITS:
            raise ValueError(f"init must be one of {', '.join(_INITS)}, got {self.init!r}")
        if not isinstance(self.linear, bool):
            raise TypeError(f"linear must be a bool, got {self.linear!r}")


@dataclass(frozen=True)
class LayerReport:
    """One convolution, linear or adder layer of a converted model.

    Attributes:
        name: path of the layer in the model.
        kind: class of the layer before the conversion.
        shape: shape of its weight, empty where it has none yet.
        action: "converted", "already adder", or "kept: " and the reason.
        norm: path of the normalisation behind the layer, "functional batch_norm" and the like for
            one that is no module, None for a layer without one or that stays a multiplication.
        norm_kind: class of that normalisation.
        found_by: how ``norm`` was looked for: "trace" (the graph of the model's forward) or
            "order" (the next module registered); None where it was not looked for.
        aliases: further names of the same module.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    action: str
    norm: str | None = None
    norm_kind: str | None = None
    found_by: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert_` did; ``str()`` is a table.

    Attributes:
        layers: every convolution, linear and adder layer, in the order of execution.
        order: where that order is from: "trace" or "order" (of registration).
        trace_error: why the model could not be traced, None if it could.
    """

    layers: tuple[LayerReport, ...]
    order: str
    trace_error: str | None = None

    @property
    def converted(self) -> list[str]:
        """Names of the layers that became adder layers in this call."""
        return [layer.name for layer in self.layers if layer.action == "converted"]

    @property
    def kept(self) -> dict[str, str]:
        """Why each layer that stays a multiplication does so, by name."""
        prefix = "kept: "
        return {
            layer.name: layer.action.removeprefix(prefix)
            for layer in self.layers
            if layer.action.startswith(prefix)
        }

    @property
    def missing_norm(self) -> list[str]:
        """Names of the layers converted in this call that have no normalisation behind them."""
        return [
            layer.name
            for layer in self.layers
            if layer.action == "converted" and layer.norm is None
        ]

    def __str__(self) -> str:
        rows = [("layer", "kind", "weight", "action", "norm behind")]
        for layer in self.layers:
            norm = "-" if layer.found_by is None else layer.norm or "MISSING"
            if layer.norm_kind is not None:
                norm += f" ({layer.norm_kind})"
            if layer.found_by == "order":
                norm += " by order"
            shape = "x".join(str(size) for size in layer.shape) or "-"
            rows.append((layer.name or "(model)", layer.kind, shape, layer.action, norm))
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        adders = sum(layer.action == "already adder" for layer in self.layers)
        lines.append(
            f"{len(self.converted)} converted ({len(self.missing_norm)} without a norm), "
            f"{len(self.kept)} kept, {adders} adder layers before"
        )
        if self.trace_error is not None:
            lines.append(f"not traced, so by order of registration: {self.trace_error}")
        return "\n".join(line.rstrip() for line in lines)


def convert_(
    model: nn.Module,
    config: AdderConfig | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> ConversionReport:
    """Swap the convolutions of ``model`` for adder layers, in place.

    "first" and "last" in ``config.keep`` are the first and the last of all convolution, linear and
    adder layers in the order of execution, which is read off the graph of ``model.forward``
    (``torch.fx``) and, where that cannot be had, taken to be the order of registration. Adder
    layers count, so a second call finds the same two layers and converts nothing. In a net that
    ends with ``nn.Linear``, that is the last one, and of the convolutions only the first is kept.

    The new layers hold the very parameters of the old ones (re-initialised in place unless
    ``config.init`` is "keep"), so optimizers, weight sharing, device, dtype, ``requires_grad`` and
    state-dict names hold on. Hooks and their handles, the training flag, own attributes and buffers
    move along; a module registered under several names stays one module.

    Left alone, with the reason in the report: subclasses that define more than ``__init__`` (their
    forward is their own), lazy layers, kinds without a twin (``nn.Conv3d``), layers whose weights
    their parent reads without calling them (``nn.MultiheadAttention``), and layers that share their
    weight with one that is kept.

    Args:
        model: any module, on any device, "meta" included.
        config: what to convert, ``AdderConfig()`` by default.
        filter_fn: called with each remaining layer and its name; False keeps the layer.

    Returns:
        The report, one row a layer.

    Raises:
        ValueError: the model itself is a layer to be replaced; a layer to be converted is
            parametrized or pruned; a name in ``keep`` matches no layer.
        TypeError: an argument is of another type.

    Warns:
        UserWarning: once, naming the converted layers without a normalisation behind them. The
            outputs of an adder layer are never positive and their size grows with the number of
            taps, so such nets rarely train.

    Example:
        >>> import torch, torchadder as ta
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        ...     torch.nn.Conv2d(8, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        ...     torch.nn.Flatten(), torch.nn.Linear(8, 10),
        ... )
        >>> report = ta.convert_(net)
        >>> report.converted, report.kept
        (['3'], {'0': 'first', '7': 'last'})
    """
    config = AdderConfig() if config is None else config
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, AdderConfig):
        raise TypeError(f"config must be an AdderConfig, got {type(config).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be callable, got {type(filter_fn).__name__}")
    if _twin_base(model) is not None:
        raise ValueError(
            f"model is itself a {type(model).__name__}, which cannot be replaced in place; wrap it "
            "in a module, for example nn.Sequential"
        )

    layers = _find_layers(model)
    graph, trace_error = _trace(model)
    order = [] if graph is None else _executed(graph, layers)
    order_source = "trace" if order else "order"
    if order:
        rank = {name: index for index, name in enumerate(order)}
        layers.sort(key=lambda layer: rank.get(layer.name, len(order)))
    else:
        order = [layer.name for layer in layers]
    _check_keep(config, layers)
    _plan(layers, config, filter_fn, order)

    norms = _NormsBehind(model, graph)
    rows = [
        LayerReport(
            layer.name,
            nn.utils.parametrize.type_before_parametrizations(layer.module).__name__,
            layer.shape,
            layer.action,
            aliases=tuple(layer.aliases),
            **(norms.of(layer) if layer.action in ("converted", "already adder") else {}),
        )
        for layer in layers
    ]
    report = ConversionReport(tuple(rows), order_source, trace_error)

    chosen = [layer for layer in layers if layer.action == "converted"]
    twins = [_build_twin(layer.module, config) for layer in chosen]
    for layer, twin in zip(chosen, twins, strict=True):
        _move_state(layer.module, twin)
        for parent, attribute in layer.places:
            setattr(parent, attribute, twin)
    if config.init == "normal":
        _reset(twins)
    if report.missing_norm:
        warnings.warn(
            "adder layers without a normalisation behind them, whose outputs are never positive: "
            + ", ".join(report.missing_norm),
            stacklevel=2,
        )
    return report


@dataclass
class _Layer:
    """A layer found in the model: its name, its places, and what becomes of it."""

    name: str
    module: nn.Module
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    action: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        weight = getattr(self.module, "weight", None)
        if not isinstance(weight, torch.Tensor) or nn.parameter.is_lazy(weight):
            return ()
        return tuple(weight.shape)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (_ConvNd, nn.Linear, adder_nn.AdderModule))


def _find_layers(model: nn.Module) -> list[_Layer]:
    """Convolution, linear and adder layers in order of registration, each module once."""
    layers = {m: _Layer(name, m) for name, m in model.named_modules() if _is_layer(m)}
    for parent_name, parent in model.named_modules():
        for attribute, child in parent._modules.items():
            if child in layers:
                layer = layers[child]
                layer.places.append((parent, attribute))
                name = f"{parent_name}.{attribute}" if parent_name else attribute
                if name != layer.name:
                    layer.aliases.append(name)
    return list(layers.values())


def _twin_base(module: nn.Module) -> type[nn.Module] | None:
    """The torch class that ``module`` computes as, if that class has an adder twin."""
    cls = nn.utils.parametrize.type_before_parametrizations(module)
    base = next((base for base in _TWINS if issubclass(cls, base)), None)
    if base is None or "forward" in vars(module):
        return None
    own = cls.__mro__[: cls.__mro__.index(base)]
    harmless = all(vars(c).keys() <= _HARMLESS_DEFINITIONS for c in own)
    return base if harmless else None


def _matches(entry: str, name: str) -> bool:
    return name == entry or name.startswith(entry + ".") or fnmatchcase(name, entry)


def _check_keep(config: AdderConfig, layers: list[_Layer]) -> None:
    names = [name for layer in layers for name in (layer.name, *layer.aliases)]
    for entry in config.keep:
        if entry not in ("first", "last") and not any(_matches(entry, name) for name in names):
            raise ValueError(f"keep names {entry!r}, which matches no layer of the model")


def _plan(
    layers: list[_Layer],
    config: AdderConfig,
    filter_fn: Callable[[nn.Module, str], bool] | None,
    order: list[str],
) -> None:
    """Write into each layer what is to be done with it."""
    for layer in layers:
        if isinstance(layer.module, adder_nn.AdderModule):
            layer.action = "already adder"
            continue
        reason = _reason_to_keep(layer, config, order)
        if reason is None and filter_fn is not None and not filter_fn(layer.module, layer.name):
            reason = "filter_fn"
        layer.action = "converted" if reason is None else f"kept: {reason}"
    _keep_tied(layers)
    for layer in layers:
        module = layer.module
        if layer.action == "converted" and (
            nn.utils.parametrize.is_parametrized(module) or "weight" not in module._parameters
        ):
            raise ValueError(
                f"layer {layer.name!r} is parametrized or pruned, so its weight is no parameter of "
                "its own; undo that first (and apply it to the adder layer), or name the layer in "
                "keep"
            )


def _reason_to_keep(layer: _Layer, config: AdderConfig, order: list[str]) -> str | None:
    for end, name in (("first", order[0]), ("last", order[-1])):
        if end in config.keep and layer.name == name:
            return end
    for entry in config.keep:
        if any(_matches(entry, name) for name in (layer.name, *layer.aliases)):
            return entry
    module = layer.module
    cls = nn.utils.parametrize.type_before_parametrizations(module)
    if not issubclass(cls, tuple(_TWINS)):
        return f"no adder twin of {cls.__name__}"
    if isinstance(module, nn.Linear) and not config.linear:
        return "linear"
    if isinstance(module, LazyModuleMixin):
        return "lazy, its shape is not known yet"
    if isinstance(module, NonDynamicallyQuantizableLinear) or any(
        isinstance(parent, _WEIGHT_READERS) for parent, _ in layer.places
    ):
        return "its parent reads the weight without calling the layer"
    if "forward" in vars(module):
        return "forward replaced on the instance"
    if _twin_base(module) is None:
        return f"subclass {cls.__name__}"
    return None


def _keep_tied(layers: list[_Layer]) -> None:
    """Keep the layers that share a parameter with a layer that is kept.

    Fresh adder weights would overwrite the other's.
    """
    changed = True
    while changed:
        changed = False
        owner = {
            id(parameter): layer.name
            for layer in layers
            if layer.action != "converted"
            for parameter in layer.module.parameters()
        }
        for layer in layers:
            tied = [owner[id(p)] for p in layer.module.parameters() if id(p) in owner]
            if layer.action == "converted" and tied:
                layer.action = f"kept: shares its weight with {tied[0]}"
                changed = True


def _build_twin(old: nn.Module, config: AdderConfig) -> adder_nn.AdderModule:
    """The adder layer of the same arguments, its parameters still without storage."""
    base = _twin_base(old)
    assert base is not None
    twin, names = _TWINS[base]
    arguments: dict[str, Any] = {name: getattr(old, name) for name in names}
    return twin(**arguments, bias=old.bias is not None, device="meta", grad=config.grad)


def _move_state(old: nn.Module, new: nn.Module) -> None:
    """Give ``new`` what ``old`` holds: parameters, buffers, hooks, own attributes.

    The hook dictionaries themselves move, so the handles that users hold can still remove hooks.
    """
    base = _twin_base(old)
    assert base is not None
    plain = base(*(1,) * (2 if base is nn.Linear else 3), device="meta")  # type: ignore[call-arg]
    for name, value in vars(old).items():
        if name not in vars(plain) and name != "_compiled_call_impl":
            vars(new)[name] = value
    for name in _HOOKS:
        vars(new)[name] = vars(old)[name]
    for hook in old._load_state_dict_pre_hooks.values():
        if isinstance(hook, _WrappedHook) and hook.with_module:
            hook.module = weakref.ref(new)
    vars(new)["_is_full_backward_hook"] = old._is_full_backward_hook
    new._parameters.update(old._parameters)
    new._buffers.update(old._buffers)
    new._non_persistent_buffers_set.update(old._non_persistent_buffers_set)
    new._modules.update(old._modules)
    new.training = old.training


def _reset(twins: Iterable[adder_nn.AdderModule]) -> None:
    """Draw the weights from N(0, 1) and zero the biases, shared ones once."""
    done: set[int] = set()
    for module in twins:
        for parameter, init in ((module.weight, nn.init.normal_), (module.bias, nn.init.zeros_)):
            if parameter is not None and id(parameter) not in done:
                done.add(id(parameter))
                init(parameter)


class _Tracer(fx.Tracer):
    """Follows a forward down to layers and norms, whatever package defines them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_layer(m) or _is_norm(m) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> tuple[fx.Graph | None, str | None]:
    """The graph of ``model.forward``, or None and the reason why there is none.

    Arguments with a default take it. The forward runs on a skeleton of the model, so that nothing
    that it stores or counts stays behind in the model.
    """
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=()):
            warnings.simplefilter("ignore")
            skeleton = _skeleton(model)
            defaults = {
                name: parameter.default
                for name, parameter in inspect.signature(skeleton.forward).parameters.items()
                if parameter.default is not inspect.Parameter.empty
            }
            graph = _Tracer(param_shapes_constant=True).trace(skeleton, concrete_args=defaults)
    except Exception as error:  # the forward is the user's code: on a symbol it may raise anything
        message = str(error).strip().split("\n")[0]
        return None, f"{type(error).__name__}: {message}"
    return graph, None


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy of the modules without data (meta tensors) and without hooks."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    for module in model.modules():
        for name in _HOOKS:
            memo[id(vars(module)[name])] = OrderedDict()
    return copy.deepcopy(model, memo)


def _executed(graph: fx.Graph, layers: list[_Layer]) -> list[str]:
    """Names of the layers that the graph calls, in the order of their first calls."""
    names = {layer.name for layer in layers}
    calls = (str(node.target) for node in graph.nodes if node.op == "call_module")
    return list(dict.fromkeys(name for name in calls if name in names))


_NORM_CLASSES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_NORM_FUNCTIONS = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}
_NORM_NAME = re.compile(r"Norm(?!al)")

# What may stand between a layer and its norm: it moves, picks, averages or joins values or scales
# them. Activations may not: behind an adder layer a ReLU sees negative numbers only.
_TRANSPARENT_CLASSES = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.modules.dropout._DropoutNd,
    nn.modules.padding._ConstantPadNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.pooling._MaxPoolNd,
)
_TRANSPARENT_NAMES = {
    *("add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "truediv", "div", "neg"),
    *("cat", "concat", "stack", "chunk", "split", "getitem", "unbind"),
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "unsqueeze", "squeeze"),
    *("expand", "contiguous", "clone", "to", "float", "half", "type_as", "movedim", "roll", "flip"),
    *("mean", "sum", "pad", "interpolate", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "stochastic_depth", "drop_path"),
    *(f"{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("avg", "max")),
    *(f"adaptive_{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("avg", "max")),
}
# Uses that ask for a property and pass no values on.
_DATALESS_NAMES = {"getattr", "size", "dim", "numel", "ndimension", "_assert", "new_empty"}


def _is_norm(module: nn.Module) -> bool:
    """A normalisation: torch's, or a class named so that holds no layer itself."""
    if isinstance(module, _NORM_CLASSES):
        return True
    named = _NORM_NAME.search(type(module).__name__) is not None
    return named and not any(_is_layer(m) for m in module.modules())


class _NormsBehind:
    """Finds the normalisation behind a layer, in the graph or else by order of registration."""

    def __init__(self, model: nn.Module, graph: fx.Graph | None) -> None:
        self._modules = dict(model.named_modules())
        self._leaves = [n for n, m in self._modules.items() if _is_layer(m) or self._is_leaf(m)]
        self._nodes = [] if graph is None else list(graph.nodes)
        self._position = {node: index for index, node in enumerate(self._nodes)}

    @staticmethod
    def _is_leaf(module: nn.Module) -> bool:
        return _is_norm(module) or next(module.children(), None) is None

    def of(self, layer: _Layer) -> dict[str, Any]:
        """``norm``, ``norm_kind`` and ``found_by`` of the layer's report."""
        calls = [n for n in self._nodes if n.op == "call_module" and n.target == layer.name]
        if calls:
            found = [self._in_graph(call) for call in calls]
            norm = found[0] if None not in found else None
        else:
            norm = self._by_order(layer)
        kind = type(self._modules[norm]).__name__ if norm in self._modules else None
        return {"norm": norm, "norm_kind": kind, "found_by": "trace" if calls else "order"}

    def _in_graph(self, call: fx.Node) -> str | None:
        """The nearest norm, if each way from the call leads to one through what is transparent."""
        norms: dict[fx.Node, str] = {}
        seen = {call}
        ahead = list(call.users)
        while ahead:
            node = ahead.pop()
            if node in seen or self._name(node) in _DATALESS_NAMES:
                continue
            seen.add(node)
            norm = self._norm_at(node)
            if norm is not None:
                norms[node] = norm
            elif self._is_transparent(node):
                ahead.extend(node.users)
            else:
                return None
        return norms[min(norms, key=self._position.__getitem__)] if norms else None

    @staticmethod
    def _name(node: fx.Node) -> str:
        if node.op == "call_function":
            return getattr(node.target, "__name__", "")
        return str(node.target) if node.op == "call_method" else ""

    def _norm_at(self, node: fx.Node) -> str | None:
        if node.op == "call_module":
            name = str(node.target)
            return name if _is_norm(self._modules[name]) else None
        name = self._name(node)
        return f"functional {name}" if name in _NORM_FUNCTIONS else None

    def _is_transparent(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._modules[str(node.target)], _TRANSPARENT_CLASSES)
        return self._name(node) in _TRANSPARENT_NAMES

    def _by_order(self, layer: _Layer) -> str | None:
        """The next module registered, or the norm at the same place among its siblings."""
        for name in self._leaves[self._leaves.index(layer.name) + 1 :]:
            module = self._modules[name]
            if _is_norm(module) and _fits(layer.module, module):
                return name
            if not isinstance(module, _TRANSPARENT_CLASSES):
                break
        return self._paired(layer)

    def _paired(self, layer: _Layer) -> str | None:
        """For ``conv1, conv2, bn1, bn2``: the n-th of as many norms as there are convolutions."""
        parent_name, _, own = layer.name.rpartition(".")
        children = list(self._modules[parent_name].named_children())
        linear = isinstance(layer.module, _LINEAR)
        layers = [n for n, m in children if _is_layer(m) and isinstance(m, _LINEAR) is linear]
        norms = [name for name, child in children if _is_norm(child)]
        if own not in layers or len(layers) != len(norms):
            return None
        norm = norms[layers.index(own)]
        path = f"{parent_name}.{norm}" if parent_name else norm
        names = [name for name, _ in children]
        between = children[names.index(own) + 1 : names.index(norm)]
        plausible = names.index(norm) > names.index(own) and all(
            _is_layer(m) or _is_norm(m) or isinstance(m, _TRANSPARENT_CLASSES) for _, m in between
        )
        return path if plausible and _fits(layer.module, self._modules[path]) else None


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether the norm has the layer's number of outputs, as far as both say so."""
    outputs = getattr(layer, "out_channels", getattr(layer, "out_features", None))
    features = getattr(norm, "num_features", getattr(norm, "num_channels", None))
    return outputs is None or features is None or outputs == features
