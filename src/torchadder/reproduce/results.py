"""What the runs of a table have measured: accuracies by row and budget, operations, hardware."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

import torchadder
from torchadder import energy
from torchadder.checkpoint import CheckpointError, read_info
from torchadder.reproduce.folder import Stage, read_summary, stage
from torchadder.reproduce.plan import Job
from torchadder.reproduce.tables import ACCURACY, Figure, Row, Table
from torchadder.training.callbacks import read_metrics

Outcome = Literal[Stage, "failed"]
"""What has become of a run: how far it is, see `folder.stage`, or that it failed."""


@dataclass(frozen=True)
class Run:
    """What one training has come to.

    Attributes:
        job: The training.
        stage: What has become of it.
        reason: Why it failed, in this call or an earlier one; empty if it did not.
        epochs: Finished epochs.
        metrics: The last row of its `metrics.csv`; accuracies are shares.
        best_accuracy: Highest accuracy of any epoch, a share; None before the first.
        seconds: Seconds per epoch, the mean; None before the first.
        summary: Its `summary.json`; empty if there is none.
        figure: What its table compares, here called its accuracy.
        other: What its table shows beside; None for nothing.
    """

    job: Job
    stage: Outcome
    reason: str
    epochs: int
    metrics: dict[str, float]
    best_accuracy: float | None
    seconds: float | None
    summary: dict[str, Any]
    figure: Figure = ACCURACY
    other: Figure | None = None

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy of the last epoch in percent; None unless the run is finished."""
        return self._percent(self.figure.column)

    @property
    def second(self) -> float | None:
        """What the table shows beside it, in percent."""
        return None if self.other is None else self._percent(self.other.column)

    @property
    def top5(self) -> float | None:
        """The same for the five most probable classes."""
        return self._percent("val_top5")

    @property
    def teacher_accuracy(self) -> float | None:
        """The same for the teacher."""
        return self._percent("teacher_val_accuracy")

    def _percent(self, column: str) -> float | None:
        if self.stage != "finished" or column not in self.metrics:
            return None
        return 100 * self.metrics[column]


def read_run(
    job: Job, failure: str = "", figure: Figure = ACCURACY, other: Figure | None = None
) -> Run:
    """Reads what a run left.

    Args:
        job: The training.
        failure: Why it failed in this call; empty if it did not.
        figure: What its table compares.
        other: What its table shows beside.
    """
    path = job.folder / "metrics.csv"
    rows = read_metrics(path) if path.is_file() else []
    summary = read_summary(job.folder)
    accuracies = [row[figure.column] for row in rows if figure.column in row]
    found = stage(job.folder, job.epochs)
    status = str(summary.get("status", ""))
    if status.startswith("stopped: "):
        failure = failure or status.removeprefix("stopped: ")
    return Run(
        job=job,
        stage="failed" if failure else found,
        reason=failure,
        epochs=len(rows),
        metrics=rows[-1] if rows else {},
        best_accuracy=max(accuracies) if accuracies else None,
        seconds=statistics.fmean(row["seconds"] for row in rows) if rows else None,
        summary=summary,
        figure=figure,
        other=other,
    )


@dataclass(frozen=True)
class Spread:
    """Mean and spread of a figure over seeds.

    Attributes:
        values: The figures, one a seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation (divided by n - 1); None for a single figure."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Arithmetic:
    """Operations of one image and their energy, see `torchadder.energy`."""

    num_mul: int
    num_add: int
    energy_pj: float


@dataclass(frozen=True)
class Line:
    """A row of the table at one budget.

    Attributes:
        row: The row.
        epochs: The budget.
        runs: Its trainings, one a seed.
        gain: Accuracy above that of the baseline in points, seed by seed; None without either.
        arithmetic: Operations and energy; None before a run is finished.
    """

    row: Row
    epochs: int
    runs: tuple[Run, ...]
    gain: Spread | None = None
    arithmetic: Arithmetic | None = None

    def spread(self, name: str) -> Spread | None:
        """`accuracy`, `second`, `top5`, `teacher_accuracy` or `seconds` over the finished runs."""
        finished = [run for run in self.runs if run.stage == "finished"]
        values = [getattr(run, name) for run in finished]
        known = tuple(value for value in values if value is not None)
        return Spread(known) if known else None

    @property
    def difference(self) -> float | None:
        """Mean accuracy minus the printed one, in points; None without either."""
        accuracy = self.spread("accuracy")
        if accuracy is None or self.row.printed is None:
            return None
        return accuracy.mean - self.row.printed.accuracy

    @property
    def num_finished(self) -> int:
        """Number of finished runs."""
        return sum(run.stage == "finished" for run in self.runs)

    @property
    def status(self) -> str:
        """`finished`, `3 of 5 seeds`, `not begun`, or why runs failed."""
        failures = [run for run in self.runs if run.stage == "failed"]
        if failures:
            seeds = ", ".join(str(run.job.seed) for run in failures)
            return f"seed {seeds} failed: {failures[0].reason}"
        if self.num_finished == len(self.runs):
            return "finished"
        if not any(run.epochs for run in self.runs):
            return "not begun"
        return f"{self.num_finished} of {len(self.runs)} seeds finished"


@dataclass(frozen=True)
class Source:
    """A folder that a table was joined from.

    Attributes:
        folder: Its path, as it was given.
        table: Name of the table it holds.
        left_out: Its finished runs that gave way to others of an earlier folder, in words.
    """

    folder: str
    table: str
    left_out: tuple[str, ...] = ()

    def say_left_out(self, mark: str = "") -> str:
        """Which runs were left out and why, with a mark around the folder's path."""
        return (
            f"left out of {mark}{self.folder}{mark}, because another folder with other figures is "
            f"named before it: {'; '.join(self.left_out)}"
        )


