"""How a run ends before its time: signals, and what they are turned into.

Ctrl-C and SIGTERM, by which schedulers and launchers ask a process to stop, are the same request:
a `KeyboardInterrupt` in the training loop, once.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests(Callback):
    """Turns the first SIGINT or SIGTERM within its context into a `KeyboardInterrupt`.

    As a callback it also takes the place of Lightning's handler of SIGTERM, which talks to the
    other processes from inside the handler, where they may be in the middle of something else.

    Attributes:
        received: The signal, None so far.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_ending = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        """Takes the signals over, in the main thread: Python allows it nowhere else."""
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
            self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives the signals back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes SIGTERM over from Lightning."""
        if self._before:
            self._listen()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Ignores further requests: the run is ending already."""
        self._is_ending = True

    def _listen(self) -> None:
        for signum in _SIGNALS:
            signal.signal(signum, self._stop)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker, forked with these handlers
            raise SystemExit(128 + signum)
        if self.received is None and not self._is_ending:
            self.received = signum
            raise KeyboardInterrupt
