"""The normalisation itself, as a parametrization of one weight.

It knows how the filters lie in a weight; which layers have one is decided elsewhere. Derivations
are in ``docs/awn.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.awn.config import ADDER_SCALE, AwnConfig


class AdaptiveWeightNorm(nn.Module):
    """Normalised weights with a scale of their own, ``v (w - mean) / sqrt(var + eps)``.

    .. code-block:: text

        w_hat[o,k] = v[o] (w[o,k] - mean) / sqrt(var + eps)
        mean = 1/K sum_k w[o,k],  var = 1/K sum_k (w[o,k] - mean)^2          axis "filter"
        mean and var over all o and k                                        axis "layer"

    with o the filter and k = (c, r, s) its taps. "Towards Stable and Robust AdderNets" (NeurIPS
    2021) normalises the weights of adder layers with an adaptive scale; this formula, and where
    mean and variance are taken, are our reading. Gradients go through mean and variance.

    Register it with :func:`torch.nn.utils.parametrize.register_parametrization`, or whole models
    with :func:`torchadder.awn.apply_`. Forward and backward are one call each
    (``torch.nn.functional.group_norm``, which has a scale for each filter built in); half precision
    accumulates in float32. Filters without variance give 0, with finite gradients.

    Args:
        weight: the weight to be normalised, for its shape and values (``init="keep"``); filters
            come first, as in ``nn.Conv2d``: (O, C / groups, ...).
        config: what is normalised and how, ``AwnConfig()`` by default; the scale "auto" is that of
            adder layers.
        transposed: whether the weight is that of a transposed layer, (C, O / groups, ...).
        groups: channel groups of the layer; matters where ``transposed``.

    Attributes:
        scale: v, (O,) or (1,): a parameter, or a buffer if it is fixed. Frozen with the weight.

    Raises:
        ValueError: the weight is not a floating point tensor with filters, or what is normalised
            is a single number, whose normalised value is always 0.
        TypeError: ``config`` is no AwnConfig.

    Examples:
        >>> import torch, torchadder as ta
        >>> layer = ta.nn.Adder2d(3, 8, 3)
        >>> norm = ta.awn.AdaptiveWeightNorm(layer.weight, ta.awn.AwnConfig(init="unit"))
        >>> _ = torch.nn.utils.parametrize.register_parametrization(layer, "weight", norm)
        >>> layer.weight.var(dim=(1, 2, 3), correction=0).sub(1).abs().max().item() < 1e-4
        True
    """

    scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        config: AwnConfig | None = None,
        *,
        transposed: bool = False,
        groups: int = 1,
    ) -> None:
        super().__init__()
        config = AwnConfig() if config is None else config
        if not isinstance(config, AwnConfig):
            raise TypeError(f"config must be an AwnConfig, got {type(config).__name__}")
        self.config = config
        self.transposed = transposed
        self.groups = groups
        if not weight.is_floating_point() or weight.dim() < 2:
            raise ValueError(
                f"weight must be a floating point tensor of at least two dimensions, got "
                f"{tuple(weight.shape)} in {weight.dtype}"
            )
        filters = self._filters(weight.detach())
        num_filters, num_taps = filters.shape[0], filters[0].numel() if len(filters) else 0
        count = num_taps * (num_filters if config.axis == "layer" else 1)
        if count < 2:
            raise ValueError(
                f"a weight of shape {tuple(weight.shape)} has {count} to normalise a "
                f"{config.axis}, at least 2 are wanted: the only one is always its own mean"
            )
        self.num_filters = num_filters
        scale = self._initial(filters)
        if config.scale == "fixed":
            self.register_buffer("scale", scale)
        else:
            self.scale = nn.Parameter(scale, requires_grad=weight.requires_grad)

    def forward(self, weight: Tensor) -> Tensor:
        """The normalised weight, of the shape and memory format of ``weight``."""
        filters = self._filters(weight)
        num_groups = self.num_filters if self.config.axis == "filter" else 1
        rows = filters.reshape(1, self.num_filters, -1)
        scale = self.scale.expand(self.num_filters)
        normalised = F.group_norm(rows, num_groups, scale, None, self.config.eps)
        return self._as_weight(normalised.reshape(filters.shape), weight)

    def extra_repr(self) -> str:
        """The choices, and the shape of the scale."""
        config = self.config
        return (
            f"axis={config.axis}, scale={config.scale}{tuple(self.scale.shape)}, "
            f"init={config.init}, eps={config.eps:g}"
        )

    def _filters(self, weight: Tensor) -> Tensor:
        """The weight with its filters first, the taps of each in the order of memory."""
        if self.transposed:
            grouped = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
            return grouped.flatten(0, 1)
        return weight.movedim(1, -1) if _has_channels_last(weight) else weight

    def _as_weight(self, filters: Tensor, weight: Tensor) -> Tensor:
        """What ``_filters`` did, undone."""
        if self.transposed:
            grouped = filters.unflatten(0, (self.groups, -1)).transpose(1, 2)
            last = _has_channels_last(weight)
            form = torch.channels_last if last else torch.contiguous_format
            return grouped.flatten(0, 1).contiguous(memory_format=form)
        return filters.movedim(-1, 1) if _has_channels_last(weight) else filters

    def _initial(self, filters: Tensor) -> Tensor:
        config = self.config
        kind = config.axis if config.scale == "fixed" else config.scale
        size = self.num_filters if kind == "filter" else 1
        if config.init != "keep":
            named = {"unit": 1.0, "auto": ADDER_SCALE}
            value = named[config.init] if isinstance(config.init, str) else config.init
            return filters.new_full((size,), value)
        # bfloat16 has too few digits for sums.
        wide = filters.double() if filters.dtype == torch.float64 else filters.float()
        if config.axis == "layer":
            variance = wide.var(correction=0).expand(self.num_filters)
        else:
            variance = wide.flatten(1).var(dim=1, correction=0)
        if size == 1:
            variance = variance.mean(0, keepdim=True)
        return (variance + config.eps).sqrt().to(filters.dtype).clone()


def _has_channels_last(weight: Tensor) -> bool:
    return (
        weight.dim() == 4
        and not weight.is_contiguous()
        and weight.is_contiguous(memory_format=torch.channels_last)
    )
