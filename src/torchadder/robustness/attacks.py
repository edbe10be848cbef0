"""The attacks by name."""

from __future__ import annotations

from collections.abc import Callable

from torchadder.robustness.gradient_attacks import bim, fgsm, mifgsm, pgd, rfgsm
from torchadder.robustness.square import square
from torchadder.robustness.target import AttackResult

ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "fgsm": fgsm,
    "rfgsm": rfgsm,
    "bim": bim,
    "pgd": pgd,
    "mifgsm": mifgsm,
    "square": square,
}
"""Attacks that need nothing but the model itself."""
