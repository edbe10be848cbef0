"""Which file a path to a net means."""

from __future__ import annotations

import os
from pathlib import Path

from torchadder.checkpoint import CheckpointError


def weights_of(path: str | os.PathLike[str]) -> Path:
    """The weights that a path means: a file, or the best ones of a run folder.

    Raises:
        CheckpointError: If it is the state of a training run, which holds more than weights.
    """
    path = Path(path)
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints" / "best.safetensors"
    if path.suffix == ".ckpt":
        raise CheckpointError(
            f"{path} is the state of a training run; its weights are in "
            f"{path.with_suffix('.safetensors')}"
        )
    return path
