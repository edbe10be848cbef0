"""The layers of a net whose stability is measured, and the batch norm behind each.

How they are measured is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from torchadder.convert.layers import find_layers, is_layer
from torchadder.convert.norms import NormsBehind, is_norm
from torchadder.convert.tracing import execution_order, trace


@dataclass(frozen=True)
class MeasuredLayer:
    """A layer of a net and the batch norm that takes its outputs, by name.

    Names outlive what Lightning does to the modules (synchronised batch norms).

    Attributes:
        name: Name of the adder, convolution or linear layer.
        norm: Name of the batch norm behind it, maybe with a pooling or an addition in between;
            None if there is none.
    """

    name: str
    norm: str | None


def measured_layers(model: nn.Module) -> list[MeasuredLayer]:
    """The layers of a net in the order in which they run.

    Raises:
        ValueError: If none of them has a batch norm behind it.
    """
    layers = find_layers(model)
    graph, _ = trace(model, is_leaf=lambda module: is_layer(module) or is_norm(module))
    if graph is not None:
        order = execution_order(graph, {layer.name for layer in layers})
        rank = {name: index for index, name in enumerate(order)}
        layers.sort(key=lambda layer: rank.get(layer.name, len(rank)))
    norms = NormsBehind(model, graph)
    modules = dict(model.named_modules())
    found = []
    for layer in layers:
        norm = norms.of(layer)["norm"]
        is_batch_norm = isinstance(modules.get(norm or ""), _BatchNorm)
        found.append(MeasuredLayer(layer.name, norm if is_batch_norm else None))
    if not any(layer.norm for layer in found):
        raise ValueError(
            f"{type(model).__name__} has no layer with a batch norm behind it; the stability of "
            "its outputs is measured there"
        )
    return found


@torch.no_grad()
def effective_weight(layer: nn.Module) -> Tensor:
    """The weight that a layer computes with, behind its parametrizations; changes nothing."""
    if not parametrize.is_parametrized(layer, "weight"):
        return layer.weight.detach()  # type: ignore[operator]
    chain: nn.Module = layer.parametrizations["weight"]  # type: ignore[index]
    # Some parametrizations keep statistics while they are in training mode.
    modes = [(module, module.training) for module in chain.modules()]
    chain.eval()
    try:
        return layer.weight.detach()  # type: ignore[operator]
    finally:
        for module, mode in modes:
            module.training = mode


def weight_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters behind the weight of a layer: what the optimizer holds.

    Several where a parametrization has several originals; of a pruned weight, `weight_orig`.
    """
    named = dict(layer.named_parameters(recurse=False))
    for name in ("weight", "weight_orig"):
        if name in named:
            return [named[name]]
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    chain: nn.Module = layer.parametrizations["weight"]  # type: ignore[index]
    originals = chain.named_parameters(recurse=False)
    return [parameter for name, parameter in originals if name.startswith("original")]
