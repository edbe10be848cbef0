"""What a layer of the other kind would put out: the same input, the same weights.

The kernels of PKKD are functions of a layer's input and weights. That of the layer's own kind needs
its output only; the other one needs the output of its twin, which is computed here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torchadder import functional as AF
from torchadder.nn import Adder1d, Adder2d, AdderModule


def check_twin(layer: nn.Module, name: str) -> None:
    """Raise ValueError unless `twin_output` knows the layer.

    Args:
        layer: the layer.
        name: what to call it.
    """
    is_known = isinstance(layer, nn.Conv1d | nn.Conv2d | Adder1d | Adder2d)
    if not is_known or isinstance(layer.padding, str) or _padding_mode(layer) != "zeros":
        raise ValueError(
            f"layer {name!r} is {layer}; a kernel of the other kind needs one of Conv1d, Conv2d, "
            "Adder1d and Adder2d, which pads with a number of zeros"
        )


def twin_output(layer: Any, inputs: Tensor) -> Tensor:
    """Output of the twin: of a convolution's adder layer, or of an adder layer's convolution.

    `-sum |x - w|` for a convolution with weights w, `sum x w` for an adder layer, without bias.

    Args:
        layer: a layer that passes `check_twin`.
        inputs: x, shape (N, C, H, W) or (N, C, L).

    Examples:
        >>> import torch
        >>> layer = nn.Conv2d(1, 1, 1, bias=False)
        >>> with torch.no_grad():
        ...     twin_output(layer.eval(), layer.weight + 3).item()
        -3.0
    """
    is_adder = isinstance(layer, AdderModule)
    is_flat = isinstance(layer, nn.Conv1d | Adder1d)
    function: Any
    if is_adder:
        function = F.conv1d if is_flat else F.conv2d
    else:
        function = AF.adder1d if is_flat else AF.adder2d
    return function(
        inputs,
        layer.weight,
        None,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def _padding_mode(layer: Any) -> str:
    return getattr(layer, "padding_mode", "zeros")
