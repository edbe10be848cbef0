"""Normalising the weights of whole models, in place, and making them plain weights again.

Everything is checked before anything is changed. How a weight is normalised, this file does not
know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from torchadder.awn.config import AwnConfig
from torchadder.awn.parametrization import AdaptiveWeightNorm
from torchadder.nn import AdderModule

_WEIGHT = "weight"


def apply_(
    model: nn.Module,
    config: AwnConfig | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> list[str]:
    """Normalise the weights of ``model``'s layers, in place.

    Each weight becomes the parametrization :class:`AdaptiveWeightNorm` of itself: ``layer.weight``
    is the normalised one, computed anew whenever it is read, and
    ``layer.parametrizations.weight.original`` the parameter that is trained, the very object that
    the weight was. Build the optimizer afterwards, so that it holds the scales, too. Layers that
    share their weight share its scale. A frozen weight is normalised and stays frozen, with its
    scale. :func:`bake_` is the way back to a plain model.

    Args:
        model: any module, on any device.
        config: what is normalised and how, ``AwnConfig()`` by default.
        filter_fn: called with each adder, convolution and linear layer and its name; True picks
            it. By default the adder layers are picked or, in a model without any, the convolutions.

    Returns:
        The names of the layers.

    Raises:
        ValueError: no layer is picked, or one that cannot be normalised: normalised already,
            parametrized or pruned otherwise, without a shape yet (lazy), with one weight only where
            at least two are normalised together, or sharing its weight with a layer that is not
            picked or has other filters. The model is left as it was.
        TypeError: an argument is of another type.

    Examples:
        >>> import torchadder as ta
        >>> net = ta.models.lenet5_bn()
        >>> ta.awn.apply_(net)
        ['conv2', 'conv3', 'conv4']
    """
    config = AwnConfig() if config is None else config
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, AwnConfig):
        raise TypeError(f"config must be an AwnConfig, got {type(config).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn must be callable, got {type(filter_fn).__name__}")
    layers = _pick(model, filter_fn)
    check_layers(model, layers, config)
    normalise(layers.values(), config)
    return list(layers)


def _pick(
    model: nn.Module, filter_fn: Callable[[nn.Module, str], bool] | None
) -> Mapping[str, nn.Module]:
    candidates = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (AdderModule, _ConvNd, nn.Linear))
    }
    if filter_fn is not None:
        picked = {name: m for name, m in candidates.items() if filter_fn(m, name)}
        if not picked:
            raise ValueError(
                f"filter_fn picks none of the {len(candidates)} adder, convolution and linear "
                f"layers of {type(model).__name__}"
            )
        return picked
    for kind in (AdderModule, _ConvNd):
        picked = {name: m for name, m in candidates.items() if isinstance(m, kind)}
        if picked:
            return picked
    raise ValueError(
        f"model {type(model).__name__} has no adder layers and no convolutions to normalise"
    )


def check_layers(model: nn.Module, layers: Mapping[str, nn.Module], config: AwnConfig) -> None:
    """Raise ValueError unless the weights of ``layers``, by name, can be normalised.

    Args:
        model: the model, for the weights that its other layers share with these.
        layers: the layers.
        config: what is to be normalised and how.
    """
    for name, layer in layers.items():
        _check_plain(name, layer)
        try:
            _norm_of(layer, config)
        except ValueError as error:
            raise ValueError(f"layer {name!r} cannot be normalised: {error}") from error
    _check_shared(model, layers)


def _check_plain(name: str, layer: nn.Module) -> None:
    if weight_norm(layer) is not None:
        raise ValueError(f"the weight of layer {name!r} is normalised already; bake_ it first")
    weight = layer._parameters.get(_WEIGHT)
    if parametrize.is_parametrized(layer) or weight is None:
        raise ValueError(
            f"layer {name!r} is parametrized or pruned, so its weight is no parameter of its own; "
            "undo that first"
        )
    if nn.parameter.is_lazy(weight):
        raise ValueError(f"layer {name!r} is lazy, its shape is not known yet; run the model once")


def _check_shared(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Weights are shared among picked layers with the same filters, or not at all."""
    owners: dict[int, tuple[str, nn.Module]] = {}
    for name, layer in layers.items():
        weight = layer._parameters[_WEIGHT]
        first, owner = owners.setdefault(id(weight), (name, layer))
        if _layout(owner) != _layout(layer):
            raise ValueError(
                f"layers {first!r} and {name!r} share their weight and have other filters in it"
            )
    picked = set(layers.values())
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if id(parameter) in owners and (module not in picked or key != _WEIGHT):
                raise ValueError(
                    f"layer {owners[id(parameter)][0]!r} shares its weight with "
                    f"{f'{name}.{key}'.lstrip('.')!r}, which is not normalised"
                )


