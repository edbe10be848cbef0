"""The folder of a table: its settings, who is at work in it, and how far each run has come."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchadder import locks
from torchadder.atomic import is_temporary, write_atomically
from torchadder.reproduce.plan import NEUTRAL, Job, Plan, ReproduceError, difference
from torchadder.training.folders import RUN_FILES
from torchadder.training.recipe import RecipeError, read_recipe

SETTINGS = "settings.json"

JOINED = "joined.json"
"""Says which folders a table was joined from, and that it may be joined anew."""

_OWN_FILES = (".lock", SETTINGS, "runs")

Stage = Literal["new", "begun", "interrupted", "finished"]


@dataclass(frozen=True)
class Settings:
    """What was asked for in a folder, over all calls.

    Attributes:
        table: Name of the table.
        overrides: Values for dotted keys, without those that only say where to compute.
        rows: Recipes of the rows, in the table's order.
        budgets: Epochs, ascending.
        seeds: Seeds, ascending.
    """

    table: str
    overrides: dict[str, Any]
    rows: list[str]
    budgets: list[int]
    seeds: list[int]


def read_settings(folder: Path) -> Settings | None:
    """The settings of a folder; None if no run was begun in it, so that nothing binds the next.

    Raises:
        ReproduceError: If the file is damaged.
    """
    path = folder / SETTINGS
    if not path.is_file() or not (folder / "runs").is_dir():
        return None
    return parse_settings(path)


def parse_settings(path: Path) -> Settings:
    """The settings that a file holds.

    Raises:
        ReproduceError: If the file is damaged.
    """
    try:
        settings = Settings(**json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(settings.table, str) or not isinstance(settings.overrides, dict):
            raise TypeError("a name as table and a mapping as overrides are wanted")
        for name, kind in (("rows", str), ("budgets", int), ("seeds", int)):
            values = getattr(settings, name)
            if not isinstance(values, list) or not all(type(value) is kind for value in values):
                wanted = "names" if kind is str else "whole numbers"
                raise TypeError(f"a list of {wanted} as {name} is wanted")
        return settings
    except (ValueError, TypeError) as error:
        raise ReproduceError(f"{path}: damaged: {' '.join(str(error).split())}") from error


def settle(plan: Plan) -> Settings:
    """The settings of the plan's folder with those of the plan added, after all checks.

    A folder holds one table with one set of settings. Rows, budgets and seeds may be added.

    Raises:
        ReproduceError: If the folder belongs to something else, or its table or one of its runs
            has other settings. Nothing was written then.
    """
    output = plan.output
    found = read_settings(output)
    wanted = {key: value for key, value in plan.overrides.items() if key not in NEUTRAL}
    if found is None:
        if output.exists() and (not output.is_dir() or holds_strangers(output, _OWN_FILES)):
            kind = "a joined table" if (output / JOINED).is_file() else "no table"
            raise ReproduceError(
                f"output {str(output)!r} exists and holds {kind}; nothing in it is overwritten: "
                "choose another folder"
            )
        found = Settings(plan.table.name, wanted, [], [], [])
    if found.table != plan.table.name:
        raise _changed(output, f"the table is {found.table!r} there and {plan.table.name!r} now")
    changed = changed_key(found.overrides, wanted)
    if changed is not None:
        key, then, now = changed
        raise _changed(output, f"{key} is {then} there and {now} now")
    for job in plan.jobs:
        _check_run(job, output)
    order = [row.recipe for row in plan.table.rows]
    rows = {row.recipe for row in plan.rows} | set(found.rows)
    return Settings(
        table=plan.table.name,
        overrides=wanted,
        rows=[recipe for recipe in order if recipe in rows],
        budgets=sorted({*found.budgets, *plan.budgets}),
        seeds=sorted({*found.seeds, *plan.seeds}),
    )


def changed_key(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first key in which two groups of overrides differ, and both values in words.

    >>> changed_key({"trainer.patience": None}, {})
    ('trainer.patience', 'None', "the recipe's own")
    """
    for key in sorted(one.keys() | other.keys()):
        # As words, because 1 and 1.0 are not the same setting: a number of batches and a share.
        first, second = (
            repr(group[key]) if key in group else "the recipe's own" for group in (one, other)
        )
        if first != second:
            return key, first, second
    return None


def write_settings(folder: Path, settings: Settings) -> None:
    """Writes the settings; the file is whole at any time."""
    write_atomically(folder / SETTINGS, json.dumps(vars(settings), indent=2) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps every other process from working in the same folder.

    The lock is the system's and ends with the process, however that ends.

    Raises:
        ReproduceError: If another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    file.touch()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.locked(file))
        except BlockingIOError as error:
            raise ReproduceError(
                f"output {str(folder)!r}: another torchadder reproduce is at work there"
            ) from error
        yield


def stage(folder: Path, epochs: int) -> Stage:
    """How far a run of so many epochs has come.

    Returns:
        "new": nothing is there; "begun": no checkpoint was written; "interrupted": there is one,
        perhaps of all epochs, but not what comes after them; "finished".
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return "new"
    summary = read_summary(folder)
    is_complete = summary.get("epochs") == epochs or summary.get("ended_early", False)
    if summary.get("status") == "finished" and is_complete:
        return "finished"
    return "interrupted" if (folder / "checkpoints" / "last.ckpt").is_file() else "begun"


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's `summary.json`; empty if there is none, or it was cut short."""
    try:
        values = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def clear(folder: Path) -> None:
    """Removes a run that was killed before its first checkpoint.

    Raises:
        ReproduceError: If the folder holds something that no run writes.
    """
    _refuse_strangers(folder)
    shutil.rmtree(folder)


def _check_run(job: Job, output: Path) -> None:
    """Refuses a run folder that holds another run, or no run at all."""
    if stage(job.folder, job.epochs) in ("new", "begun"):
        if job.folder.is_dir():
            _refuse_strangers(job.folder)
        return
    try:
        found = read_recipe(job.folder)
    except (OSError, RecipeError) as error:
        raise _changed(output, f"a run cannot be read: {error}") from error
    changed = difference(job.recipe, found)
    if changed:
        raise _changed(output, f"{changed} ({job.folder})")


def _refuse_strangers(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.name not in RUN_FILES and not is_temporary(path):
            raise ReproduceError(
                f"{str(folder)!r} holds {path.name!r}, which no run wrote; nothing was overwritten"
            )


def holds_strangers(folder: Path, own: Collection[str]) -> bool:
    """Whether a folder holds anything but files of these names and what killed processes left."""
    return any(path.name not in own and not is_temporary(path) for path in folder.iterdir())


def _changed(output: Path, what: str) -> ReproduceError:
    return ReproduceError(
        f"output {str(output)!r} holds a table with other settings: {what}; nothing was "
        "overwritten: choose another folder"
    )
