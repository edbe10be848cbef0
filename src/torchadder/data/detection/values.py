"""Which values of annotations are numbers that the arrays of a split can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

LARGEST_SIDE = 2**31 - 1  # pixels
_LARGEST_ID = 2**63 - 1
_LARGEST_INTEGER = 2**1000  # a float holds it, and the sum of two


def is_id(value: object) -> TypeGuard[int]:
    """Whether something is an integer of 64 bits.

    >>> is_id(7), is_id(2**63), is_id(True), is_id("7")
    (True, False, False, False)
    """
    return _is_integer(value) and abs(value) <= _LARGEST_ID


def is_real(value: object) -> TypeGuard[float]:
    """Whether something is a number that a float can hold; infinity and NaN are such numbers.

    >>> is_real(1.5), is_real(10**400), is_real(True), is_real("1.5")
    (True, False, False, False)
    """
    return isinstance(value, float) or (_is_integer(value) and abs(value) <= _LARGEST_INTEGER)


def is_box(value: object) -> TypeGuard[Sequence[float]]:
    """Whether something is a list of four numbers."""
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(map(is_real, value))


def side_problem(height: int, width: int) -> str | None:
    """Why an image cannot have these sides, or None."""
    if min(height, width) >= 1 and max(height, width) <= LARGEST_SIDE:
        return None
    return f"height {height} and width {width}: 1 to {LARGEST_SIDE} pixels are wanted"


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
