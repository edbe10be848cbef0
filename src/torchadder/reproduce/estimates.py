"""What a plan will cost, as far as it was measured: seconds per epoch from finished runs."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchadder.report.page import duration
from torchadder.reproduce import sheets
from torchadder.reproduce.folder import read_summary, stage
from torchadder.reproduce.plan import Job, Plan, ReproduceError
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
    """Seconds per epoch and machine by recipe.

    Finished runs of the plan itself come first, then the tables of `results`, then its single runs.
    Of those before the plan the ones on a device of the plan's kind are taken, if there are any,
    and of these the ones with the nearest number of threads. A run that stands in several tables,
    as after a join, counts once.

    Args:
        plan: The plan.
        results: Folder below which runs (`*/summary.json`) and tables (`*/runs.csv`, and one folder
            deeper) of earlier measurements lie; need not exist.
    """
    import torch

    trainer = plan.jobs[0].recipe.trainer
    threads = trainer.threads or torch.get_num_threads()
    is_auto = trainer.accelerator in ("auto", "gpu")
    kind = _accelerator() if is_auto else trainer.accelerator
    tables = _of_tables(sorted([*results.glob("*/runs.csv"), *results.glob("*/*/runs.csv")]))
    singles = _of_runs(sorted(path.parent for path in results.glob("*/summary.json")))
    earlier = {
        recipe: _nearest(found, kind, threads) for recipe, found in (singles | tables).items()
    }
    return {
        recipe: [(one.seconds, one.where) for one in found]
        for recipe, found in (earlier | _of_runs([job.folder for job in plan.jobs])).items()
    }


@dataclass(frozen=True)
class _Measurement:
    """What an epoch took, and where.

    Attributes:
        seconds: Its time.
        device: The name of the device.
        kind: "cpu", "cuda" ...
        threads: Number of threads.
    """

    seconds: float
    device: str
    kind: str
    threads: int

    @property
    def where(self) -> str:
        """The machine in words."""
        return f"{self.device} ({counted(self.threads, 'thread')})"


def _accelerator() -> str:
    """The kind of device that a run takes if it may choose."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if device is None else device.type


def _nearest(found: Sequence[_Measurement], kind: str, threads: int) -> list[_Measurement]:
    """Those on a kind of device, with the number of threads nearest to one, the smaller of two."""
    same = [one for one in found if one.kind == kind] or found
    nearest = min({one.threads for one in same}, key=lambda n: (abs(n - threads), n))
    return [one for one in same if one.threads == nearest]


def _of_tables(paths: Sequence[Path]) -> dict[str, list[_Measurement]]:
    found: dict[str, dict[tuple[str, ...], _Measurement]] = {}
    for path in paths:
        # A file of somebody else, or a damaged one, is no reason to train nothing.
        with contextlib.suppress(ReproduceError, OSError):
            for record in sheets.read(path):
                with contextlib.suppress(ReproduceError):
                    if record.text("status") == "finished" and record.text("seconds_per_epoch"):
                        run = tuple(record.text(name) for name in ("epochs", "seed", "date"))
                        measured = _Measurement(
                            record.number("seconds_per_epoch") or 0.0,
                            record.text("device"),
                            record.text("device_kind") or "cpu",
                            record.count("threads"),
                        )
                        found.setdefault(record.text("recipe"), {})[run] = measured
    return {recipe: list(runs.values()) for recipe, runs in found.items()}


def _of_runs(folders: Sequence[Path]) -> dict[str, list[_Measurement]]:
    found: dict[str, list[_Measurement]] = {}
    for folder in folders:
        summary = read_summary(folder)
        if summary.get("status") != "finished":
            continue
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a summary of somebody else
            hardware = summary["hardware"]
            measured = _Measurement(
                float(summary["seconds_per_epoch"]),
                str(sheets.device_name(hardware)),
                sheets.device_kind(hardware) or "cpu",
                int(hardware["torch_threads"]),
            )
            found.setdefault(str(summary["name"]), []).append(measured)
    return found
