"""Adaptive weight normalisation: ``v (w - mean) / sqrt(var + eps)`` in front of adder layers.

The idea is that of "Towards Stable and Robust AdderNets" (NeurIPS 2021, OpenReview hPgy4_gpbmU),
whose abstract names a weight normalisation that adaptively optimises the weights' distribution;
formula and options are our reading, see docs/awn.md. `apply_` normalises a model's weights, `bake_`
makes them plain ones again. Nothing here knows losses, optimizers or trainers.
"""

from torchadder.awn.config import AwnConfig
from torchadder.awn.groups import parameter_groups
from torchadder.awn.layers import (
    apply_,
    bake_,
    baked_state_dict,
    normalised_layers,
    weight_norm,
)
from torchadder.awn.parametrization import AdaptiveWeightNorm

__all__ = [
    "AdaptiveWeightNorm",
    "AwnConfig",
    "apply_",
    "bake_",
    "baked_state_dict",
    "normalised_layers",
    "parameter_groups",
    "weight_norm",
]
