"""The convolution, linear and adder layers of a model, and the places where they hang.

This file finds them; what becomes of a layer, and in which order they run, is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from torchadder.nn import AdderModule


@dataclass
class Layer:
    """A layer found in the model: its name, its places, and what becomes of it."""

    name: str
    module: nn.Module
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    action: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, empty where there is none yet."""
        weight = getattr(self.module, "weight", None)
        if not isinstance(weight, torch.Tensor) or nn.parameter.is_lazy(weight):
            return ()
        return tuple(weight.shape)


def is_layer(module: nn.Module) -> bool:
    """Whether the module is a convolution, linear or adder layer."""
    return isinstance(module, (_ConvNd, nn.Linear, AdderModule))


def find_layers(model: nn.Module) -> list[Layer]:
    """Convolution, linear and adder layers in order of registration, each module once."""
    layers = {m: Layer(name, m) for name, m in model.named_modules() if is_layer(m)}
    for parent_name, parent in model.named_modules():
        for attribute, child in parent._modules.items():
            if child in layers:
                layer = layers[child]
                layer.places.append((parent, attribute))
                name = f"{parent_name}.{attribute}" if parent_name else attribute
                if name != layer.name:
                    layer.aliases.append(name)
    return list(layers.values())
