"""Which layers are converted, and for what reason the others are kept.

The plan is written into the layers found; this file changes no module, and takes the order of
execution as given.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from torchadder.convert.config import AdderConfig
from torchadder.convert.layers import Layer
from torchadder.convert.twins import TWINS, twin_base
from torchadder.nn import AdderModule

# Modules whose forward takes the weights of their children without calling them.
_WEIGHT_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

# Entries of ``keep`` that stand for a place in the order, never for a module of that name.
_ENDS = ("first", "last")


def plan(
    model: nn.Module,
    layers: list[Layer],
    config: AdderConfig,
    filter_fn: Callable[[nn.Module, str], bool] | None,
    order: list[str],
) -> None:
    """Write into each layer what is to be done with it.

    Args:
        model: the model, in which others may own a layer's parameters.
        layers: all layers of the model, changed in place.
        config: the rules.
        filter_fn: asked about each layer that no rule keeps.
        order: names of the layers that run, in the order in which they do.

    Raises:
        ValueError: a name in ``config.keep`` matches no layer; a layer to be converted is
            parametrized or pruned.
    """
    _check_keep(config, layers)
    for layer in layers:
        if isinstance(layer.module, AdderModule):
            layer.action = "already adder"
            continue
        reason = _reason_to_keep(layer, config, order)
        if reason is None and filter_fn is not None and not filter_fn(layer.module, layer.name):
            reason = "filter_fn"
        layer.action = "converted" if reason is None else f"kept: {reason}"
    _keep_tied(model, layers)
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


def _matches(entry: str, name: str) -> bool:
    return name == entry or name.startswith(entry + ".") or fnmatchcase(name, entry)


def _check_keep(config: AdderConfig, layers: list[Layer]) -> None:
    names = [name for layer in layers for name in (layer.name, *layer.aliases)]
    for entry in config.keep:
        if entry not in _ENDS and not any(_matches(entry, name) for name in names):
            raise ValueError(f"keep names {entry!r}, which matches no layer of the model")


def _reason_to_keep(layer: Layer, config: AdderConfig, order: list[str]) -> str | None:
    for end, name in (("first", order[0]), ("last", order[-1])):
        if end in config.keep and layer.name == name:
            return end
    for entry in config.keep:
        if entry not in _ENDS and any(
            _matches(entry, name) for name in (layer.name, *layer.aliases)
        ):
            return entry
    module = layer.module
    cls = nn.utils.parametrize.type_before_parametrizations(module)
    if not issubclass(cls, tuple(TWINS)):
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
    if twin_base(module) is None:
        return f"subclass {cls.__name__}"
    return None


def _keep_tied(model: nn.Module, layers: list[Layer]) -> None:
    """Keep the layers that share a parameter with a module that stays, whatever it is.

    Fresh adder weights would overwrite the other's.
    """
    changed = True
    while changed:
        converted = {part for x in layers if x.action == "converted" for part in x.module.modules()}
        owner: dict[int, str] = {}
        for name, module in model.named_modules():
            if module not in converted:
                for parameter in module._parameters.values():
                    owner.setdefault(id(parameter), name or "the model itself")
        changed = False
        for layer in layers:
            tied = [owner[id(p)] for p in layer.module.parameters() if id(p) in owner]
            if layer.action == "converted" and tied:
                layer.action = f"kept: shares its weight with {tied[0]}"
                changed = True
