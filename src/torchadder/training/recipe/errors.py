"""What a wrong recipe raises."""

from __future__ import annotations


class RecipeError(ValueError):
    """A recipe that cannot be run; the message names the key, its value and what is wanted."""


def require(condition: bool, key: str, value: object, wanted: str) -> None:
    """Raises `RecipeError` unless `condition` holds."""
    if not condition:
        raise RecipeError(f"{key} = {value!r}: {wanted} is wanted")
