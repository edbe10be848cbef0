"""Training checkpoints without pickle: one safetensors file, its structure as JSON in the header.

Lightning hands over a nested structure of dicts, lists, tensors and plain values (model, optimizer,
schedule, loop counters, callbacks, random numbers). The tensors are stored under numbers; the rest
is JSON, in which three kinds of mark stand for what JSON has no form for. Reading executes nothing.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from torchadder.atomic import write_atomically
from torchadder.checkpoint import CheckpointError, save

FORMAT = "torchadder-training-state"
_TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning plugin that writes and reads the training state as one safetensors file.

    A file is first written under another name and then moved, so that a killed process or a full
    disk leaves the previous checkpoint whole.

    Args:
        model: A net whose weights are written beside each training state, as a .safetensors file of
            the same name for `torchadder.load`; None writes the training state only.
        metadata: JSON values to keep with those weights.
    """

    def __init__(
        self, model: nn.Module | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        self.model = model
        self.metadata = metadata

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a training state.

        Args:
            checkpoint: Nested dicts, lists and tuples of tensors and plain values.
            path: File to write; its folder is created.
            storage_options: Not used.

        Raises:
            TypeError: If the state holds an object that would need pickle.
            OSError: If the training state cannot be written.
            CheckpointError: If the weights beside it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        structure = _flatten(checkpoint, tensors, "checkpoint")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": FORMAT, "structure": json.dumps(structure)}
        # The weights first: a state that says so many epochs are done never has older weights.
        if self.model is not None:
            save(self.model, target.with_suffix(".safetensors"), metadata=self.metadata)
        write_atomically(target, serialize(tensors, metadata=metadata))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a training state onto the CPU.

        Args:
            path: File written by `save_checkpoint`.
            map_location: Not used; Lightning moves the state to its device.
            weights_only: Not used; the format holds nothing but tensors and plain values.

        Raises:
            CheckpointError: If the file is missing, damaged, or no training state.
        """
        return read_state(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes a checkpoint if it exists."""
        Path(path).unlink(missing_ok=True)


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a training state written by `SafetensorsCheckpointIO`.

    Raises:
        CheckpointError: If the file is missing, damaged, or no training state.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"checkpoint {path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"checkpoint {path}: truncated or damaged ({error})") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path}: weights only, not the state of a training run")
    try:
        return _restore(json.loads(metadata["structure"]), tensors)
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: damaged header ({error})") from error


def _flatten(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """`value` in JSON's terms; its tensors go to `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy of its own memory: safetensors refuses tensors that share theirs.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple):
        return {_TUPLE: [_flatten(item, tensors, where) for item in value]}
    if isinstance(value, list):
        return [_flatten(item, tensors, where) for item in value]
    if isinstance(value, dict | OrderedDict):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: _flatten(item, tensors, f"{where}.{key}") for key, item in value.items()}
        pairs = [
            [_flatten(key, tensors, where), _flatten(item, tensors, f"{where}.{key}")]
            for key, item in value.items()
        ]
        return {_ITEMS: pairs}
    raise TypeError(f"{where} holds a {type(value).__name__}, which only pickle could store")


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_restore(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _TUPLE in value:
        return tuple(_restore(item, tensors) for item in value[_TUPLE])
    if _ITEMS in value:
        return {_restore(key, tensors): _restore(item, tensors) for key, item in value[_ITEMS]}
    return {key: _restore(item, tensors) for key, item in value.items()}
