"""Whether a run folder can be gone on with, and from where."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchadder.checkpoint import CheckpointError
from torchadder.data import BatchPlan
from torchadder.data.epochs import EpochData
from torchadder.data.within_epoch import num_batches_done
from torchadder.training.callbacks import read_metrics
from torchadder.training.checkpoint_io import read_state
from torchadder.training.recipe import (
    PLACE_KEYS,
    Recipe,
    RecipeError,
    from_dict,
)

_INITIAL_WEIGHTS = {
    "model.checkpoint",
    "distill.teacher_checkpoint",
    "detection.backbone_weights",
}


def last_checkpoint(folder: Path) -> Path | None:
    """The state to go on from; None if the run was stopped before there was one."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if checkpoint.is_file():
        return checkpoint
    table = folder / "metrics.csv"
    # The first epoch's row is written a moment before its checkpoint.
    if table.is_file() and len(read_metrics(table)) > 1:
        raise CheckpointError(f"{checkpoint} is missing, though {table.name} has finished epochs")
    return None


def check_state(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Refuses a checkpoint whose tensors are not those of the module."""
    own = module.state_dict()
    for name in [*own, *state]:
        if name not in state or name not in own:
            lacks = "lacks" if name not in state else "has an unknown"
            raise CheckpointError(f"checkpoint {path} is of another net: it {lacks} {name!r}")
        if own[name].shape != state[name].shape:
            raise CheckpointError(
                f"checkpoint {path} is of another net: {name!r} has shape "
                f"{tuple(state[name].shape)}, {tuple(own[name].shape)} is wanted"
            )


def check_recipe(recipe: Recipe, saved: dict[str, Any], config: Path, checkpoint: Path) -> None:
    """Refuses a checkpoint of another recipe.

    Where a run computes may change, and where its initial weights lie: they are not read again.
    """
    # A checkpoint of an earlier version lacks the keys that came later: they had their defaults.
    now, then = _flat(recipe.to_dict()), _flat(from_dict(saved, str(checkpoint)).to_dict())
    place = {f"trainer.{key}" for key in PLACE_KEYS} | {"data.device_cache"}
    for key in sorted((now.keys() | then.keys()) - place - _INITIAL_WEIGHTS):
        if now.get(key) != then.get(key):
            raise CheckpointError(
                f"{checkpoint} is of another recipe: {key} is {then.get(key)!r} there and "
                f"{now.get(key)!r} in {config}"
            )


def check_unfinished(recipe: Recipe, state: dict[str, Any], folder: Path) -> None:
    """Refuses a run that has ended."""
    # A run may have been stopped between its last checkpoint and its summary: it still has to end.
    summary: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    done = num_finished(state)
    is_last = done >= recipe.epochs or summary.get("ended_early", False)
    if is_last and summary.get("status") == "finished":
        raise RecipeError(f"resume {str(folder)!r}: the run is finished ({done} epochs)")


def check_division(state: dict[str, Any], plan: BatchPlan, checkpoint: Path) -> None:
    """Refuses a number of processes with which an epoch would have other batches."""
    then = state.get("division")
    if then is None or then["num_batches"] == plan.num_batches:
        return
    raise CheckpointError(
        f"{checkpoint}: an epoch had {then['num_batches']} batches with {then['world_size']} "
        f"processes and would have {plan.num_batches} with {plan.world_size}, because its last "
        f"batch is too small to be shared; go on with {then['world_size']}"
    )


def keep_readers(state: dict[str, Any], data: EpochData, world_size: int, checkpoint: Path) -> None:
    """Lets those who read a stream go on with the rest of their rows, or refuses other ones.

    Raises:
        CheckpointError: If an epoch of a stream was begun by another number of processes.
    """
    if data.stream_workers is None or data.first_batch == 0:
        return
    then = state["division"]
    if then["world_size"] != world_size:
        raise CheckpointError(
            f"{checkpoint}: an epoch of a stream (data.streaming) must end with as many processes "
            f"as it was begun with, {then['world_size']}, got {world_size}"
        )
    data.workers = then["stream_workers"]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def what_is_kept(folder: Path, epochs: int) -> str | None:
    """What the last checkpoint of a run folder has seen, in words; None if there is none.

    Args:
        folder: The run folder.
        epochs: Epochs of the run.
    """
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        return None
    state = read_state(checkpoint)
    batches = num_batches_done(state)
    more = f" and {batches:,} batch{'es' if batches > 1 else ''} of the next" if batches else ""
    return f"{num_finished(state)} of {epochs} epochs{more}"


def num_finished(state: dict[str, Any]) -> int:
    """Finished epochs of a state."""
    return state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
