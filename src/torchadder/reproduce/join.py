"""Tables of several folders as one: rows trained one after another, or on several machines.

What is read are the files that a table leaves, `settings.json` (of a joined table `joined.json`),
`runs.csv` and `table.csv`; the runs themselves need not be there any more. Nothing is trained or
measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchadder.atomic import remove_temporaries, write_atomically
from torchadder.reproduce import drawing, sheets, writing
from torchadder.reproduce.folder import JOINED
from torchadder.reproduce.origins import (
    PICTURES,
    Origin,
    check_output,
    read_origins,
    share_settings,
)
from torchadder.reproduce.plan import Job, ReproduceError, choose_rows, make_jobs
from torchadder.reproduce.results import Arithmetic, Results, Run, Source, assemble
from torchadder.reproduce.sheets import Record
from torchadder.reproduce.tables import Row, Table
from torchadder.training.recipe import RecipeError

Key = tuple[int, str, int]
"""Epochs, recipe and seed: what makes two runs the same training."""


def join(
    table: Table,
    folders: Sequence[Path],
    output: Path,
    *,
    rows: Sequence[str] | None = None,
    command: str | None = None,
) -> Results:
    """Writes one table of the runs of several folders.

    Gains are taken anew, so a row may stand in another folder than the one it is compared with.
    All folders must have the same settings. Of a folder of another table those runs count whose
    recipes are rows of this table; a joined table can be joined again.

    Where several folders have the same row with the same budget and seed, the run that is further
    along counts. Of finished runs with other figures that of the folder named first counts, and
    `table.md` names those left out.

    Args:
        table: The table.
        folders: Where it was trained, or what was kept of that.
        output: Folder of the joined table: new, empty, or joined before.
        rows: Keys or patterns of the rows wanted; None takes all. Rows whose nets teach a wanted
            row come along.
        command: The command to record; None records that of this process.

    Returns:
        What the folders hold together.

    Raises:
        ReproduceError: If a folder is given twice, is damaged or brings no run, settings do not
            agree, a row is unknown, or the output holds something else. Nothing was written then.
    """
    wanted = {row.recipe: row for row in choose_rows(table, rows)}
    check_output(table, folders, output)
    origins = read_origins(folders)
    overrides = share_settings(origins)
    records = [_read_runs(origin, table, wanted) for origin in origins]
    jobs = _make_jobs({key for found in records for key in found}, wanted, output, overrides)
    runs, left_out = _choose_runs(table, records, jobs)
    sources = tuple(
        Source(str(origin.folder), origin.table, tuple(names))
        for origin, names in zip(origins, left_out, strict=True)
    )
    ordered = [runs[key] for key in sorted(runs, key=lambda key: (key[0], key[2]))]
    results = assemble(table, ordered, _read_arithmetic(folders), overrides, sources)
    output.mkdir(parents=True, exist_ok=True)
    remove_temporaries(output)
    names = [str(folder) for folder in folders]
    described = {"table": table.name, "folders": names, "overrides": overrides}
    write_atomically(output / JOINED, json.dumps(described, indent=2) + "\n")
    writing.write_csv(output, results)
    writing.write_markdown(output, results, command)
    if not drawing.draw(output, results):
        for name in PICTURES:
            (output / name).unlink(missing_ok=True)
    return results


def _read_runs(origin: Origin, table: Table, wanted: Mapping[str, Row]) -> dict[Key, Record]:
    """A folder's runs of the rows that are wanted."""
    known = {row.recipe for row in table.rows}
    found: dict[Key, Record] = {}
    for record in sheets.read(origin.folder / sheets.RUNS):
        recipe = record.text("recipe")
        if origin.table == table.name and recipe not in known:
            raise record.refused(f"recipe = {recipe!r} is no row of the table {table.name}")
        if recipe not in wanted:
            continue
        key = record.count("epochs"), recipe, record.count("seed")
        if key in found:
            raise record.refused(f"the run of line {found[key].line} once more")
        found[key] = record
    if not found:
        asked = "" if len(wanted) == len(known) else " that were asked for"
        raise ReproduceError(
            f"{str(origin.folder)!r}: its table {origin.table} has no run of the rows{asked} of "
            f"the table {table.name}"
        )
    return found


def _make_jobs(
    keys: Iterable[Key], rows: Mapping[str, Row], output: Path, overrides: Mapping[str, Any]
) -> dict[Key, Job]:
    """The trainings of these runs."""
    jobs: dict[Key, Job] = {}
    asked: dict[str, list[Key]] = {}
    for key in keys:
        asked.setdefault(key[1], []).append(key)
    # Row by row: not every row can be trained with the budgets of the others.
    for recipe, own in sorted(asked.items()):
        budgets, seeds = {key[0] for key in own}, {key[2] for key in own}
        try:
            made = make_jobs([rows[recipe]], output, sorted(budgets), sorted(seeds), overrides)
        except RecipeError as error:
            message = f"join: row {rows[recipe].key} cannot have been trained so: "
            if isinstance(error.__cause__, RecipeError):
                # The budget is the reason; around it stands advice for those who train.
                message += f"{error.__cause__}; leave it out with --rows"
            else:
                message += str(error)
            raise ReproduceError(message) from error
        jobs |= {(job.epochs, recipe, job.seed): job for job in made}
    return jobs


def _choose_runs(
    table: Table, records: Sequence[Mapping[Key, Record]], jobs: Mapping[Key, Job]
) -> tuple[dict[Key, Run], list[list[str]]]:
    """The run that counts for each key, and for each folder the finished ones that do not."""
    chosen: dict[Key, tuple[Run, Record]] = {}
    left_out: list[list[str]] = [[] for _ in records]
    for found, names in zip(records, left_out, strict=True):
        for key, record in found.items():
            run = sheets.read_run(record, jobs[key], table)
            if key not in chosen or _progress(run) > _progress(chosen[key][0]):
                chosen[key] = run, record
            elif run.stage == "finished" and _figures(record, table) != _figures(
                chosen[key][1], table
            ):
                names.append(run.job.name)
    return {key: run for key, (run, _) in chosen.items()}, left_out


def _progress(run: Run) -> tuple[bool, int, bool]:
    """What makes one run further along than another."""
    if run.stage == "finished":
        return True, 0, True  # one that ended early is not behind
    return False, run.epochs, run.stage != "new"


def _figures(record: Record, table: Table) -> list[str]:
    """What came of a run; as text, because a loss of NaN differs from itself."""
    return [record.text(column) for column in sheets.outcome_columns(table)]


def _read_arithmetic(folders: Sequence[Path]) -> dict[str, Arithmetic | None]:
    """Operations and energy by recipe; of the folder named first."""
    found: dict[str, Arithmetic | None] = {}
    for folder in folders:
        for record in sheets.read(folder / sheets.LINES):
            sums = sheets.read_arithmetic(record)
            if sums is not None:
                found.setdefault(record.text("recipe"), sums)
    return found
