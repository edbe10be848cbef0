"""Training by several processes, on one machine or many: who they are and how they agree.

The processes are started by torchrun or by `torchadder.training.launch`, which both say in the
environment who is who. Lightning's `DDPStrategy` does the training; here is what it leaves open: a
process group that exists before the trainer does, decisions that all processes share, errors that
are said once, and what a process says when it has lost another one.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from torchadder.training.launch import count_devices, uses_cuda
from torchadder.training.recipe import RecipeError, TrainerConfig

T = TypeVar("T")

_CONNECTION_WORDS = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|timeout|socket",
    re.IGNORECASE,
)
# torch renamed it; both still take the buffers of rank 0 at the start, or find them equal.
_UNSYNCED_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
_SECONDS_TO_DIE = 5.0  # a process closes its connections a little before it is gone


class PeerLostError(ConnectionError):
    """Another process of the run is gone; the message says which and how to go on.

    Args:
        message: One line.
        speaks: Whether this process is the one to say it.
    """

    def __init__(self, message: str, speaks: bool = True) -> None:
        super().__init__(message)
        self.speaks = speaks


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: Number of this process among all.
        local_rank: Number of this process on its machine.
        size: Number of processes.
        local_size: Number of processes on this machine.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self.size // self.local_size


def world() -> World:
    """The processes, as whoever started them says in the environment; without that, one.

    Raises:
        RecipeError: If the machines have unequal numbers of processes.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    if any(name not in os.environ for name in names):
        return World()
    found = World(*(int(os.environ[name]) for name in names))
    if found.size % found.local_size:
        raise RecipeError(
            f"{found.size} processes in all and {found.local_size} on this machine: the same "
            "number on every machine is wanted"
        )
    return found


def connect(options: TrainerConfig) -> World:
    """Makes the process group, where there are several processes and it does not exist yet.

    Raises:
        RecipeError: If several devices are wanted, but nobody started the processes.
    """
    here = world()
    if here.size == 1:
        num_devices = count_devices(options)
        if num_devices > 1:
            raise RecipeError(
                f"trainer.devices = {options.devices!r}: {num_devices} processes are wanted; use "
                "torchadder train, or start the program with torchrun"
            )
        return here
    if not dist.is_initialized():
        timeout = datetime.timedelta(seconds=options.timeout)
        device = None
        if uses_cuda(options):
            device = torch.device("cuda", here.local_rank)
            torch.cuda.set_device(device)
        dist.init_process_group(
            "gloo" if device is None else "nccl",
            rank=here.rank,
            world_size=here.size,
            timeout=timeout,
            device_id=device,
        )
    return here


