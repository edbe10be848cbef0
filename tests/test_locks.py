"""Locks of folders between processes."""

import subprocess
import sys
import time

import pytest

from torchadder.locks import is_locked, locked

HOLD = """
import sys, time
from torchadder.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the folder."""
    environment = {"PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_ends_with_its_process(tmp_path, holder):
    assert is_locked(tmp_path)
    with pytest.raises(BlockingIOError), locked(tmp_path):
        pass
    holder.kill()
    with locked(tmp_path, seconds=20):  # waits until the process is gone
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir())


def test_waiting_ends(tmp_path, holder):
    start = time.monotonic()
    with pytest.raises(BlockingIOError), locked(tmp_path, seconds=0.3):
        pass
    assert 0.3 <= time.monotonic() - start < 20


def test_nothing_is_locked_that_does_not_exist(tmp_path):
    assert not is_locked(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError), locked(tmp_path / "nowhere"):
        pass
