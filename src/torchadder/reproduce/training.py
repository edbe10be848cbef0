"""One training of a table: in this process, or in one process for each device."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torchadder.reproduce import folder
from torchadder.reproduce.plan import Job, ReproduceError, spell_options
from torchadder.training import launch
from torchadder.training.recipe import PLACE_KEYS, read_recipe


def train(job: Job, overrides: Mapping[str, Any], command: str | None) -> None:
    """Begins a training, or goes on with it from its last checkpoint.

    Args:
        job: The training.
        overrides: Values for dotted keys of every recipe; those that say where to compute hold for
            a training that goes on, too.
        command: The command to record; None records that of this process. Several processes record
            their own.

    Raises:
        ReproduceError: If the training of its teacher is not finished, or a process failed.
        KeyboardInterrupt: After Ctrl-C.
        ValueError, RuntimeError, FloatingPointError, MemoryError: What the training raises.
    """
    stage = folder.stage(job.folder, job.epochs)
    goes_on = stage == "interrupted"
    teacher = None if goes_on else job.teacher
    if teacher is not None and folder.stage(teacher, job.epochs) != "finished":
        raise ReproduceError(f"the training of its teacher, {teacher}, is not finished")
    if stage == "begun":
        folder.clear(job.folder)
    place = {key: value for key, value in overrides.items() if key in _PLACE}
    recipe = read_recipe(job.folder, _bare(place)) if goes_on else job.recipe
    num_devices = launch.count_devices(recipe.trainer)
    if num_devices > 1:
        resume_arguments = ["--resume", str(job.folder), *spell_options(place)]
        _in_processes(resume_arguments if goes_on else list(job.arguments), num_devices)
        return
    from torchadder.training import fit, resume

    if goes_on:
        resume(job.folder, place=_bare(place), command=command)
    else:
        fit(job.recipe, output=job.folder, command=command)


_PLACE = {f"trainer.{key}" for key in PLACE_KEYS}


def _bare(place: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("trainer."): value for key, value in place.items()}


def _in_processes(arguments: list[str], num_processes: int) -> None:
    """Runs `torchadder train` with these arguments in several processes."""
    words = [sys.executable, "-m", "torchadder", "train", *arguments]
    status, message = launch.launch(words, num_processes)
    if status == launch.EXIT_INTERRUPTED:
        raise KeyboardInterrupt(message)
    if message is not None:
        raise ReproduceError(message)
