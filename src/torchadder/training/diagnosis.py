"""A run's two nets with the kernels between them, as `torchadder diagnose` needs them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import yaml

import torchadder
from torchadder.checkpoint import CheckpointError
from torchadder.data import ImageData
from torchadder.distill import PKKD, Distiller, shared_layers
from torchadder.lp import set_exponent_
from torchadder.tasks import Distillation
from torchadder.training.assembly import build_task, open_images, without_initial_weights
from torchadder.training.checkpoint_io import read_state
from torchadder.training.exponent import schedule_of
from torchadder.training.recipe import Recipe, RecipeError, from_dict


def open_pair(
    folder: str | os.PathLike[str],
    teacher: str | os.PathLike[str] | None = None,
    *,
    which: str = "last",
) -> tuple[PKKD, ImageData]:
    """Both nets of a run, in evaluation mode on the CPU, with PKKD's kernels between them.

    A run of PKKD comes with the scales and maps it has learned. For any other pair the kernels are
    new: their scale is that of the images at hand, their maps are what training starts from; layers
    of the same name are compared, also where one net has more of them.

    Args:
        folder: Run folder of the student.
        teacher: Run folder of the teacher; None: the run's own, which must have one.
        which: "last" or "best" epoch.

    Returns:
        The loss with both nets, and the images of the student's run, opened.

    Raises:
        RecipeError: If a folder holds no run, or the run has no teacher.
        CheckpointError: If weights cannot be read.
        ValueError: If the nets have no layers to compare.
    """
    path = Path(folder)
    recipe = from_dict(_config(path), str(path / "config.yaml"))
    data = open_images(recipe)
    if teacher is not None:
        _config(Path(teacher))
        nets = [_weights(Path(run), which) for run in (path, teacher)]
        return _compared(*nets), data
    distiller = _distiller(path, recipe, data, which)
    if isinstance(distiller, PKKD) and distiller.taps:
        return distiller, data
    assert distiller.teacher is not None
    return _compared(distiller.student, distiller.teacher), data


def open_distiller(
    folder: str | os.PathLike[str], *, which: str = "last"
) -> tuple[Distiller, ImageData]:
    """The loss of a run, with both nets, in evaluation mode on the CPU.

    Args:
        folder: Run folder.
        which: "last" or "best" epoch.

    Returns:
        The loss, and the images of the run, opened.

    Raises:
        RecipeError: If the folder holds no run, or the run has no teacher.
        CheckpointError: If weights cannot be read.
    """
    path = Path(folder)
    recipe = from_dict(_config(path), str(path / "config.yaml"))
    data = open_images(recipe)
    return _distiller(path, recipe, data, which), data


def _distiller(path: Path, recipe: Recipe, data: ImageData, which: str) -> Distiller:
    checkpoint = path / "checkpoints" / f"{which}.ckpt"
    task = build_task(without_initial_weights(recipe), data)
    if not isinstance(task, Distillation) or task.distiller.teacher is None:
        raise RecipeError(
            f"{str(path)!r}: method {recipe.method} has no teacher; name the run of another net"
        )
    state = read_state(checkpoint)
    try:
        task.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        words = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint {checkpoint} is of another net: {words}") from error
    # What is no tensor, but depends on how far the run had come.
    epoch = state["epoch"]
    task.distiller.resume_epoch(epoch, recipe.epochs)
    schedule = schedule_of(recipe)
    if schedule is not None:
        exponent = schedule.exponent(epoch, recipe.epochs)
        set_exponent_(task.distiller.student, exponent, clip=recipe.lp.clip)
    return task.distiller.eval()


def _compared(student: torch.nn.Module, teacher: torch.nn.Module) -> PKKD:
    """Two nets with new kernels between the layers that both have."""
    return PKKD(student, teacher, taps=shared_layers(student, teacher) or None).eval()


def some_images(data: ImageData, count: int) -> torch.Tensor:
    """The first validation images, at most `count`: (N, C, H, W)."""
    return _first(data.val_dataloader(), count)[0]


def some_training_images(data: ImageData, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first training images of the run, at most `count`, augmented, and their labels (N)."""
    return _first(data.train_dataloader(), count)


def _first(batches: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    for batch in batches:
        images.append(batch[0])
        labels.append(batch[1])
        if sum(map(len, labels)) >= count:
            break
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def _config(folder: Path) -> dict[str, object]:
    path = folder / "config.yaml"
    if not path.is_file():
        raise RecipeError(f"{str(folder)!r}: no run folder, config.yaml is missing")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from error


def _weights(folder: Path, which: str) -> torch.nn.Module:
    return torchadder.load(folder / "checkpoints" / f"{which}.safetensors")
