"""Float nets as `torch.export` programs: the common beginning of every export of a float net.

`torch.export` writes down what a net in evaluation mode computes. The adder layers stay single
operators (`torchadder::adder2d`) in it; what becomes of them is not known here.
"""

from __future__ import annotations

import copy
import io
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from torchadder import awn
from torchadder.atomic import write_atomically
from torchadder.export.errors import ExportError, first_line


def trace(
    model: nn.Module, example: Tensor, *, dynamic_batch: bool = True, dynamic_size: bool = False
) -> ExportedProgram:
    """Writes down a net that takes one tensor.

    Args:
        model: In evaluation mode. Normalised weights (`torchadder.awn`) become plain ones in the
            program; the model stays as it is.
        example: Input of the kind that the net takes, batch first; only its shape, dtype and device
            matter.
        dynamic_batch: Whether the program takes any number of images.
        dynamic_size: Whether it takes images of any size that the net can process.

    Raises:
        TypeError: If an argument is of another type.
        ExportError: If the net is in training mode, or `torch.export` cannot follow it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(example, Tensor):
        raise TypeError(f"example must be a torch.Tensor, got {type(example).__name__}")
    if example.dim() < 2 or not example.numel():
        raise ValueError(
            f"example must hold a batch of at least one image, got shape {tuple(example.shape)}"
        )
    if model.training:
        raise ExportError("the net is in training mode: call model.eval() first")
    if next(iter(awn.normalised_layers(model)), None) is not None:
        model = copy.deepcopy(model)
        awn.bake_(model)
    shape = list(example.shape)
    dynamic = torch.export.Dim.DYNAMIC
    dims = {}
    if dynamic_batch:
        # A dimension of 1 would be taken for a constant.
        shape[0] = max(2, shape[0])
        dims[0] = dynamic
    if dynamic_size:
        # So would be one that has shrunk to 1 on its way through the net.
        shape[2:] = [2 * size for size in shape[2:]]
        dims |= {axis: dynamic for axis in range(2, len(shape))}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The model's one argument may have any name, so shapes are given by place.
            return torch.export.export(model, (example.new_zeros(shape),), dynamic_shapes=(dims,))
    except Exception as error:  # of dozens of types, without a common base
        raise ExportError(f"torch.export cannot follow the net: {first_line(error)}") from error


def to_torch(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Tensor,
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
) -> Path:
    """Write a net, in float or in integers, as a program of `torch.export`.

    `torch.export.load(path).module()` runs it, without the Python code of the model; it needs
    `import torchadder` for our operators, such as `torchadder::adder2d`. The file appears under its
    name only when it is complete.

    Args:
        model: A net that takes one tensor, in evaluation mode.
        path: File to write, its name ending in ".pt2".
        example: Input of the kind that the net takes, batch first; only its shape, dtype and device
            matter.
        dynamic_batch: Whether the program takes any number of images.
        dynamic_size: Whether it takes images of any size that the net can process.

    Returns:
        The path.

    Raises:
        ExportError: If the net is in training mode, or `torch.export` cannot follow it.
        ValueError: If the file's name or the example is wrong.
        OSError: If the file cannot be written.
    """
    path = checked_path(path, ".pt2")
    program = trace(model, example, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return write(path, buffer.getvalue())


def checked_path(path: str | os.PathLike[str], suffix: str) -> Path:
    """The path, if a file of that kind can be written there; checked before the work is done."""
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"path must end in {suffix}, got {os.fspath(path)!r}")
    if path.is_dir():
        raise ValueError(f"path must be a file, got the folder {os.fspath(path)!r}")
    return path


def write(path: Path, content: bytes) -> Path:
    """Writes the file, making missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path
