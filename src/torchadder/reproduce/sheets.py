"""`runs.csv` and `table.csv`, both ways: what is left of a table without its runs.

Numbers come from `results`; which lines belong together is decided in `join`.
"""

from __future__ import annotations

import csv
import io
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchadder.reproduce.plan import Job, ReproduceError
from torchadder.reproduce.results import Arithmetic, Line, Outcome, Results, Run
from torchadder.reproduce.tables import Table

RUNS = "runs.csv"
LINES = "table.csv"

_MACHINE = ("device", "threads", "device_kind", "num_devices", "instruction_set")
_LATER = ("device_kind", "num_devices", "instruction_set")
"""Columns that older files lack."""


def metrics_by_column(table: Table) -> dict[str, str]:
    """Columns of `runs.csv` that are in percent, and the names of these shares in `Run.metrics`."""
    second = {} if table.second is None else {table.second.key: table.second.column}
    return {
        table.figure.key: table.figure.column,
        **second,
        "top5": "val_top5",
        "teacher_accuracy": "teacher_val_accuracy",
        "train_accuracy": "train_accuracy",
    }


def outcome_columns(table: Table) -> list[str]:
    """Columns of `runs.csv` with what came of a training, in their order."""
    figure, *others = metrics_by_column(table)
    return ["status", "finished_epochs", figure, f"best_{figure}", *others, "val_loss"]


def runs_text(results: Results) -> str:
    """The content of `runs.csv`, one line for each run."""
    columns = [
        *("row", "recipe", "epochs", "seed"),
        *outcome_columns(results.table),
        *("seconds_per_epoch", "date"),
        *_MACHINE,
        *("torch", "torchadder"),
    ]
    return _text(columns, [_run_cells(results.table, run) for run in results.runs])


def lines_text(results: Results) -> str:
    """The content of `table.csv`, one line for each row and budget."""
    lines = [_line_cells(results, line) for line in results.lines]
    return _text(list(lines[0]), lines)


def device_name(hardware: Mapping[str, Any]) -> str | None:
    """What a run was trained on: the GPU's name or the CPU's, of the `hardware` of a summary."""
    kind = hardware.get("device")
    is_gpu = hardware.get("gpu") and (kind is None or str(kind).startswith("cuda"))
    return hardware.get("gpu" if is_gpu else "cpu")


def device_kind(hardware: Mapping[str, Any]) -> str | None:
    """The kind of what a run was trained on, "cpu" or "cuda", as far as its summary says it."""
    kind = hardware.get("device")
    return None if kind is None else str(kind).partition(":")[0]


def _run_cells(table: Table, run: Run) -> dict[str, Any]:
    hardware, versions = run.summary.get("hardware", {}), run.summary.get("versions", {})
    figure = table.figure.key
    shares = {
        column: run.metrics.get(name)
        for column, name in metrics_by_column(table).items()
        # All but this one are results, which only a finished run has.
        if run.stage == "finished" or column == "train_accuracy"
    }
    return {
        "row": run.job.row.key,
        "recipe": run.job.row.recipe,
        "epochs": run.job.epochs,
        "seed": run.job.seed,
        "status": run.stage if not run.reason else f"{run.stage}: {run.reason}",
        "finished_epochs": run.epochs,
        **{column: share and 100 * share for column, share in shares.items()},
        f"best_{figure}": run.best_accuracy and 100 * run.best_accuracy,
        "val_loss": run.metrics.get("val_loss"),
        "seconds_per_epoch": run.seconds,
        "date": run.summary.get("date"),
        "device": device_name(hardware),
        "threads": hardware.get("torch_threads"),
        "device_kind": device_kind(hardware),
        "num_devices": hardware.get("num_devices"),
        "instruction_set": hardware.get("instruction_set"),
        "torch": versions.get("torch"),
        "torchadder": versions.get("torchadder"),
    }


def _line_cells(results: Results, line: Line) -> dict[str, Any]:
    row, sums = line.row, line.arithmetic
    accuracy, best = line.spread("accuracy"), line.spread("best_accuracy")
    top5, teacher = line.spread("top5"), line.spread("teacher_accuracy")
    seconds = line.spread("seconds")
    key, second = results.table.figure.key, results.table.second
    other = line.spread("second")
    return {
        "table": results.table.name,
        "net": row.group,
        "row": row.key,
        "label": row.label,
        "recipe": row.recipe,
        "epochs": line.epochs,
        "seeds": len(line.runs),
        "finished": line.num_finished,
        key: accuracy and accuracy.mean,
        f"{key}_deviation": accuracy and accuracy.deviation,
        f"{key}_lowest": accuracy and min(accuracy.values),
        f"{key}_highest": accuracy and max(accuracy.values),
        f"best_{key}": best and 100 * best.mean,
        **({} if second is None else {second.key: other and other.mean}),
        "top5": top5 and top5.mean,
        "printed": row.printed and row.printed.accuracy,
        "difference": line.difference,
        "baseline": row.baseline,
        "gain": line.gain and line.gain.mean,
        "gain_deviation": line.gain and line.gain.deviation,
        "teacher_accuracy": teacher and teacher.mean,
        "num_mul": sums and sums.num_mul,
        "num_add": sums and sums.num_add,
        "energy_pj": sums and sums.energy_pj,
        "seconds_per_epoch": seconds and seconds.mean,
        "status": line.status,
    }


