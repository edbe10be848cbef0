"""What the parts of a detector are made of: multiplicative or adder layers, and their norms."""

import functools
import math
from collections.abc import Callable

from torch import Tensor, nn

from torchadder.models.convolution import ConvFactory
from torchadder.nn import Adder2d

PARTS = {"B": "backbone", "N": "neck", "H": "head"}
"""The parts of a detector that can be made of adder layers, by the paper's letters."""

NORMS = ("batch", "group", "none")
"""Kinds of normalisation in necks and heads."""


def adder_parts(letters: str) -> frozenset[str]:
    """Return the letters of the parts that are made of adder layers.

    Raises:
        ValueError: if a letter is unknown or occurs twice.

    >>> sorted(adder_parts("NB"))
    ['B', 'N']
    """
    if not isinstance(letters, str) or not set(letters) <= set(PARTS):
        known = ", ".join(f"{letter} ({part})" for letter, part in PARTS.items())
        raise ValueError(
            f"adder must be letters out of {known}, or '' for a conv detector, got {letters!r}"
        )
    if len(set(letters)) < len(letters):
        raise ValueError(f"adder must name each part once, got {letters!r}")
    return frozenset(letters)


def layer_factory(is_adder: bool, grad: str) -> ConvFactory:
    """Return what builds a layer: an adder layer with the gradient rule `grad`, or `nn.Conv2d`."""
    return functools.partial(Adder2d, grad=grad) if is_adder else nn.Conv2d


def check_norm(argument: str, kind: str, is_adder: bool) -> str:
    """Return `kind` if it is a kind of norm that the layers can have.

    Raises:
        ValueError: if it is unknown, or "none" behind adder layers, whose outputs are large and
            never positive.
    """
    if kind not in NORMS:
        raise ValueError(f"{argument} must be one of {', '.join(NORMS)}, got {kind!r}")
    if is_adder and kind == "none":
        raise ValueError(
            f"{argument}='none' with adder layers: their outputs are never positive and need a "
            "norm; use 'batch' or 'group'"
        )
    return kind


def make_norm(
    kind: str, channels: int, batch_norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> nn.Module:
    """Return a norm over `channels`, an identity for "none".

    Group norm has 32 groups at 256 channels, as in torchvision's FCOS, and groups of at least 8
    channels in narrower nets.
    """
    if kind == "batch":
        return batch_norm(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, max(1, channels // 8), channels), channels)
    return nn.Identity()


class NormedLayer(nn.Module):
    """One layer of a neck: window, norm, and a shortcut around both if asked for.

    ``y = norm(conv(x)) + x[..., ::stride, ::stride]``, the last term with `shortcut`. The shortcut
    has no weights: it is what a 3x3 convolution would pass on that has nothing but a centre tap.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: 1 or 3; windows of 3 are padded by 1.
        stride: step of the window.
        layer: what builds the layer, see `layer_factory`.
        norm: kind of norm; "none" gives the layer a bias.
        shortcut: whether the input is added; the numbers of channels must agree.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        layer: ConvFactory,
        norm: str,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.conv = layer(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            bias=norm == "none",
        )
        if isinstance(self.conv, nn.Conv2d):
            # As torchvision's pyramids: Xavier's uniform distribution over the fan-in.
            nn.init.kaiming_uniform_(self.conv.weight, a=1)
            if self.conv.bias is not None:
                nn.init.zeros_(self.conv.bias)
        self.norm = make_norm(norm, out_channels)
        self.stride = stride
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = self.norm(self.conv(x))
        return y + x[..., :: self.stride, :: self.stride] if self.shortcut else y
