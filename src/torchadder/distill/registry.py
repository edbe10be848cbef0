"""The methods of distillation by the names that recipes use.

A new method is a file with a subclass of `Distiller` and a line in `METHODS`. Its options are the
keyword-only arguments of its constructor, which recipes give as keys of their section `distill`.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from torchadder.distill.attention import AT
from torchadder.distill.distiller import Distiller
from torchadder.distill.dropout import Dropout
from torchadder.distill.fitnet import FitNet
from torchadder.distill.fsp import FSP
from torchadder.distill.pkkd import PKKD
from torchadder.distill.similarity import SP
from torchadder.distill.snapshot import Snapshot
from torchadder.distill.soft_labels import KD

METHODS: dict[str, type[Distiller]] = {
    "pkkd": PKKD,
    "kd": KD,
    "at": AT,
    "sp": SP,
    "fsp": FSP,
    "fitnet": FitNet,
    "snapshot": Snapshot,
    "dropout": Dropout,
}


def find_method(name: str) -> type[Distiller]:
    """The class of a method.

    Raises:
        ValueError: unknown name.

    >>> find_method("at").__name__
    'AT'
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(METHODS)}"
        raise ValueError(f"unknown method {name!r}; {hint}")
    return METHODS[name]


def options_of(name: str) -> dict[str, Any]:
    """The options of a method with their defaults.

    Raises:
        ValueError: unknown name.

    >>> options_of("kd")
    {'alpha': 5.0, 'temperature': 1.0, 'progressive': False}
    """
    parameters = inspect.signature(find_method(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def methods_with(option: str) -> list[str]:
    """The methods that know an option.

    >>> methods_with("cycles")
    ['snapshot']
    """
    return [name for name in METHODS if option in options_of(name)]
