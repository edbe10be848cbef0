"""The recipes that come with the package, one YAML file each: `<dataset>_<model>_<method>.yaml`.

Every file opens with what it reproduces, what to expect, the command and the cost. Values not
named in a file take the defaults of `torchadder.training.Recipe`. A recipe is data: how it is run
is written in `torchadder.training`.
"""

from __future__ import annotations

import difflib
import functools
import re
from importlib import resources
from pathlib import Path
from typing import Any

from torchadder.training.recipe import Recipe, RecipeError, check_keys, from_dict

__all__ = ["describe", "find", "load", "names", "read"]


def names() -> list[str]:
    """Names of the recipes in the package, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name[:-5] for file in files if file.name.endswith(".yaml"))


def find(name_or_path: str) -> Path:
    """The file of a recipe, given its name or its path.

    Raises:
        RecipeError: If there is neither such a recipe nor such a file.
    """
    if name_or_path in names():
        return Path(str(resources.files(__name__).joinpath(f"{name_or_path}.yaml")))
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name_or_path:
        raise RecipeError(f"recipe {name_or_path!r}: no such file")
    near = difflib.get_close_matches(name_or_path, names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names())}"
    raise RecipeError(f"unknown recipe {name_or_path!r}; {hint}")


def read(name_or_path: str) -> dict[str, Any]:
    """The values in a recipe's file, its keys checked.

    Raises:
        RecipeError: If the file is missing, is not YAML, or has an unknown key.
    """
    path = find(name_or_path)
    try:
        values = _yaml_load(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: not YAML: {' '.join(str(error).split())}") from error
    check_keys(values, f"recipe {path}")
    return values


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
    for key, value in (overrides or {}).items():
        *sections, last = key.split(".")
        target = functools.reduce(lambda node, part: node.setdefault(part, {}), sections, values)
        target[last] = value
    return from_dict(values, f"recipe {name_or_path}")


def describe(name: str) -> str:
    """The first line of the comment at the head of a recipe in the package."""
    first = find(name).read_text(encoding="utf-8").partition("\n")[0]
    return re.sub(r"^#\s*", "", first)


def _yaml_load(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
