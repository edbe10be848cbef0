"""Folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torchadder.export.errors import ExportError

MARK = "export.json"
"""File by which a folder is known to be an export, so that another may take its place."""


def check_place(folder: Path, *, force: bool) -> None:
    """Raises ExportError if a folder cannot be written there."""
    if not folder.name:
        raise ExportError(f"{folder}: no name for a new folder")
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ExportError(f"{folder} exists and is no folder")
    if not any(folder.iterdir()):
        return
    if not (folder / MARK).is_file():
        raise ExportError(f"{folder} holds other things than an export; choose a new folder")
    if not force:
        raise ExportError(f"{folder} holds an export already; it is replaced only if forced")


def write_folder(folder: Path, files: Mapping[str, str], *, force: bool) -> None:
    """Writes files into a new folder, which appears under its name only when it is complete.

    Args:
        folder: Where; an empty folder may be there, or with `force` an earlier export, which is
            removed once the new one has taken its place.
        files: Text by name; `MARK` must be among them.
        force: Whether an earlier export may be replaced.

    Raises:
        ExportError: If something else is there.
        OSError: If the files cannot be written; what was there before is still there.
    """
    check_place(folder, force=force)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        new.mkdir()
        for name, text in files.items():
            with open(new / name, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:
            if old.exists():
                os.rename(old, folder)
            raise
    except OSError as error:
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(folder)) from error
    finally:
        _remove(new)
    _remove(old)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)