def leave() -> None:
    """Ends this process's part in the group: what it does from now on, it does alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def together(function: Callable[[], T]) -> T:
    """Calls a function in every process; if it fails in one of them, it fails in all.

    Args:
        function: Work that each process does for itself.

    Returns:
        What the function returned in this process.

    Raises:
        ValueError: The error of the lowest rank that met one, or likewise an OSError.
    """
    if not dist.is_initialized():
        return function()
    result: T | None = None
    error: Exception | None = None
    try:
        result = function()
    except (ValueError, OSError) as caught:
        error = caught
    texts: list[tuple[type, str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, None if error is None else (type(error), str(error)))
    failed = [rank for rank, text in enumerate(texts) if text is not None]
    if failed:
        raise _shared(texts[failed[0]], failed[0], error)
    return result  # type: ignore[return-value]


def on_first(function: Callable[[], T]) -> T:
    """Calls a function in the first process only; all of them get its result, or its error.

    Raises:
        ValueError: The first process's error, or likewise an OSError.
    """
    if not dist.is_initialized():
        return function()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = function()
        except (ValueError, OSError) as caught:
            error = caught
            outcome[1] = (type(caught), str(caught))
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise _shared(outcome[1], 0, error)
    return outcome[0]


def first_of(error: Exception, counts: bool) -> Exception:
    """The error that all processes raise where each of them has one.

    Args:
        error: This process's error.
        counts: Whether it says more than that some process met an error.

    Returns:
        The error of the lowest rank whose own counts, else of rank 0.
    """
    if not dist.is_initialized():
        return error
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, (type(error), str(error), counts))
    rank = next((rank for rank, text in enumerate(texts) if text[2]), 0)
    return _shared(texts[rank][:2], rank, error)


def _shared(text: Any, rank: int, own: Exception | None) -> Exception:
    """An error that every process raises; only the first one needs to say it."""
    kind, message = text
    words = message if rank == 0 else f"rank {rank}: {message}"
    try:
        error: Exception = kind(words)
    except TypeError:  # of those that are made from more than a text, as UnicodeDecodeError
        error = OSError(words) if issubclass(kind, OSError) else ValueError(words)
    error.__cause__ = own
    error.shared_by_all_ranks = True  # type: ignore[attr-defined]
    return error


class Peers:
    """The other processes of a run, as they were when it began."""

    def __init__(self) -> None:
        self.places: list[tuple[str, int]] = [(socket.gethostname(), os.getpid())]
        self.rank = 0
        if dist.is_initialized():
            own = self.places[0]
            self.places = [own] * dist.get_world_size()
            self.rank = dist.get_rank()
            dist.all_gather_object(self.places, own)

    def lost(self, seconds: float = 0.0) -> list[int]:
        """The ranks of this machine that have ended.

        Args:
            seconds: How long to wait until there is one.
        """
        end = time.monotonic() + seconds
        while True:
            host = self.places[self.rank][0]
            gone = [
                rank
                for rank, (name, process) in enumerate(self.places)
                if name == host and not _is_running(process)
            ]
            if gone or time.monotonic() >= end:
                return gone
            time.sleep(0.05)

    def explain(self, error: BaseException, is_interrupted: bool) -> str | None:
        """Which process is gone, if that is what an error comes from; None if it is not.

        Args:
            error: What training was stopped by.
            is_interrupted: Whether this process was asked to stop; launchers do that to all
                processes when one has ended.
        """
        if len(self.places) == 1:
            return None
        is_broken = is_connection_failure(error)
        if not (is_broken or is_interrupted):
            return None
        gone = self.lost(0.0 if is_interrupted else _SECONDS_TO_DIE)
        if gone:
            words = " and ".join(f"rank {rank} (process {self.places[rank][1]})" for rank in gone)
            return f"{words} of {len(self.places)} ended before the others"
        if is_interrupted:
            return None
        return f"the connection to another process of {len(self.places)} was lost"

    def speaks(self) -> bool:
        """Whether this process is the lowest rank of its machine that still runs."""
        gone = self.lost()
        host = self.places[self.rank][0]
        lower = [rank for rank in range(self.rank) if self.places[rank][0] == host]
        return all(rank in gone for rank in lower)


def is_connection_failure(error: BaseException) -> bool:
    """Whether an error means that a message to or from another process could not be delivered."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and _CONNECTION_WORDS.search(str(error)) is not None


def trainer_options(options: TrainerConfig, here: World) -> dict[str, Any]:
    """Devices, strategy and plugins for Lightning's Trainer.

    Buffers are not broadcast before each step, as `DistributedDataParallel` would: `OwnState`
    averages them once an epoch. Parameters without a gradient are an error, because looking for
    them in each step takes time.
    """
    if here.size == 1:
        return {"devices": 1 if options.devices in ("auto", -1) else options.devices, "plugins": []}
    from torchadder.training.sync_batchnorm import SynchronizedBatchNorm

    return {
        "devices": here.local_size,
        "num_nodes": here.num_nodes,
        "strategy": DDPStrategy(
            timeout=datetime.timedelta(seconds=options.timeout),
            find_unused_parameters=False,
            **_UNSYNCED_BUFFERS,
        ),
        "plugins": [
            TorchElasticEnvironment(),
            *([SynchronizedBatchNorm(on_gpu=uses_cuda(options))] if options.sync_batchnorm else []),
        ],
    }


def _is_running(process: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False
