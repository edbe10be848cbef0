"""The recipes that come with the package, one YAML file each: `<dataset>_<model>_<method>.yaml`.

Every file opens with what it reproduces, what to expect, the command, the cost and what was
measured. A file may name a `base`, another recipe whose values it takes over, and a `name`, which
else is that of the file. What neither a file nor its base names takes the defaults of
`torchadder.training.Recipe`. A recipe is data: how it is run is written in `torchadder.training`.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from importlib import resources
from pathlib import Path
from typing import Any

from torchadder.training.recipe import Recipe, RecipeError, check_keys, from_dict, keys

__all__ = ["BASE", "describe", "find", "for_method", "header", "load", "names", "read"]

BASE = "base"
"""Key by which a recipe file names the recipe that it changes."""

_SECTIONS = {name for name in keys() if any(key.startswith(f"{name}.") for key in keys())}


def names() -> list[str]:
    """Names of the recipes in the package, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name[:-5] for file in files if file.name.endswith(".yaml"))


def find(name_or_path: str) -> Path:
    """The file of a recipe, given its name or its path.

    `recipes/NAME.yaml`, where there is no such file, is the recipe NAME of the package.

    Raises:
        RecipeError: If there is neither such a recipe nor such a file.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path not in names() and path.is_file():
        return path
    name = path.stem if path == Path("recipes", f"{path.stem}.yaml") else name_or_path
    if name in names():
        return Path(str(resources.files(__name__).joinpath(f"{name}.yaml")))
    if path.suffix in (".yaml", ".yml") or "/" in name_or_path:
        raise RecipeError(f"recipe {name_or_path!r}: no such file")
    near = difflib.get_close_matches(name_or_path, names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names())}"
    raise RecipeError(f"unknown recipe {name_or_path!r}; {hint}")


def read(name_or_path: str) -> dict[str, Any]:
    """The values of a recipe and of the recipes it is based on, their keys checked.

    The file's own values win. Sections (`data`, `model` ...) are merged key by key; every other
    value, a list or a mapping such as `model.kwargs` too, replaces that of the base as a whole.

    Raises:
        RecipeError: If a file is missing, is not YAML, has an unknown key, or is its own base.
    """
    return _read(find(name_or_path), ())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The merged values of `path`, which the files `above` are based on."""
    if path.resolve() in [file.resolve() for file in above]:
        chain = " -> ".join(file.name for file in (*above, path))
        raise RecipeError(f"recipe {above[0]}: {BASE}: {chain} comes back to where it was")
    try:
        values = _yaml_load(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or BASE not in values:
        check_keys(values, f"recipe {path}")
        return {"name": path.stem} | values
    own = {key: value for key, value in values.items() if key != BASE}
    check_keys(own, f"recipe {path}")
    merged = _read(_find_base(values[BASE], path), (*above, path))
    merged["name"] = path.stem
    for key, value in own.items():
        merged[key] = merged.get(key, {}) | value if key in _SECTIONS else value
    return merged


def _find_base(base: Any, path: Path) -> Path:
    """The file that `path` names as its base: a recipe of the package, or a file beside it."""
    if not isinstance(base, str):
        raise RecipeError(f"recipe {path}: {BASE} is {base!r}; a recipe's name or file is wanted")
    beside = path.parent / base
    try:
        return find(str(beside) if base not in names() and beside.is_file() else base)
    except RecipeError as error:
        raise RecipeError(f"recipe {path}: {BASE}: {error}") from error


def load(name_or_path: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """A recipe, with some of its keys replaced.

    Args:
        name_or_path: A name from `names()` or the path of a YAML file.
        overrides: Values for dotted keys, such as `{"optimizer.lr": 0.05, "epochs": 3}`.

    Raises:
        RecipeError: On an unknown recipe or key, or a value of the wrong type or out of range.

    >>> load("mnist_lenet5bn_adder", {"optimizer.lr": 0.05}).optimizer.lr
    0.05
    """
    values = read(name_or_path)
    if overrides and "method" in overrides:
        values = for_method(values, overrides["method"])
    for key, value in (overrides or {}).items():
        *sections, last = key.split(".")
        target = functools.reduce(lambda node, part: node.setdefault(part, {}), sections, values)
        target[last] = value
    return from_dict(values, f"recipe {name_or_path}")


def for_method(values: dict[str, Any], method: str) -> dict[str, Any]:
    """The values of a recipe to train it by another method.

    Keys of `distill` that spell out the defaults of the recipe's own method, as PKKD's recipes do,
    are left out: the other method has its own.

    Args:
        values: What `read` gave.
        method: The other method.
    """
    from torchadder.distill import METHODS, options_of

    before = values.get("method")
    if before == method or before not in METHODS or not values.get("distill"):
        return values
    defaults = options_of(before)
    chosen = {
        key: value
        for key, value in values["distill"].items()
        if key not in defaults or value != defaults[key]
    }
    return values | {"distill": chosen}


def describe(name: str) -> str:
    """The first line of the comment at the head of a recipe in the package."""
    return header(name).partition("\n")[0]


def header(name_or_path: str) -> str:
    """The comment at the head of a recipe, without its `#`."""
    lines = find(name_or_path).read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return "\n".join(re.sub(r"^# ?", "", line) for line in comment)


def _yaml_load(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