def _text(columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(value) for key, value in cells.items()} for cells in lines)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


@dataclass(frozen=True)
class Record:
    """A line of one of the files. Reading a cell raises `ReproduceError` if it is not as wanted.

    Attributes:
        path: The file.
        line: Its number there.
        cells: Its cells by column.
    """

    path: Path
    line: int
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """A cell; empty for what was not known."""
        if column not in self.cells:
            if column in _LATER:
                return ""
            raise ReproduceError(f"{self.path}: damaged: it has no column {column!r}")
        return self.cells[column]

    def number(self, column: str) -> float | None:
        """A cell that may be empty: None then."""
        text = self.text(column)
        try:
            number = float(text) if text else None
        except ValueError:
            raise self.refused(f"{column} = {text!r}: a number is wanted") from None
        if number is not None and not math.isfinite(number) and column != "val_loss":
            raise self.refused(f"{column} = {text!r}: a finite number is wanted")
        return number

    def count(self, column: str) -> int:
        """A cell that must not be empty."""
        text = self.text(column)
        try:
            return int(text)
        except ValueError:
            raise self.refused(f"{column} = {text!r}: a whole number is wanted") from None

    def refused(self, reason: str) -> ReproduceError:
        """What is wrong with the line."""
        return ReproduceError(f"{self.path}, line {self.line}: {reason}")


def read(path: Path) -> list[Record]:
    """The lines of one of the files.

    Raises:
        ReproduceError: If it is missing or damaged; a line that was cut is.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            records = [Record(path, reader.line_num, cells) for cells in reader]
    except FileNotFoundError:
        raise ReproduceError(f"{str(path.parent)!r}: no table, {path.name} is missing") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ReproduceError(f"{path}: damaged: {error}") from error
    if "recipe" not in columns:
        raise ReproduceError(f"{path}: damaged: it has no column 'recipe'")
    for record in records:
        # What `DictReader` gives where a line has fewer cells than the header, or more.
        if None in record.cells.values() or None in record.cells:
            raise record.refused("damaged: it has not as many cells as the header")
    return records


def read_run(record: Record, job: Job, table: Table) -> Run:
    """A line of `runs.csv` as the run that it was written of.

    Args:
        record: The line.
        job: Its training; where that lies is of no matter.
        table: The table whose figures are wanted.
    """
    stage, _, reason = record.text("status").partition(": ")
    if stage not in typing.get_args(Outcome):
        raise record.refused(f"unknown status {stage!r}")
    shares = {name: record.number(column) for column, name in metrics_by_column(table).items()}
    metrics = {name: share / 100 for name, share in shares.items() if share is not None}
    if stage == "finished" and table.figure.column not in metrics:
        raise record.refused(f"{table.figure.key} is empty, though the run is finished")
    loss, best = record.number("val_loss"), record.number(f"best_{table.figure.key}")
    return Run(
        job=job,
        stage=typing.cast("Outcome", stage),
        reason=reason,
        epochs=record.count("finished_epochs"),
        metrics=metrics | ({} if loss is None else {"val_loss": loss}),
        best_accuracy=None if best is None else best / 100,
        seconds=record.number("seconds_per_epoch"),
        summary=_summary(record),
        figure=table.figure,
        other=table.second,
    )


def _summary(record: Record) -> dict[str, Any]:
    """What is kept of a run's `summary.json`; empty for a run that had none."""
    kind = record.text("device_kind")
    hardware = {
        "device": kind or None,
        "gpu" if kind == "cuda" else "cpu": record.text("device") or None,
        "instruction_set": record.text("instruction_set") or None,
        **{
            name: record.count(column) if record.text(column) else None
            for column, name in (("threads", "torch_threads"), ("num_devices", "num_devices"))
        },
    }
    versions = {name: record.text(name) for name in ("torch", "torchadder")}
    found = {
        "date": record.text("date"),
        "hardware": {name: value for name, value in hardware.items() if value is not None},
        "versions": {name: value for name, value in versions.items() if value},
    }
    return {name: value for name, value in found.items() if value}


def read_arithmetic(record: Record) -> Arithmetic | None:
    """Operations and energy of a line of `table.csv`; None where they were not known."""
    if not record.text("num_mul"):
        return None
    energy = record.number("energy_pj")
    if energy is None:
        raise record.refused("energy_pj is empty: a number is wanted")
    return Arithmetic(record.count("num_mul"), record.count("num_add"), energy)
