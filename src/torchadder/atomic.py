"""Files that are written whole or not at all.

A process may be killed and a disk may be full at any moment. The new content goes to a file beside
the target, is forced onto the disk, and takes the target's name in one step; until then, and after
any failure, the file that was there before is untouched.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Replaces a file, or makes it, all of it or nothing.

    Args:
        path: The file; its folder must exist.
        content: Its new content; text is encoded as UTF-8.

    Raises:
        OSError: Naming `path`, if it cannot be written; what it held before is still there.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        # The user knows the target, not the temporary file that the system names.
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(target)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether a file is what `write_atomically` left behind when its process was killed.

    >>> is_temporary(Path("run/.last.ckpt.4242.tmp")), is_temporary(Path("run/last.ckpt"))
    (True, False)
    """
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporaries(folder: Path) -> None:
    """Deletes what killed processes left in a folder and the folders below it."""
    for path in folder.rglob(".*.tmp"):
        if is_temporary(path):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Forces the new name onto the disk, where the system lets folders be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
