"""Doing what is left of a table: one training after another, the table written after each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchadder.data import DataError
from torchadder.reproduce import drawing, folder, writing
from torchadder.reproduce.plan import Job, Plan, make_job
from torchadder.reproduce.results import Results, collect
from torchadder.reproduce.tables import Row

Say = Callable[[str], None]


def reproduce(plan: Plan, *, say: Say = print, command: str | None = None) -> Results:
    """Trains what a plan asks for and is not there yet, and writes the table of its folder.

    Finished runs are left as they are. An interrupted one goes on from its last finished epoch; one
    that was killed before it had finished any begins again. A run whose numbers are not finite, or
    that fails in another way, is named in the table, and the next one begins.

    The folder holds `settings.json`, `runs/`, and after each training `table.csv`, `runs.csv`,
    `table.md` and, from the first finished run on, `table.png`. They cover all rows, budgets and
    seeds ever asked for in this folder. Whenever the process is killed, the same call goes on.

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
        folder.write_settings(plan.output, settings)
        jobs = _all_jobs(plan, settings)
        failures: dict[Path, str] = {}
        for number, job in enumerate(plan.jobs, 1):
            found = folder.stage(job.folder, job.epochs)
            if found in ("finished", "stopped"):
                continue
            say(f"\n[{number}/{len(plan.jobs)}] {job.name}: {_words(found)}")
            try:
                _train(job, found, command)
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt(
                    f"interrupted in {job.name}; the same command goes on from there"
                ) from interrupt
            except (ValueError, RuntimeError, FloatingPointError) as error:
                # Without images no row can be trained; nor is it a row's fault if none ever began.
                if isinstance(error, DataError) or not (plan.output / "runs").is_dir():
                    raise
                failures[job.folder] = " ".join(str(error).split()) or type(error).__name__
                say(f"{job.name} failed: {failures[job.folder]}")
            results = collect(plan.table, jobs, failures=failures, overrides=settings.overrides)
            _write(plan.output, results, command)
        results = collect(plan.table, jobs, failures=failures, overrides=settings.overrides)
        _write(plan.output, results, command)
    return results


def _all_jobs(plan: Plan, settings: folder.Settings) -> list[Job]:
    """The trainings of everything ever asked for in the folder."""
    rows: list[Row] = [row for row in plan.table.rows if row.recipe in settings.rows]
    known = {job.folder: job for job in plan.jobs}
    jobs = []
    for epochs in settings.budgets:
        for seed in settings.seeds:
            for row in rows:
                job = make_job(row, plan.output, epochs, seed, plan.overrides)
                jobs.append(known.get(job.folder, job))
    return jobs


def _train(job: Job, found: folder.Stage, command: str | None) -> None:
    from torchadder.training import fit, resume

    if found == "interrupted":
        resume(job.folder, command=command)
        return
    if job.teacher is not None and folder.stage(job.teacher, job.epochs) != "finished":
        raise ValueError(f"the training of its teacher, {job.teacher}, is not finished")
    if found == "begun":
        folder.clear(job.folder)
    fit(job.recipe, output=job.folder, command=command)


def _write(output: Path, results: Results, command: str | None) -> None:
    writing.write_csv(output, results)
    writing.write_markdown(output, results, command)
    drawing.draw(output, results)


def _words(found: folder.Stage) -> str:
    return {
        "new": "begins",
        "begun": "begins again, no epoch was finished",
        "interrupted": "goes on from its last finished epoch",
    }[found]
