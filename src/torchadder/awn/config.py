"""The choices of adaptive weight normalisation, checked where they are made.

This file knows names and numbers; it sees no layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AXES = ("filter", "layer")
SCALES = ("filter", "layer", "fixed")
INITS = ("auto", "keep", "unit")
ADAPTIVE = "adaptive"

ADDER_SCALE = 2.0
"""Scale of adder layers at the start, by measurement: the weights of a plain adder net, drawn from
N(0, 1), have a deviation between 2 and 3 after a few epochs (docs/awn.md)."""


@dataclass(frozen=True)
class AwnConfig:
    """How weights are normalised, see :class:`torchadder.awn.AdaptiveWeightNorm`.

    That the weights of adder layers are normalised with an adaptive scale is what the abstract of
    "Towards Stable and Robust AdderNets" (NeurIPS 2021) says; each choice here is our reading.

    Attributes:
        axis: over which weights mean and variance are taken: "filter" (each filter for itself) or
            "layer" (all filters of a layer together).
        scale: "filter" (a learned scale for each filter), "layer" (one for each layer) or "fixed"
            (as "filter" or "layer", whichever ``axis`` is, and never changed).
        init: scale at the start: "keep" (the standard deviation of the weights as they are), "unit"
            (1), a positive number, or "auto": 2 in adder layers, in others "keep". Only "keep"
            leaves a trained net what it is, up to the mean of each filter.
        eps: added to the variance.
        decay: whether the optimizer's weight decay acts on the scale as on any other parameter;
            see :func:`torchadder.awn.parameter_groups`.

    Raises:
        ValueError: an unknown name, or a number out of range.
        TypeError: a value of another type.
    """

    axis: str = "filter"
    scale: str = "filter"
    init: str | float = "auto"
    eps: float = 1e-6
    decay: bool = True

    def __post_init__(self) -> None:
        for name, known in (("axis", AXES), ("scale", SCALES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if isinstance(self.init, str):
            if self.init not in INITS:
                names = ", ".join(INITS)
                raise ValueError(f"init must be one of {names} or a number, got {self.init!r}")
        else:
            _check_positive("init", self.init)
        _check_positive("eps", self.eps)
        if not isinstance(self.decay, bool):
            raise TypeError(f"decay must be a bool, got {self.decay!r}")


def resolve(spec: str | Mapping[str, Any] | AwnConfig | None) -> AwnConfig | None:
    """The configuration that a recipe or a caller names.

    Args:
        spec: "adaptive" (the defaults), a mapping with attributes of :class:`AwnConfig`, a
            configuration, or None for no normalisation.

    Raises:
        ValueError: an unknown name or key, or a value out of range.
        TypeError: something else, or a value of another type.

    >>> resolve({"axis": "layer"}).scale
    'filter'
    """
    if spec is None or isinstance(spec, AwnConfig):
        return spec
    if isinstance(spec, str):
        if spec != ADAPTIVE:
            raise ValueError(f"{ADAPTIVE!r}, a mapping or None is wanted, got {spec!r}")
        return AwnConfig()
    if isinstance(spec, Mapping):
        known = [item.name for item in dataclasses.fields(AwnConfig)]
        unknown = [key for key in spec if key not in known]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(known)}")
        return AwnConfig(**spec)
    raise TypeError(f"{ADAPTIVE!r}, an AwnConfig or None is wanted, got {type(spec).__name__}")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
