"""Tables of several folders as one: rows trained one after another, or on several machines.

What is read are the files that a table leaves, `settings.json`, `runs.csv` and `table.csv`; the
runs themselves need not be there any more. Nothing is trained or measured.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torchadder.atomic import write_atomically
from torchadder.reproduce import drawing, writing
from torchadder.reproduce.folder import SETTINGS, Settings, parse_settings
from torchadder.reproduce.plan import ReproduceError, make_jobs
from torchadder.reproduce.results import Arithmetic, Results, Run, assemble
from torchadder.reproduce.tables import Row, Table

JOINED = "joined.json"
"""Says which folders a table was joined from, and that it may be joined anew."""

_WRITTEN = {JOINED, "table.csv", "runs.csv", "table.md", "table.png", "table-dark.png"}
_STAGES = ("new", "begun", "interrupted", "finished", "failed")


def join(
    table: Table, folders: Sequence[Path], output: Path, *, command: str | None = None
) -> Results:
    """Writes one table of the runs of several folders.

    Gains are taken anew, so a row may stand in another folder than the one it is compared with.
    All folders must hold the same table with the same settings; a run that stands in several of
    them must be the same in all.

    Args:
        table: The table.
        folders: Where it was trained, or what was kept of that.
        output: Folder of the joined table: new, empty, or joined before.
        command: The command to record; None records that of this process.

    Returns:
        What the folders hold together.

    Raises:
        ReproduceError: If a folder is given twice or holds no such table, settings or runs do not
            agree, or the output holds something else. Nothing was written then.
    """
    if len({path.resolve() for path in folders}) < len(folders):
        raise ReproduceError(f"join: a folder is given twice: {', '.join(map(str, folders))}")
    if output.exists() and (not output.is_dir() or _holds_strangers(output)):
        raise ReproduceError(
            f"output {str(output)!r} exists and holds no joined table; nothing in it is "
            "overwritten: choose another folder"
        )
    overrides = _shared_settings(table, folders)
    rows = {row.recipe: row for row in table.rows}
    runs: dict[tuple[int, str, int], Run] = {}
    arithmetic: dict[str, Arithmetic | None] = {}
    for folder in folders:
        for number, cells in enumerate(_read(folder / "runs.csv"), 2):
            place = f"{folder / 'runs.csv'}, line {number}"
            run = _read_run(cells, rows, table, output, overrides, place)
            key = run.job.epochs, run.job.row.recipe, run.job.seed
            if key in runs and _result(runs[key]) != _result(run):
                raise ReproduceError(f"{place}: {run.job.name} is another run in another folder")
            runs[key] = run
        for cells in _read(folder / "table.csv"):
            if cells.get("num_mul"):
                arithmetic[cells["recipe"]] = _arithmetic(cells, folder / "table.csv")
    ordered = [runs[key] for key in sorted(runs, key=lambda key: (key[0], key[2]))]
    names = tuple(map(str, folders))
    results = assemble(table, ordered, arithmetic, overrides, joined=names)
    output.mkdir(parents=True, exist_ok=True)
    described = {"table": table.name, "folders": names, "overrides": overrides}
    write_atomically(output / JOINED, json.dumps(described, indent=2) + "\n")
    writing.write_csv(output, results)
    writing.write_markdown(output, results, command)
    drawing.draw(output, results)
    return results


def _holds_strangers(output: Path) -> bool:
    names = {path.name for path in output.iterdir()}
    return bool(names) and (JOINED not in names or not names <= _WRITTEN)


def _shared_settings(table: Table, folders: Sequence[Path]) -> dict[str, Any]:
    """What all rows share beside their recipes."""
    found: list[Settings] = []
    for folder in folders:
        path = folder / SETTINGS
        if not path.is_file():
            raise ReproduceError(f"{str(folder)!r}: no table, {SETTINGS} is missing")
        settings = parse_settings(path)
        if settings.table != table.name:
            raise ReproduceError(f"{path}: the table is {settings.table!r}, not {table.name!r}")
        if found and settings.overrides != found[0].overrides:
            first, other = (found[0].overrides, settings.overrides)
            key = next(key for key in sorted({*first, *other}) if first.get(key) != other.get(key))
            raise ReproduceError(
                f"{path}: {key} is {other.get(key)!r} there and {first.get(key)!r} in "
                f"{folders[0]}; rows of one table share their settings"
            )
        found.append(settings)
    return found[0].overrides


def _read_run(
    cells: Mapping[str, str],
    rows: Mapping[str, Row],
    table: Table,
    output: Path,
    overrides: Mapping[str, Any],
    place: str,
) -> Run:
    """A line of `runs.csv` as what was read when it was written."""
    figure, other = table.figure, table.second
    try:
        row = rows[cells["recipe"]]
        stage, _, reason = cells["status"].partition(": ")
        if stage not in _STAGES:
            raise ValueError(f"unknown status {stage!r}")
        epochs, seed = int(cells["epochs"]), int(cells["seed"])
        columns = {
            figure.column: figure.key,
            "val_top5": "top5",
            "train_accuracy": "train_accuracy",
        }
        columns["teacher_val_accuracy"] = "teacher_accuracy"
        if other is not None:
            columns[other.column] = other.key
        shares = {column: _number(cells, key) for column, key in columns.items()}
        metrics = {name: share / 100 for name, share in shares.items() if share is not None}
        loss = _number(cells, "val_loss")
        best = _number(cells, f"best_{figure.key}")
        (job,) = make_jobs([row], output, [epochs], [seed], overrides)
        return Run(
            job=job,
            stage=cast("Any", stage),
            reason=reason,
            epochs=int(cells["finished_epochs"]),
            metrics=metrics | ({} if loss is None else {"val_loss": loss}),
            best_accuracy=None if best is None else best / 100,
            seconds=_number(cells, "seconds_per_epoch"),
            summary=_summary(cells),
            figure=figure,
            other=other,
        )
    except (KeyError, ValueError) as error:
        raise ReproduceError(f"{place}: no run of table {table.name}: {error}") from error


def _summary(cells: Mapping[str, str]) -> dict[str, Any]:
    """What `runs.csv` keeps of a run's `summary.json`; empty for a run that has none."""
    if not cells["device"]:
        return {}
    threads = int(cells["threads"]) if cells["threads"] else 1
    return {
        "date": cells["date"],
        "hardware": {"cpu": cells["device"], "torch_threads": threads},
        "versions": {name: cells[name] for name in ("torch", "torchadder")},
    }


def _result(run: Run) -> tuple[Any, ...]:
    return run.stage, run.epochs, run.metrics, run.summary.get("date")


def _arithmetic(cells: Mapping[str, str], path: Path) -> Arithmetic:
    try:
        energy = float(cells["energy_pj"])
        return Arithmetic(int(cells["num_mul"]), int(cells["num_add"]), energy)
    except (KeyError, ValueError) as error:
        raise ReproduceError(f"{path}: damaged: {error}") from error


def _number(cells: Mapping[str, str], key: str) -> float | None:
    text = cells[key]
    return float(text) if text else None


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise ReproduceError(f"{str(path.parent)!r}: no table, {path.name} is missing") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ReproduceError(f"{path}: damaged: {error}") from error
