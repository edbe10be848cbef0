"""Doing what is left of a table: one training after another, the table written after each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from torchadder import locks
from torchadder.data import DataError
from torchadder.reproduce import drawing, folder, writing
from torchadder.reproduce.plan import Job, Plan, make_jobs
from torchadder.reproduce.results import Results, collect
from torchadder.reproduce.training import train
from torchadder.wording import counted

Say = Callable[[str], None]

_WORDS = {
    "new": "begins",
    "begun": "begins again, there is no checkpoint",
    "interrupted": "goes on from its last checkpoint",
    "finished": "was finished by another process",
}


def reproduce(plan: Plan, *, say: Say = print, command: str | None = None) -> Results:
    """Trains what a plan asks for and is not there yet, and writes the table of its folder.

    Finished runs are left as they are. An interrupted one goes on from its last checkpoint; one
    that was killed before it had written any begins again. A run whose numbers are not finite, or
    that fails in another way, is named in the table, and the next one begins. One that another
    process is at work on is left to that.

    The folder holds `settings.json`, `runs/`, and after each training `table.csv`, `runs.csv`,
    `table.md` and, from the first finished run on, `table.png`. They cover all rows, budgets and
    seeds ever asked for in this folder, but for a budget that a row's recipe refuses. Whenever the
    process is killed, the same call goes on.

    With `trainer.devices` above 1, every training runs in a process for each device.

    Args:
        plan: What to train.
        say: Where progress goes.
        command: The command to record; None records that of this process.

    Returns:
        What was measured.

    Raises:
        ReproduceError: If the folder holds something else, or another process is at work there.
        DataError: If the images cannot be used.
        KeyboardInterrupt: After Ctrl-C.
    """
    folder.settle(plan)
    with folder.locked(plan.output):
        settings = folder.settle(plan)
        rows = [row for row in plan.table.rows if row.recipe in settings.rows]
        # Everything ever asked for in this folder, whatever this call trains of it. Not every row
        # can be trained with the budgets that were asked for of others.
        jobs = make_jobs(
            rows,
            plan.output,
            settings.budgets,
            settings.seeds,
            plan.overrides,
            skip_refused=True,
        )
        folder.write_settings(plan.output, settings)
        failures: dict[Path, str] = {}
        measure = functools.partial(
            collect, plan.table, jobs, failures=failures, overrides=settings.overrides
        )
        left = [job for job in plan.jobs if _stage(job) != "finished"]
        say(f"{len(plan.jobs) - len(left)} of {counted(len(plan.jobs), 'training')} done before")
        for number, job in enumerate(left, 1):
            # A row may be trained by a command of its own meanwhile, as `--dry-run` prints it.
            elsewhere = locks.is_locked(job.folder)
            stage = _stage(job)
            words = "is trained by another process" if elsewhere else _WORDS[stage]
            say(f"\n[{number}/{len(left)}] {job.name}: {words}")
            if elsewhere or stage == "finished":
                continue
            try:
                train(job, plan.overrides, command)
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt(
                    f"interrupted in {job.name}; the same command goes on from there"
                ) from interrupt
            except (ValueError, RuntimeError, FloatingPointError, MemoryError) as error:
                # Without images no row can be trained; nor is it a row's fault if none ever began.
                if isinstance(error, DataError) or not (plan.output / "runs").is_dir():
                    raise
                failures[job.folder] = " ".join(str(error).split()) or type(error).__name__
                say(f"{job.name} failed: {failures[job.folder]}")
            if job is not left[-1]:
                _write(plan.output, measure(), command)
        results = measure()
        _write(plan.output, results, command)
    return results


def _write(output: Path, results: Results, command: str | None) -> None:
    writing.write_csv(output, results)
    writing.write_markdown(output, results, command)
    drawing.draw(output, results)


def _stage(job: Job) -> folder.Stage:
    return folder.stage(job.folder, job.epochs)
