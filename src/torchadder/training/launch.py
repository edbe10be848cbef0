"""Starts one process for each device of this machine and looks after them: `--trainer.devices N`.

Every process runs the same command, with its place in the environment as torchrun puts it there.
When one ends badly the others are given a moment to notice and then stopped; what they have to say
is collected, so that the user reads one line. When this process ends, however it ends, they do.
The command itself is not known here, and torch is asked for nothing but its GPUs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torchadder.training.recipe import RecipeError, TrainerConfig

REPORT_VARIABLE = "TORCHADDER_REPORT"
LIFELINE_VARIABLE = "TORCHADDER_LIFELINE"

EXIT_INTERRUPTED = 130
"""Status of a process that ended by Ctrl-C or SIGTERM: 128 + SIGINT, as shells count."""

SECONDS_TO_NOTICE = 20.0
SECONDS_TO_STOP = 10.0


def is_launched() -> bool:
    """Whether this process is one of several, started by `launch` or by torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def count_devices(options: TrainerConfig) -> int:
    """Number of devices of this machine that a recipe asks for.

    Raises:
        RecipeError: If they are chosen by their numbers, which only works for one.
    """
    devices = str(options.devices).strip()
    if devices in ("auto", "-1"):
        if not uses_cuda(options):
            return 1
        import torch

        return max(1, torch.cuda.device_count())
    if devices.isdecimal():
        return int(devices)
    if len(re.findall(r"\d+", devices)) > 1:
        raise RecipeError(
            f"trainer.devices = {options.devices!r}: a number is wanted; CUDA_VISIBLE_DEVICES says "
            "which devices"
        )
    return 1


def uses_cuda(options: TrainerConfig) -> bool:
    """Whether a trainer with these options computes on NVIDIA or AMD GPUs."""
    if options.accelerator != "auto":
        return options.accelerator in ("cuda", "gpu")
    import torch

    return torch.cuda.is_available()


def launch(command: Sequence[str], num_processes: int) -> tuple[int, str | None]:
    """Runs a command in several processes until all of them have ended.

    Args:
        command: Program and arguments.
        num_processes: Number of processes.

    Returns:
        Exit status, 0 if all processes ended well, and the line to say if they did not: the report
        of the lowest rank that met an error of its own, else of one that lost another process.
    """
    with tempfile.TemporaryDirectory(prefix="torchadder-") as folder, _lifeline() as lifeline:
        reports = [Path(folder) / f"rank{rank}.json" for rank in range(num_processes)]
        places = _places(num_processes)
        processes = [
            subprocess.Popen(
                command,
                env=os.environ
                | place
                | {REPORT_VARIABLE: str(report), LIFELINE_VARIABLE: str(lifeline)},
                pass_fds=[lifeline],
            )
            for place, report in zip(places, reports, strict=True)
        ]
        with _signals_forwarded(processes):
            first = _wait(processes)
        codes = [process.returncode for process in processes]
        return _verdict(codes, first, _read(reports))


def report(message: str, *, status: int, lost: bool = False) -> bool:
    """Leaves an error for the process that launched this one, if there is such a process.

    Args:
        message: One line.
        status: Exit status of this process.
        lost: Whether the error is that another process is gone.

    Returns:
        Whether somebody will say the message, so that the caller need not.
    """
    path = os.environ.get(REPORT_VARIABLE)
    if path is None:
        return False
    text = json.dumps({"message": message, "status": status, "lost": lost})
    Path(path).write_text(text, encoding="utf-8")
    return True


def is_silent(error: BaseException) -> bool:
    """Whether another process says this error, so that this one need not.

    Until the processes are connected, all of them do the same with the same arguments. After that
    an error is either shared, or of this process alone.
    """
    if os.environ.get("RANK", "0") == "0":
        return False
    if isinstance(error, KeyboardInterrupt) or getattr(error, "shared_by_all_ranks", False):
        return True
    speaks: bool | None = getattr(error, "speaks", None)
    if speaks is not None:
        return not speaks
    import torch.distributed as dist

    return not dist.is_initialized()


def hold_lifeline() -> None:
    """Ends this process soon after the one that launched it, which may have been killed."""
    descriptor = os.environ.pop(LIFELINE_VARIABLE, None)
    if descriptor is not None:
        threading.Thread(target=_end_with, args=(int(descriptor),), daemon=True).start()


def _end_with(descriptor: int) -> None:
    os.read(descriptor, 1)  # returns when the other end, which nobody writes to, is closed
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_STOP)
    os._exit(1)


@contextlib.contextmanager
def _lifeline() -> Iterator[int]:
    """The reading end of a pipe whose writing end only this process holds."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def _places(num_processes: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        common["OMP_NUM_THREADS"] = str(max(1, (cores or 1) // num_processes))
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


@contextlib.contextmanager
def _signals_forwarded(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Passes a request to stop on; Ctrl-C reaches the processes from the terminal itself."""

    def stop(signum: int, frame: Any) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, stop),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda signum, frame: None),
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _wait(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """Waits for all processes; once one has failed, the others have a bounded time left.

    Returns:
        The rank that failed first, None if all ended well.
    """
    first: int | None = None
    since = 0.0
    while True:
        codes = [process.poll() for process in processes]
        if first is None and any(codes):
            first = next(rank for rank, code in enumerate(codes) if code)
            since = time.monotonic()
        if None not in codes:
            return first
        if first is not None and time.monotonic() - since > SECONDS_TO_NOTICE:
            is_late = time.monotonic() - since > SECONDS_TO_NOTICE + SECONDS_TO_STOP
            for process, code in zip(processes, codes, strict=True):
                if code is None:
                    process.send_signal(signal.SIGKILL if is_late else signal.SIGTERM)
        time.sleep(0.05)


def _read(reports: list[Path]) -> dict[int, dict[str, Any]]:
    return {
        rank: json.loads(path.read_text(encoding="utf-8"))
        for rank, path in enumerate(reports)
        if path.is_file()
    }


def _verdict(
    codes: list[int], first: int | None, reports: dict[int, dict[str, Any]]
) -> tuple[int, str | None]:
    if first is None:
        return 0, None
    for lost in (False, True):
        for rank in sorted(reports):
            if reports[rank]["lost"] == lost:
                return reports[rank]["status"], reports[rank]["message"]
    code = codes[first]
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return (2 if code < 0 else code), f"rank {first} of {len(codes)} {how}"


def command_again() -> list[str]:
    """The command that this process was started with, for other processes to run."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return [sys.executable, "-m", program.parent.name, *sys.argv[1:]]
    return [sys.executable, sys.argv[0], *sys.argv[1:]]
