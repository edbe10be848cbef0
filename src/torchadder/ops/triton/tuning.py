"""Tiles by measurement: a table of what was fastest, shipped and on the user's disk.

Without a measurement the model of :mod:`tiles` chooses. Nothing is measured unless the user asks,
with :func:`autotune` or ``TORCHADDER_AUTOTUNE=1``; then the first call of a new shape tries every
tile on the operands at hand and keeps the fastest in ``$TORCHADDER_CACHE/tiles.json``, by default
``~/.cache/torchadder/tiles.json``. The tile changes the order of nothing: each sum runs over its
terms in the same order. Yet which pixels and channels share a tile decides who takes the long
formula of the input gradient with one that needs it (README.md, Rounding): there, and only there,
last bits depend on what was measured.

A table that cannot be read or written, for want of a home directory or of the right to, is none.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from torchadder.ops.triton.tiles import Tile

_SHIPPED = Path(__file__).with_name("measured_tiles.json")
_WARM_UP, _TURNS = 2, 5
_asked: bool | None = None


def autotune(enabled: bool = True) -> None:
    """Measure the tiles of the GPU kernels for shapes that were not measured yet.

    Args:
        enabled: Whether to; overrides the environment variable ``TORCHADDER_AUTOTUNE``.
    """
    global _asked
    _asked = enabled


def _is_asked() -> bool:
    return os.environ.get("TORCHADDER_AUTOTUNE", "0") == "1" if _asked is None else _asked


def cache_file() -> Path:
    """Where measured tiles are kept.

    Raises:
        RuntimeError: no variable names the place, and there is no home directory.
    """
    folder = os.environ.get("TORCHADDER_CACHE")
    if folder:
        return Path(folder) / "tiles.json"
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "torchadder" / "tiles.json"


def _read(path: Path) -> dict[str, Tile]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {key: Tile(*(int(n) for n in numbers)) for key, numbers in entries.items()}
    except OSError:  # not there, or not for us
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is no table of tiles ({error}); it is not used", stacklevel=2)
        return {}


@functools.cache
def _table() -> dict[str, Tile]:
    try:
        return _read(_SHIPPED) | _read(cache_file())
    except RuntimeError:  # no home directory
        return _read(_SHIPPED)


def _keep(key: str, tile: Tile) -> None:
    _table()[key] = tile
    try:
        _write(cache_file(), key, tile)
    except (OSError, RuntimeError) as error:
        _warn_once(f"measured tiles are kept for this process only ({error})")


def _write(path: Path, key: str, tile: Tile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = _read(path) | {key: tile}
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps(entries, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, path)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _milliseconds(run: Callable[[], Tensor]) -> float:
    """Median time of a call on the current device."""
    for _ in range(_WARM_UP):
        run()
    times = []
    for _ in range(_TURNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _can_measure(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def _chip(tensor: Tensor) -> str:
    if tensor.device.type != "cuda":
        return tensor.device.type
    return torch.cuda.get_device_name(tensor.device)


def run_best(
    kernel: str,
    shape: tuple[int, int, int, int],
    model: Tile,
    candidates: Sequence[Tile],
    operand: Tensor,
    run: Callable[[Tile], Tensor],
) -> Tensor:
    """``run(tile)`` with the tile measured for this shape, or else with the model's choice.

    Args:
        kernel: Which kernel.
        shape: Rows, columns, depth and groups of the problem; rows up to the next power of 2.
        model: What to take where nothing is measured.
        candidates: What to try where measuring is asked for.
        operand: A tensor of the problem, for its chip and dtype.
        run: Computes the result with a tile.
    """
    rows, columns, depth, groups = shape
    dtype = str(operand.dtype).removeprefix("torch.")
    size = f"rows 2^{(rows - 1).bit_length()}, {columns} columns, depth {depth}, {groups} groups"
    key = f"{_chip(operand)}, {kernel}, {dtype}, {size}"
    tile = _table().get(key)
    if tile is not None and tile in candidates:
        return run(tile)
    if not (_is_asked() and _can_measure(operand)):
        return run(model)
    fastest = min(candidates, key=lambda one: _milliseconds(lambda: run(one)))
    _keep(key, fastest)
    return run(fastest)