def _layout(layer: nn.Module) -> tuple[bool, int]:
    """How the filters lie in the weight."""
    transposed = bool(getattr(layer, "transposed", False))
    return transposed, int(getattr(layer, "groups", 1)) if transposed else 1


def _norm_of(layer: nn.Module, config: AwnConfig) -> AdaptiveWeightNorm:
    transposed, groups = _layout(layer)
    if config.init == "auto" and not isinstance(layer, AdderModule):
        config = dataclasses.replace(config, init="keep")
    return AdaptiveWeightNorm(
        layer.weight,  # type: ignore[arg-type]
        config,
        transposed=transposed,
        groups=groups,
    )


def normalise(layers: Iterable[nn.Module], config: AwnConfig) -> None:
    """Normalise the weights of layers that have been checked; shared weights share a scale."""
    norms: dict[int, AdaptiveWeightNorm] = {}
    for layer in layers:
        weight = layer._parameters[_WEIGHT]
        norm = norms.setdefault(id(weight), _norm_of(layer, config))
        parametrize.register_parametrization(layer, _WEIGHT, norm)


def weight_norm(layer: nn.Module) -> AdaptiveWeightNorm | None:
    """The normalisation of a layer's weight; None if it has none."""
    if not parametrize.is_parametrized(layer, _WEIGHT):
        return None
    chain = layer.parametrizations[_WEIGHT]  # type: ignore[index]
    return next((norm for norm in chain if isinstance(norm, AdaptiveWeightNorm)), None)


def normalised_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights are normalised, by name."""
    return {name: m for name, m in model.named_modules() if weight_norm(m) is not None}


def _bakeable(model: nn.Module) -> dict[str, nn.Module]:
    """The normalised layers.

    Raises:
        ValueError: one of them has a further parametrization.
    """
    layers = normalised_layers(model)
    for name, layer in layers.items():
        chains = layer.parametrizations  # the only chain, with a single link
        if len(chains) > 1 or len(chains[_WEIGHT]) > 1:  # type: ignore[arg-type, index]
            raise ValueError(
                f"layer {name!r} has a parametrization beside the normalisation of its weight; "
                "remove it first"
            )
    return layers


def _baked_weights(layers: Iterable[nn.Module]) -> dict[int, Tensor]:
    """The normalised weights by the id of the parameter that they are made of."""
    weights: dict[int, Tensor] = {}
    with torch.no_grad():
        for layer in layers:
            original = _original(layer)
            if id(original) not in weights:
                weights[id(original)] = layer.weight.detach()  # type: ignore[operator, union-attr]
    return weights


def _original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations[_WEIGHT].original  # type: ignore[index, return-value, union-attr]


def bake_(model: nn.Module) -> list[str]:
    """Turn the normalised weights of ``model`` into plain ones, in place and exactly.

    The parameter that was trained takes the normalised values and is the layer's ``weight`` again;
    scale and parametrization are gone. Outputs stay the same to the last bit, and the state dict
    has the names, shapes and order of a model that was never normalised. For inference, export and
    quantisation; an optimizer of the model still holds the scales and its own state, so build
    another one to train on.

    Args:
        model: a model with weights normalised by :func:`apply_`.

    Returns:
        The names of the layers.

    Raises:
        ValueError: no weight is normalised, or a layer has a further parametrization; nothing is
            changed then.
        TypeError: ``model`` is no module.

    Examples:
        >>> import torchadder as ta
        >>> net = ta.models.lenet5_bn()
        >>> _ = ta.awn.apply_(net)
        >>> ta.awn.bake_(net)
        ['conv2', 'conv3', 'conv4']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = _bakeable(model)
    if not layers:
        raise ValueError(f"model {type(model).__name__} has no normalised weights to bake")
    weights = _baked_weights(layers.values())
    for layer in layers.values():
        weight = _original(layer)
        # Not remove_parametrizations: it takes the property off a class that copies share, and puts
        # the weight behind the bias.
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer._modules["parametrizations"]
        others = dict(layer._parameters)
        layer._parameters.clear()
        layer._parameters.update({_WEIGHT: weight, **others})
        with torch.no_grad():
            weight.copy_(weights[id(weight)])
        weight.grad = None
    return list(layers)


def baked_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that ``model`` would have after :func:`bake_`; the model stays as it is.

    Values are not copied, except for normalised weights, which are computed. A model without
    normalised weights has its own state dict.

    Raises:
        ValueError: a layer has a further parametrization beside the normalisation.
    """
    layers = _bakeable(model)
    state = dict(model.state_dict())
    weights = _baked_weights(layers.values())
    for name, layer in layers.items():
        prefix = f"{name}." if name else ""
        chain = f"{prefix}parametrizations."
        position = next(i for i, key in enumerate(state) if key.startswith(prefix))
        rest = [(key, value) for key, value in state.items() if not key.startswith(chain)]
        rest.insert(position, (f"{prefix}{_WEIGHT}", weights[id(_original(layer))]))
        state = dict(rest)
    return state
