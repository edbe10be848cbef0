"""Locks that keep two processes from working in one folder.

They are the system's: a lock ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None

POLL_SECONDS = 0.1


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], seconds: float = 0.0) -> Iterator[None]:
    """Holds the lock of a file or folder, which is not changed, for a `with` block.

    File systems without locks are passed over.

    Args:
        path: The file or folder; it must exist.
        seconds: How long to wait for another holder. Processes forked by the holder, such as those
            that read images, keep the lock of a killed one for a few seconds.

    Raises:
        BlockingIOError: Another process still holds the lock.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _acquire(descriptor, seconds)
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of a file or folder; False if it does not exist."""
    try:
        with locked(path):
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


def _acquire(descriptor: int, seconds: float) -> None:
    if fcntl is None:
        return
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(POLL_SECONDS)
        except OSError:  # the file system has no locks
            return