@dataclass(frozen=True)
class Results:
    """A table as far as it is measured.

    Attributes:
        table: The table.
        lines: One for each row and budget, budgets ascending.
        overrides: Values that all rows share beside their recipes.
        joined: Folders that it was joined from, see `torchadder.reproduce.join`; empty for the
            table of a folder.
    """

    table: Table
    lines: tuple[Line, ...]
    overrides: dict[str, Any] = field(default_factory=dict)
    joined: tuple[Source, ...] = ()

    @property
    def budgets(self) -> list[int]:
        """Budgets, ascending."""
        return sorted({line.epochs for line in self.lines})

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for line in self.lines for run in line.runs]

    def name_of(self, row: Row) -> str:
        """A row's label, with the net where the table has several."""
        groups = {line.row.group for line in self.lines}
        return f"{row.group}, {row.label}" if len(groups) > 1 else row.label

    def at(self, epochs: int) -> list[Line]:
        """The lines of one budget."""
        return [line for line in self.lines if line.epochs == epochs]


def collect(
    table: Table,
    jobs: Sequence[Job],
    *,
    failures: Mapping[Path, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Results:
    """Reads all runs of a table.

    Args:
        table: The table.
        jobs: Its trainings.
        failures: Run folder and reason of those that failed in this call.
        overrides: Values that all rows share beside their recipes.
    """
    failures = failures or {}
    runs = [read_run(job, failures.get(job.folder, ""), table.figure, table.second) for job in jobs]
    recipes = dict.fromkeys(job.row.recipe for job in jobs)
    arithmetic = {
        recipe: count_arithmetic([run for run in runs if run.job.row.recipe == recipe])
        for recipe in recipes
    }
    return assemble(table, runs, arithmetic, overrides or {})


def assemble(
    table: Table,
    runs: Sequence[Run],
    arithmetic: Mapping[str, Arithmetic | None],
    overrides: Mapping[str, Any],
    joined: tuple[Source, ...] = (),
) -> Results:
    """Makes the lines of a table of its runs.

    Args:
        table: The table.
        runs: Its trainings; those of a row and budget in the order of their seeds.
        arithmetic: Operations and energy by recipe, as far as they are known.
        overrides: Values that all rows share beside their recipes.
        joined: See `Results`.
    """
    found: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.job.epochs, run.job.row.recipe), []).append(run)
    lines = []
    for epochs in sorted({epochs for epochs, _ in found}):
        for row in table.rows:
            of_row = found.get((epochs, row.recipe))
            if of_row is None:
                continue
            baseline = found.get((epochs, row.baseline), []) if row.baseline else []
            sums = arithmetic.get(row.recipe)
            lines.append(Line(row, epochs, tuple(of_row), gain(of_row, baseline), sums))
    return Results(table, tuple(lines), dict(overrides), joined)


def gain(runs: Sequence[Run], baseline: Sequence[Run]) -> Spread | None:
    """Differences of accuracy in points, taken seed by seed: order and augmentation are shared."""
    of_baseline = {run.job.seed: run.accuracy for run in baseline}
    differences = []
    for run in runs:
        other = of_baseline.get(run.job.seed)
        if run.accuracy is not None and other is not None:
            differences.append(run.accuracy - other)
    return Spread(tuple(differences)) if differences else None


def count_arithmetic(runs: Sequence[Run]) -> Arithmetic | None:
    """Operations of one image, counted in the net of the first finished run; None if there is none.

    The images' size is kept with the weights; that of a detector is the largest it can see, with
    both sides at their limits.
    """
    for run in runs:
        path = run.job.folder / "checkpoints" / "last.safetensors"
        if run.stage != "finished" or not path.is_file():
            continue
        try:
            metadata = read_info(path).metadata
            model = torchadder.load(path).eval()
        except CheckpointError:
            continue
        if "detection" in metadata:
            from torchadder.detection import count_operations

            config = metadata["detection"]
            sides = (max(config["shorter"]), config["longer"])
            report = count_operations(model, *(-(-side // 32) * 32 for side in sides))
            return Arithmetic(report.num_mul, report.num_add, report.energy_pj)
        preprocess = metadata["preprocess"]
        shape = [preprocess[key] for key in ("channels", "height", "width")]
        report = energy.count(model, torch.zeros(1, *shape))
        return Arithmetic(report.num_mul, report.num_add, report.energy_pj)
    return None
