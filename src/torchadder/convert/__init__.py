"""Turn the convolutions of any model into adder layers, in place.

:func:`convert_` swaps ``nn.Conv1d``, ``nn.Conv2d``, ``nn.ConvTranspose2d`` and on request
``nn.Linear`` for their adder twins and reports, layer by layer, what was done and which
normalisation stands behind. It plans first and changes the model afterwards, so an error leaves the
model as it was. It knows modules; it runs no data, builds no normalisation and trains nothing.
The rules are explained in ``docs/convert.md``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import nn

from torchadder.awn.config import AwnConfig
from torchadder.awn.layers import check_layers, normalise, weight_norm
from torchadder.convert.config import AdderConfig
from torchadder.convert.layers import Layer, find_layers, is_layer
from torchadder.convert.norms import NormsBehind, is_norm
from torchadder.convert.planning import plan
from torchadder.convert.report import ConversionReport, LayerReport
from torchadder.convert.tracing import execution_order, trace
from torchadder.convert.twins import build_twin, move_state, reset_parameters, twin_base

__all__ = ["AdderConfig", "ConversionReport", "LayerReport", "convert_"]


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
    ``config.init`` is "keep"), so optimizers, weight sharing, device, dtype, ``requires_grad`` and,
    without ``config.weight_norm``, state-dict names hold on. Hooks and their handles, the training
    flag, own attributes and buffers move along; a module registered under several names stays one
    module.

    Left alone, with the reason in the report: subclasses that define more than ``__init__`` (their
    forward is their own), lazy layers, kinds without a twin (``nn.Conv3d``), layers whose weights
    their parent reads without calling them (``nn.MultiheadAttention``), and layers that share their
    weight with a layer that is kept or with any other module.

    Args:
        model: any module, on any device, "meta" included.
        config: what to convert, ``AdderConfig()`` by default.
        filter_fn: called with each remaining layer and its name; False keeps the layer.

    Returns:
        The report, one row a layer.

    Raises:
        ValueError: the model itself is a layer to be replaced; a layer to be converted is
            parametrized or pruned; a name in ``keep`` matches no layer; weights that
            ``config.weight_norm`` is to normalise cannot be.
        TypeError: an argument is of another type.

    Warns:
        UserWarning: once, naming the converted layers without a normalisation behind them. The
            outputs of an adder layer are never positive and their size grows with the number of
            taps, so such nets rarely train.

    Examples:
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
    if twin_base(model) is not None:
        raise ValueError(
            f"model is itself a {type(model).__name__}, which cannot be replaced in place; wrap it "
            "in a module, for example nn.Sequential"
        )

    layers = find_layers(model)
    graph, trace_error = trace(model, is_leaf=lambda module: is_layer(module) or is_norm(module))
    names = {layer.name for layer in layers}
    order = [] if graph is None else execution_order(graph, names)
    order_source = "trace" if order else "order"
    if order:
        rank = {name: index for index, name in enumerate(order)}
        layers.sort(key=lambda layer: rank.get(layer.name, len(order)))
    else:
        order = [layer.name for layer in layers]
    plan(model, layers, config, filter_fn, order)

    norms = NormsBehind(model, graph)
    rows = [
        LayerReport(
            layer.name,
            nn.utils.parametrize.type_before_parametrizations(layer.module).__name__,
            layer.shape,
            layer.action,
            aliases=tuple(layer.aliases),
            **(norms.of(layer) if layer.action in ("converted", "already adder") else {}),
            weight_norm=_describe_norm(layer, config),
        )
        for layer in layers
    ]
    report = ConversionReport(tuple(rows), order_source, trace_error)

    chosen = [layer for layer in layers if layer.action == "converted"]
    if isinstance(config.weight_norm, AwnConfig):
        check_layers(model, {layer.name: layer.module for layer in chosen}, config.weight_norm)
    twins = [build_twin(layer.module, config) for layer in chosen]
    for layer, twin in zip(chosen, twins, strict=True):
        move_state(layer.module, twin)
        for parent, attribute in layer.places:
            setattr(parent, attribute, twin)
    if config.init == "normal":
        reset_parameters(twins)
    if isinstance(config.weight_norm, AwnConfig):
        normalise(twins, config.weight_norm)
    if report.missing_norm:
        warnings.warn(
            "adder layers without a normalisation behind them, whose outputs are never positive: "
            + ", ".join(report.missing_norm),
            stacklevel=2,
        )
    return report


def _describe_norm(layer: Layer, config: AdderConfig) -> str | None:
    """How the weight of a layer is normalised after the conversion, None if it is not."""
    norm = weight_norm(layer.module)
    chosen = config.weight_norm if norm is None else norm.config
    if norm is None and (layer.action != "converted" or not isinstance(chosen, AwnConfig)):
        return None
    assert isinstance(chosen, AwnConfig)
    return f"axis {chosen.axis}, scale {chosen.scale}"
