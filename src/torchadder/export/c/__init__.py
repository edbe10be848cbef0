"""Integer nets as C99: bytes in, logits out, without floats, heap or library.

`arena` finds a place for every activation, `writing` makes text of a program with the kernels in
`source/`, `folder` writes it whole or not at all, and `report` says what the net needs.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import torchadder
from torchadder.export.c.folder import MARK, check_place, write_folder
from torchadder.export.c.report import CReport, StepCost
from torchadder.export.c.writing import Writer
from torchadder.export.errors import ExportError
from torchadder.quantize import IntegerNet, Program, integer_net, interpreter
from torchadder.quantize.program import Upsample

__all__ = ["CReport", "StepCost", "to_c"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MOST_BYTES = 2**30
"""Of one value: distances in memory are int32."""


def to_c(
    net: IntegerNet | Program,
    folder: str | os.PathLike[str],
    *,
    name: str = "net",
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    force: bool = False,
) -> CReport:
    """Write an integer net as C99 that needs no library.

    The folder gets ``<name>.h`` and ``<name>.c`` (weights as constant arrays, activations in static
    memory whose size the header states, no heap, no floating point), ``main.c`` that classifies
    image files, a ``Makefile`` and ``export.json`` with the sizes. The logits are those of
    `torchadder.quantize.interpreter`, bit for bit. The functions of adder layers contain no
    multiplication; the requantisation behind each layer does, once for each output. The folder
    appears under its name only when it is complete.

    Args:
        net: What `torchadder.quantize_` made of a model, or its program.
        folder: Folder to write; it must not hold anything, unless `force` is given.
        name: Prefix of files and functions: small letters, digits and underscores.
        class_names: Names of the classes, "0", "1" and so on by default.
        mean: Mean of each channel, of pixels in 0..1, that the images were normalised with; by
            default what the program has recorded.
        std: Likewise the standard deviation.
        force: Replace what an earlier export wrote.

    Returns:
        Memory, tables and operations.

    Raises:
        ExportError: If layers were left in float (named), the net makes several outputs or maps,
            the normalisation of the images is not known, the net is too large, or the folder holds
            something.
        TypeError: If `net` is something else.
        ValueError: If another argument is wrong.
        OSError: If the folder cannot be written; what was there before is still there.
    """
    folder = Path(folder)
    check_place(folder, force=force)
    check_name(name)
    held = integer_net(net)
    if held is not None:
        net = held.program()
    if not isinstance(net, Program):
        raise TypeError(
            f"net must be an IntegerNet, as torchadder.quantize_ makes it, or its program, got "
            f"{type(net).__name__}"
        )
    _check(net)
    net = _on_cpu(net)
    if class_names is None:
        class_names = [str(number) for number in range(net.output.num_classes)]
    _check_class_names(class_names, net.output.num_classes)
    table = pixel_bytes(
        net, net.input.mean if mean is None else mean, net.input.std if std is None else std
    )
    writer = Writer(net, name, list(class_names), table)
    report = CReport(
        folder=folder,
        name=name,
        ram_bytes=writer.ram_bytes,
        activation_bytes=writer.arena.size,
        least_activation_bytes=writer.arena.least,
        table_bytes=writer.table_bytes,
        steps=tuple(writer.costs),
    )
    described = {"format": "c", "torchadder": torchadder.__version__, **report.to_dict()}
    files = writer.files() | {MARK: json.dumps(described, indent=2) + "\n"}
    write_folder(folder, files, force=force)
    return report


def check_name(name: str) -> None:
    """Raises ValueError unless files and functions can have the prefix."""
    if _NAME.fullmatch(name) is None or name == "main":
        raise ValueError(
            f"name must consist of small letters, digits and underscores, begin with a letter and "
            f"not be main, got {name!r}"
        )


def pixel_bytes(
    program: Program, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Tensor:
    """The input byte of each pixel value, (C, 256), computed as training normalises images.

    Raises:
        ExportError: If mean and standard deviation are not known.
        ValueError: If they do not fit the images.
    """
    if mean is None or std is None:
        raise ExportError(
            "the normalisation of the images is not known: give mean and std of each channel, 0 "
            "and 1 for pixels in 0..1"
        )
    channels = program.input.channels
    for what, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(math.isfinite(value) for value in values):
            raise ValueError(
                f"{what} must hold a number for each of {channels} channels, got {tuple(values)}"
            )
    if min(std) <= 0:
        raise ValueError(f"std must be positive, got {tuple(std)}")
    pixels = torch.arange(256).float()
    centre, width = (torch.tensor(values)[:, None] * 255 for values in (mean, std))
    normalised = (pixels - centre) / width
    return interpreter.to_bytes(normalised, program.input.scale, program.input.zero_point)


def _check_class_names(names: Sequence[str], number: int) -> None:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a sequence of strings, got {names!r}")
    if len(names) != number:
        raise ValueError(f"class_names must name the {number} classes of the net, got {len(names)}")


def _on_cpu(program: Program) -> Program:
    """The program with its tensors in main memory, where the tables are written."""
    described, tensors = program.to_dict()
    return Program.from_dict(described, {name: tensor.cpu() for name, tensor in tensors.items()})


def _check(program: Program) -> None:
    """Raises ExportError unless C can be made of a program."""
    if program.float_layers:
        names = ", ".join(program.float_layers)
        raise ExportError(f"layers left in float cannot be exported to C: {names}")
    if len(program.outputs) > 1 or program.output.is_map:
        made = "a map" if len(program.outputs) == 1 else f"{len(program.outputs)} outputs"
        raise ExportError(
            f"the net makes {made}; C is written for nets that make one number for each class"
        )
    enlarged = [step.name for step in program.steps if isinstance(step, Upsample)]
    if enlarged:
        raise ExportError(f"enlarging cannot be exported to C: {', '.join(enlarged)}")
    for value in program.values.values():
        if value.dtype != "uint8" and value.name != program.output.name:
            raise ExportError(f"{value.name}: values of {value.dtype} cannot be exported to C")
        if math.prod(value.shape) > _MOST_BYTES:
            raise ExportError(
                f"{value.name}: {math.prod(value.shape)} bytes; C takes up to {_MOST_BYTES}"
            )
