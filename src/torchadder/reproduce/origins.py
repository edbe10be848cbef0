"""Folders to join: which tables they hold, with which settings, and where the joint one may lie.

Their runs are unknown here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchadder.report.style import THEMES
from torchadder.reproduce import sheets, writing
from torchadder.reproduce.folder import (
    JOINED,
    SETTINGS,
    changed_key,
    holds_strangers,
    parse_settings,
)
from torchadder.reproduce.plan import NEUTRAL, ReproduceError, check_overrides
from torchadder.reproduce.tables import Table

PICTURES = tuple(f"table{theme.suffix}.png" for theme in THEMES)

_FILES = (JOINED, sheets.LINES, sheets.RUNS, writing.PAGE, *PICTURES)


@dataclass(frozen=True)
class Origin:
    """A folder to join.

    Attributes:
        folder: Its path.
        table: Name of the table it holds.
        overrides: Values that all its rows share beside their recipes.
    """

    folder: Path
    table: str
    overrides: dict[str, Any]


def check_output(table: Table, folders: Sequence[Path], output: Path) -> None:
    """Refuses to write over anything but this table, joined before.

    Raises:
        ReproduceError: If the output holds something else or is one of the folders to join.
    """
    if output.resolve() in [folder.resolve() for folder in folders]:
        raise ReproduceError(f"output {str(output)!r} is one of the folders to join")
    if not output.exists():
        return
    is_joined = (output / JOINED).is_file()
    if not output.is_dir() or holds_strangers(output, _FILES if is_joined else ()):
        raise ReproduceError(
            f"output {str(output)!r} exists and holds no joined table; nothing in it is "
            "overwritten: choose another folder"
        )
    found = _read_joined(output).table if is_joined else table.name
    if found != table.name:
        raise ReproduceError(
            f"output {str(output)!r} holds the joined table {found!r}, not {table.name!r}; "
            "nothing in it is overwritten: choose another folder"
        )


def read_origins(folders: Sequence[Path]) -> list[Origin]:
    """Tables and settings of folders; settings that only say where to compute are left out.

    Raises:
        ReproduceError: If there is no folder, one is given twice, or one has no settings, damaged
            ones, or some that no table can have.
    """
    if not folders:
        raise ReproduceError("join: no folder is given")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ReproduceError(f"join: a folder is given twice: {', '.join(map(str, folders))}")
    return [_read_origin(folder) for folder in folders]


def share_settings(origins: Sequence[Origin]) -> dict[str, Any]:
    """The settings of all folders.

    Raises:
        ReproduceError: If those of two folders differ.
    """
    first = origins[0]
    for origin in origins[1:]:
        changed = changed_key(origin.overrides, first.overrides)
        if changed is not None:
            key, there, here = changed
            raise ReproduceError(
                f"{str(origin.folder)!r}: {key} is {there} there and {here} in "
                f"{str(first.folder)!r}; rows of one table share their settings"
            )
    return first.overrides


def _read_origin(folder: Path) -> Origin:
    path = folder / SETTINGS
    if path.is_file():
        settings = parse_settings(path)
        origin = Origin(folder, settings.table, settings.overrides)
    elif (folder / JOINED).is_file():
        path = folder / JOINED
        origin = _read_joined(folder)
    else:
        raise ReproduceError(f"{str(folder)!r}: no table, {SETTINGS} is missing")
    try:
        check_overrides(origin.overrides)
    except ReproduceError as error:
        raise ReproduceError(f"{path}: {error}") from error
    own = {key: value for key, value in origin.overrides.items() if key not in NEUTRAL}
    return Origin(folder, origin.table, own)


def _read_joined(folder: Path) -> Origin:
    """Table and settings of a folder that holds a joined table."""
    path = folder / JOINED
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReproduceError(f"{path}: damaged: {' '.join(str(error).split())}") from error
    for key, kind in (("table", str), ("overrides", dict)):
        if not isinstance(values, dict) or not isinstance(values.get(key), kind):
            raise ReproduceError(f"{path}: damaged: it has no {key!r}")
    return Origin(folder, values["table"], values["overrides"])
