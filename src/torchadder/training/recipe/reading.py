"""Recipes from nested values and from run folders, with errors that help."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.training.recipe.errors import RecipeError
from torchadder.training.recipe.whole import Recipe

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PLACE_KEYS = ("accelerator", "devices", "threads", "timeout", "checkpoint_minutes")
"""Keys of `trainer` that say where a run computes and how often it is saved, not what it trains.

They may change when it goes on.
"""


def keys(section: type = Recipe, prefix: str = "") -> list[str]:
    """All keys of a recipe in dotted form, sections included.

    >>> [key for key in keys() if key.startswith("schedule")]
    ['schedule', 'schedule.name', 'schedule.interval', 'schedule.min_lr', 'schedule.warmup']
    """
    found = []
    for name, hint in typing.get_type_hints(section).items():
        found.append(prefix + name)
        if dataclasses.is_dataclass(hint):
            found.extend(keys(typing.cast("type", hint), f"{prefix}{name}."))
    return found


def takes_text(key: str) -> bool:
    """Whether a dotted key takes any text, so that a folder may be called 2024.

    >>> takes_text("data.source"), takes_text("optimizer.lr"), takes_text("optimiser.lr")
    (True, False, False)
    """
    hint: Any = Recipe
    for part in key.split("."):
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    kinds = set(typing.get_args(hint)) or {hint}
    return str in kinds and kinds <= {str, type(None)}


def from_dict(values: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Builds a recipe from nested dicts, refusing unknown keys and wrong types.

    Args:
        values: Nested values, as read from YAML; what is missing takes its default.
        origin: What to call the source of the values in an error.

    Raises:
        RecipeError: On an unknown key (with the nearest known one), a wrong type, or a value out
            of range.
    """
    from jsonargparse import ArgumentError

    check_keys(values, origin)
    parser = _parser()
    try:
        sections = parser.instantiate(parser.parse_object(values))
    except ArgumentError as error:
        raise RecipeError(f"{origin}: {explain(str(error))}") from error
    return Recipe(**sections.as_dict())


@functools.cache
def _parser() -> ArgumentParser:
    """The parser of recipes; building it takes longer than parsing."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe)
    return parser


def read_recipe(folder: Path, place: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a run folder.

    Args:
        folder: The run folder.
        place: New values for keys of its `trainer` that say where it computes.

    Raises:
        RecipeError: If there is no run in `folder`, or a key belongs to the run itself.
    """
    import yaml

    config = folder / "config.yaml"
    if not config.is_file():
        raise RecipeError(f"resume {str(folder)!r}: no run folder, config.yaml is missing")
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{config}: not YAML: {error}") from error
    for key in place or {}:
        if key not in PLACE_KEYS:
            raise RecipeError(
                f"resume {str(folder)!r}: trainer.{key} belongs to the run; only trainer."
                f"{', trainer.'.join(PLACE_KEYS)} may change when it goes on"
            )
    if place and isinstance(values, dict):
        values["trainer"] = (values.get("trainer") or {}) | dict(place)
    return from_dict(values, str(config))


def check_keys(values: Any, origin: str, section: Any = Recipe, prefix: str = "") -> None:
    """Refuses keys that no recipe has.

    Args:
        values: Nested values, as read from YAML.
        origin: What to call the source of the values in an error.
        section: The dataclass that `values` is meant for.
        prefix: Dotted name of that section, with a dot at its end.

    Raises:
        RecipeError: Naming the first unknown key and the nearest known one.
    """
    if not isinstance(values, dict):
        where = f"{prefix.rstrip('.')} is" if prefix else "holds"
        raise RecipeError(f"{origin}: {where} {values!r}; keys with values are wanted")
    hints = typing.get_type_hints(section)
    for key, value in values.items():
        if key not in hints:
            name = f"{prefix}{key}"
            raise RecipeError(f"{origin}: unknown key {name}{suggest(name)}")
        if dataclasses.is_dataclass(hints[key]):
            check_keys(value, origin, hints[key], f"{prefix}{key}.")


def suggest(key: str) -> str:
    """A hint with the known key nearest to `key`, or an empty string.

    >>> suggest("sigmas")
    ''
    >>> suggest("optimiser.lr")
    '; the nearest known key is optimizer.lr'
    """
    known = keys()
    last = key.rpartition(".")[2]
    matches = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    # `lr: 0.1` at the top level is the key of a section, put in the wrong place.
    misplaced = [name for name in known if name.rpartition(".")[2] == last]
    nearest = (misplaced or matches)[:1]
    return f"; the nearest known key is {nearest[0]}" if nearest else ""


def explain(message: str) -> str:
    r"""The parser's message about a value of the wrong type, in one short line.

    >>> explain('Parser key "optimizer.lr":\n  Expected a <class \'float\'>. Got value: abc')
    'optimizer.lr = abc: float is wanted'
    >>> explain("Parser key \"a\":\n  Expected a typing.Literal['x', 'y']. Got value: z")
    'a = z: one of x, y is wanted'
    """
    tidy = re.sub(r"<class '([\w.]+)'>", r"\1", " ".join(message.split()))
    tidy = tidy.replace("typing.", "").replace("NoneType", "null")
    key = re.search(r'Parser key "([^"]+)"', tidy)
    simple = re.search(r"Expected an? (.+?)\. Got value: (.*)", tidy)
    union = re.search(r"Subtypes: \[(.*?)\] Errors: .*Given value: (.*)", tidy)
    found = union or simple
    return f"{key[1]} = {found[2]}: {_in_words(found[1])} is wanted" if key and found else tidy


def _in_words(types: str) -> str:
    """The types of a key; where some of its values are spelled out, all of them are.

    >>> _in_words("float, null")
    'float or null'
    >>> _in_words("bool, Literal['auto'], null")
    'one of true, false, auto, null'
    """
    if "Literal[" not in types:
        return " or ".join(types.split(", "))
    types = re.sub(r"\bbool\b", "true, false", types)
    return "one of " + re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace("'", ""), types)
