"""From a table to trainings: rows x budgets x seeds, each with its recipe, folder and command.

A plan says what is to be trained and where; nothing here looks at the disk or trains.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchadder import recipes
from torchadder.reproduce.tables import Row, Table
from torchadder.training.recipe import PLACE_KEYS, Recipe, RecipeError, keys, suggest
from torchadder.wording import counted

SHARED = ("data", "optimizer", "schedule", "trainer")
"""Sections of a recipe that may be changed for all rows of a table; the others make the rows."""

OF_ROWS = frozenset(
    f"detection.{key}" for key in ("adder", "neck", "grad", "frozen_bn", "force_frozen_bn")
)
"""Keys of the section `detection` in which rows differ; its others can be changed for all rows."""

NEUTRAL = frozenset(
    {*(f"trainer.{key}" for key in (*PLACE_KEYS, "record_stability")), "data.device_cache"}
)
"""Keys that say where a run computes or what it records, not what it trains.

They may differ from one call to the next.
"""


class ReproduceError(ValueError):
    """A table that cannot be trained as asked; the message names the value and what is wanted."""


@dataclass(frozen=True, eq=False)
class Job:
    """One training of a table.

    Attributes:
        row: The row it belongs to.
        epochs: Its budget.
        seed: Its seed.
        recipe: What is trained.
        folder: Its run folder.
        teacher: Run folder of the net that teaches it; None for none.
        arguments: What `torchadder train` takes for the same.
    """

    row: Row
    epochs: int
    seed: int
    recipe: Recipe
    folder: Path
    teacher: Path | None
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The same by hand."""
        return shlex.join(["torchadder", "train", *self.arguments])

    @property
    def name(self) -> str:
        """Row, budget and seed in words."""
        return f"{self.row.key}, {counted(self.epochs, 'epoch')}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """What a call is to train.

    Attributes:
        table: The table.
        output: Folder of the table.
        rows: Rows to train, in the table's order, teachers of wanted rows included.
        budgets: Epochs, ascending.
        seeds: Seeds.
        overrides: Values for dotted keys of every recipe.
        jobs: The trainings in the order in which they are done.
    """

    table: Table
    output: Path
    rows: tuple[Row, ...]
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    overrides: dict[str, Any]
    jobs: tuple[Job, ...]


def make_plan(
    table: Table,
    output: Path,
    *,
    budgets: Sequence[int] | None = None,
    num_seeds: int = 1,
    rows: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Turns a table into trainings.

    All rows are trained on the same images with the same budget, order and augmentation: these are
    functions of the section `data`, the epochs and the seed, which the rows of a table share.
    Smaller budgets come first, and within a budget one seed after the other, so that an
    unfinished table is as complete as it can be.

    Args:
        table: The table.
        output: Folder of the table.
        budgets: Epochs of each row; several make a curve. None takes the table's own.
        num_seeds: Seeds 0 .. `num_seeds` - 1.
        rows: Keys or patterns (`resnet20_*`) of the rows wanted; None takes all. Rows whose nets
            teach a wanted row are added.
        overrides: Values for dotted keys in the sections `SHARED`, and in `detection` for those
            that are not `OF_ROWS`.

    Raises:
        ReproduceError: On a budget or number of seeds below 1, an unknown row, or a key that the
            rows do not share.
        RecipeError: On an unknown key or a value of the wrong type or out of range.
    """
    overrides = dict(overrides or {})
    check_overrides(overrides)
    chosen = sorted(set([table.epochs] if budgets is None else budgets))
    if not chosen or chosen[0] < 1:
        raise ReproduceError(f"budget = {', '.join(map(str, chosen))}: epochs >= 1 are wanted")
    if num_seeds < 1:
        raise ReproduceError(f"seeds = {num_seeds}: at least 1 is wanted")
    wanted = choose_rows(table, rows)
    seeds = tuple(range(num_seeds))
    jobs = make_jobs(wanted, output, chosen, seeds, overrides)
    return Plan(table, output, wanted, tuple(chosen), seeds, overrides, jobs)


