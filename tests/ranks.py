"""Runs a function in new processes, alone or connected to each other as torchrun connects them.

torch and Lightning take seconds to import; the processes are forked from one that has done it.
"""

import contextlib
import multiprocessing
import os
import socket
import sys
import traceback
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["rank_jobs"])


def _start_server():
    """Starts the process that the others are forked from; it has to find `rank_jobs`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@dataclass
class Outcome:
    """What became of a process.

    `error` is the name of an exception's type and its text; both are None for a killed process.
    """

    exitcode: int | None
    value: Any = None
    error: tuple[str, str] | None = None


class Processes:
    """Processes that have been started and are still to end."""

    def __init__(self, function, args, kwargs, world_size):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        _start_server()
        self.pipes, self.processes = [], []
        for rank in range(world_size):
            place = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            receiver, sender = _context.Pipe(duplex=False)
            environment = place if world_size > 1 else {}
            process = _context.Process(
                target=_main, args=(sender, environment, os.getcwd(), function, args, kwargs)
            )
            process.start()
            sender.close()
            self.pipes.append(receiver)
            self.processes.append(process)

    def outcomes(self, timeout=90):
        """Waits for the end and returns an `Outcome` for each rank."""
        found = []
        try:
            for receiver, process in zip(self.pipes, self.processes, strict=True):
                value, error = None, None
                with contextlib.suppress(EOFError):
                    if receiver.poll(timeout):
                        value, error = receiver.recv()
                process.join(timeout)
                found.append(Outcome(process.exitcode, value, error))
        finally:
            for process in self.processes:
                process.kill()
                process.join()
        return found


def start(function, *args, world_size=1, **kwargs):
    """Starts `function(*args, **kwargs)`, a function of `rank_jobs`, in each process."""
    return Processes(function, args, kwargs, world_size)


def run(function, *args, world_size=1, **kwargs):
    """Runs a function of `rank_jobs` in new processes; returns the results by rank."""
    outcomes = start(function, *args, world_size=world_size, **kwargs).outcomes()
    for rank, outcome in enumerate(outcomes):
        assert outcome.exitcode == 0, f"rank {rank}: {outcome}"
        assert outcome.error is None, f"rank {rank}: {outcome.error}"
    return [outcome.value for outcome in outcomes]


def _main(sender, environment, folder, function, args, kwargs):
    os.environ.update(environment)
    os.chdir(folder)
    value, error = None, None
    try:
        value = function(*args, **kwargs)
    except BaseException as caught:
        error = (type(caught).__name__, str(caught))
        if os.environ.get("TORCHADDER_TEST_TRACEBACKS"):
            traceback.print_exc()
    sender.send((value, error))
    sender.close()
