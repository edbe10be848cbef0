"""The choices of a conversion, checked where they are made.

This file knows names and values; it sees no model and does not know how the choices are met.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torchadder.awn.config import AwnConfig, resolve
from torchadder.ops.geometry import check_rule

_INITS = ("normal", "keep")


@dataclass(frozen=True)
class AdderConfig:
    """What :func:`convert_` converts, and how.

    Attributes:
        keep: layers that stay multiplications: "first" and "last" (see :func:`convert_`), names of
            layers or of modules that contain them, or patterns over names ("*.downsample.0").
        grad: gradient rule of the new layers, see :mod:`torchadder.functional`.
        init: "normal" draws the weights from N(0, 1) and zeroes the biases, as AdderNet does;
            "keep" leaves the values of both.
        linear: whether ``nn.Linear`` is converted, too.
        weight_norm: "adaptive" normalises the weights of the new layers with a learned scale, an
            :class:`torchadder.awn.AwnConfig` says how, None leaves them plain. "adaptive" becomes
            ``AwnConfig()``.

    Raises:
        ValueError: an unknown ``grad``, ``init`` or ``weight_norm``, an empty name in ``keep``.
        TypeError: ``keep`` is no collection of strings, ``linear`` no bool, ``weight_norm`` neither
            a name nor an AwnConfig.
    """

    keep: Collection[str] = ("first", "last")
    grad: str = "clip"
    init: str = "normal"
    linear: bool = False
    weight_norm: str | AwnConfig | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keep, str) or not isinstance(self.keep, Collection):
            raise TypeError(f"keep must be a tuple of names, got {self.keep!r}")
        for name in self.keep:
            if not isinstance(name, str):
                raise TypeError(f"keep must hold strings, got {name!r}")
            if not name:
                raise ValueError("keep must not hold an empty name")
        object.__setattr__(self, "keep", tuple(self.keep))
        check_rule(self.grad)
        if self.init not in _INITS:
            raise ValueError(f"init must be one of {', '.join(_INITS)}, got {self.init!r}")
        if not isinstance(self.linear, bool):
            raise TypeError(f"linear must be a bool, got {self.linear!r}")
        try:
            object.__setattr__(self, "weight_norm", resolve(self.weight_norm))
        except (TypeError, ValueError) as error:
            raise type(error)(f"weight_norm: {error}") from error