def make_jobs(
    rows: Sequence[Row],
    output: Path,
    budgets: Sequence[int],
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
    *,
    skip_refused: bool = False,
) -> tuple[Job, ...]:
    """Every row with every budget and seed, in the order in which they are trained.

    Args:
        rows: The rows.
        output: Folder of the table.
        budgets: Epochs.
        seeds: Seeds.
        overrides: Values for dotted keys of every recipe.
        skip_refused: Leave out the budgets that a row's recipe refuses, as one of fewer epochs than
            it has cycles.

    Raises:
        RecipeError: If a recipe refuses a value; a budget only if it is not to be left out.
    """
    # What the rows' files say is read once; budget and seed are put in afterwards.
    loaded = {row: recipes.load(row.recipe, dict(overrides)) for row in rows}
    jobs = []
    for epochs, seed, row in itertools.product(budgets, seeds, rows):
        try:
            jobs.append(_make_job(row, loaded[row], output, epochs, seed, overrides))
        except RecipeError:
            if not skip_refused:
                raise
    return tuple(jobs)


def _make_job(
    row: Row,
    recipe: Recipe,
    output: Path,
    epochs: int,
    seed: int,
    overrides: Mapping[str, Any],
) -> Job:
    """The training of one row with one budget and seed."""
    own: dict[str, Any] = {"epochs": epochs, "seed": seed}
    distill = recipe.distill
    teacher = None
    if row.teacher is not None:
        teacher = run_folder(output, row.teacher, epochs, seed)
        weights = str(teacher / "checkpoints" / "last.safetensors")
        own["distill.teacher_checkpoint"] = weights
        distill = dataclasses.replace(distill, teacher_checkpoint=weights)
    try:
        recipe = dataclasses.replace(recipe, epochs=epochs, seed=seed, distill=distill)
    except RecipeError as error:
        raise RecipeError(
            f"row {row.key}: {error}; take another budget, or leave the row out with --rows"
        ) from error
    folder = run_folder(output, row.recipe, epochs, seed)
    options = spell_options(own | dict(overrides))
    arguments = (row.recipe, *options, f"--output={folder}")
    return Job(row, epochs, seed, recipe, folder, teacher, arguments)


def run_folder(output: Path, recipe: str, epochs: int, seed: int) -> Path:
    """Where the run of a row lies."""
    return output / "runs" / f"{recipe}-{epochs}-epochs-seed-{seed}"


def choose_rows(table: Table, patterns: Sequence[str] | None) -> tuple[Row, ...]:
    """The rows that match one of the patterns, and the teachers they need.

    Raises:
        ReproduceError: If a pattern matches no row.
    """
    if patterns is None:
        return table.rows
    found: set[str] = set()
    for pattern in patterns:
        matches = [
            row
            for row in table.rows
            if fnmatch.fnmatchcase(row.key, pattern) or fnmatch.fnmatchcase(row.recipe, pattern)
        ]
        if not matches:
            known = ", ".join(row.key for row in table.rows)
            raise ReproduceError(f"rows: {table.name} has no row {pattern!r}; it has {known}")
        found |= {row.recipe for row in matches}
        found |= {row.teacher for row in matches if row.teacher is not None}
    return tuple(row for row in table.rows if row.recipe in found)


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuses keys that no recipe has, or that make the difference between the rows.

    Raises:
        ReproduceError: Naming the first such key.
    """
    known = keys()
    for key, value in overrides.items():
        if key not in known:
            raise ReproduceError(f"unknown key {key}{suggest(key)}")
        section, dot, _ = key.partition(".")
        is_shared = section in SHARED or (section == "detection" and key not in OF_ROWS)
        if not is_shared or not dot:
            raise ReproduceError(
                f"{key} = {value!r}: this differs between the rows of a table; keys of "
                f"{', '.join(SHARED)} can be changed for all of them"
            )


def difference(planned: Recipe, found: Recipe) -> str | None:
    """The first setting in which two recipes differ, in words; None if they train the same.

    What is not trained by (`NEUTRAL`) does not count, nor does the path of a teacher: it is
    the run folder of the teacher's row wherever the table lies.
    """
    now, then = flatten(planned.to_dict()), flatten(found.to_dict())
    for key in sorted((now.keys() | then.keys()) - NEUTRAL - {"distill.teacher_checkpoint"}):
        if now.get(key) != then.get(key):
            return f"{key} is {then.get(key)!r} there and {now.get(key)!r} now"
    return None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted keys.

    >>> flatten({"epochs": 3, "optimizer": {"lr": 0.1}})
    {'epochs': 3, 'optimizer.lr': 0.1}
    """
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def spell_options(values: Mapping[str, Any]) -> list[str]:
    """Values for dotted keys as the command line takes them.

    >>> spell_options({"trainer.threads": None, "trainer.tf32": True, "epochs": 3})
    ['--trainer.threads=null', '--trainer.tf32=true', '--epochs=3']
    """
    return [f"--{key}={_spell(value)}" for key, value in values.items()]


def _spell(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
