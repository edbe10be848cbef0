"""What a plan will cost, as far as it was measured: seconds per epoch from finished runs."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchadder.report.page import duration
from torchadder.reproduce.folder import read_summary, stage
from torchadder.reproduce.plan import Job, Plan
from torchadder.wording import counted

RESULTS = Path("results")
"""Where a clone of the repository keeps what was measured before."""


@dataclass(frozen=True)
class Estimate:
    """What is left of a plan, and how long it will take.

    Attributes:
        num_left: Trainings that are not finished.
        seconds: Time of those of them whose recipe was measured.
        unmeasured: Recipes of the others.
        machines: Where the measurements were made.
    """

    num_left: int
    seconds: float
    unmeasured: tuple[str, ...]
    machines: tuple[str, ...]

    def __str__(self) -> str:
        left = f"{counted(self.num_left, 'training')} left"
        if not self.num_left:
            return "all trainings are finished"
        parts = [left]
        if self.machines:
            parts.append(f"about {duration(self.seconds)} on {', '.join(self.machines)}")
        if self.unmeasured:
            parts.append(f"not measured: {', '.join(self.unmeasured)}")
        return "; ".join(parts)


def seconds_per_epoch(job: Job, measured: dict[str, list[tuple[float, str]]]) -> float | None:
    """Mean of what a job's recipe has been measured to take; None if it was not."""
    found = measured.get(job.row.recipe)
    return statistics.fmean(seconds for seconds, _ in found) if found else None


def estimate(plan: Plan, measured: dict[str, list[tuple[float, str]]]) -> Estimate:
    """What the unfinished trainings of a plan will take. Epochs done already are not taken off."""
    left = [job for job in plan.jobs if stage(job.folder, job.epochs) != "finished"]
    times = {job: seconds_per_epoch(job, measured) for job in left}
    known = [job for job in left if times[job] is not None]
    return Estimate(
        num_left=len(left),
        seconds=sum(job.epochs * (times[job] or 0.0) for job in known),
        unmeasured=tuple(dict.fromkeys(job.row.recipe for job in left if times[job] is None)),
        machines=tuple(
            dict.fromkeys(where for job in known for _, where in measured[job.row.recipe])
        ),
    )


def measurements(plan: Plan, results: Path = RESULTS) -> dict[str, list[tuple[float, str]]]:
    """Seconds per epoch and machine by recipe: of the plan's own finished runs, else of `results`.

    Args:
        plan: The plan.
        results: Folder below which runs (`*/summary.json`) and tables (`*/runs.csv`) of earlier
            measurements lie; need not exist.
    """
    found: dict[str, list[tuple[float, str]]] = {}
    for path in sorted(results.glob("*/runs.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["status"] == "finished":
                    where = _machine(row["device"], row["threads"])
                    found.setdefault(row["recipe"], []).append(
                        (float(row["seconds_per_epoch"]), where)
                    )
    found |= _of_runs(sorted(path.parent for path in results.glob("*/summary.json")))
    return found | _of_runs([job.folder for job in plan.jobs])


def _of_runs(folders: Sequence[Path]) -> dict[str, list[tuple[float, str]]]:
    found: dict[str, list[tuple[float, str]]] = {}
    for folder in folders:
        summary = read_summary(folder)
        seconds = summary.get("seconds_per_epoch")
        if summary.get("status") == "finished" and seconds is not None:
            hardware = summary["hardware"]
            where = _machine(hardware.get("gpu") or hardware["cpu"], hardware["torch_threads"])
            found.setdefault(summary["name"], []).append((float(seconds), where))
    return found


def _machine(device: str, threads: str | int) -> str:
    return f"{device} ({counted(int(threads), 'thread')})"
