"""Median times of several functions, taken in turns so that drift hits all alike.

What a call costs is asked of a `Timer`: the processor's clock here, a GPU's events in
`torchadder.bench.gpu_timer`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Call = Callable[[], object]

WARM_UP = 2
LEAST_TURNS = 5
BASELINE_TURNS = 3
"""Calls of the slow baseline, whose first is as slow as the others."""


@dataclass(frozen=True)
class Reading:
    """What one call cost.

    Attributes:
        ms: Milliseconds.
        clock_hz: Clock of the device while it worked; None where it cannot be read.
    """

    ms: float
    clock_hz: float | None = None


class Timer(Protocol):
    """Measures calls on one device."""

    def read(self, call: Call) -> Reading:
        """Time one call, from an idle device to an idle device."""
        ...

    def repeated(self, calls: Sequence[Call]) -> Call:
        """A call that does all ``calls``, warmed up, with as little between them as can be had."""
        ...

    def peak_bytes(self, build: Callable[[], Call]) -> int | None:
        """Most memory in use during the third call of ``build()``, above that before ``build``."""
        ...


class CpuTimer:
    """Times on the processor.

    Args:
        now: Seconds since any fixed moment.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def read(self, call: Call) -> Reading:
        """Time one call; a processor's clock is not read."""
        start = self._now()
        call()
        return Reading(1e3 * (self._now() - start))

    def repeated(self, calls: Sequence[Call]) -> Call:
        """A function that makes the calls one after the other, after a first round of them."""

        def make_all() -> None:
            for call in calls:
                call()

        make_all()
        return make_all

    def peak_bytes(self, build: Callable[[], Call]) -> int | None:
        """None: torch does not count what it allocates on the processor."""
        return None


def median_readings(
    functions: Mapping[str, Call],
    seconds: float,
    timer: Timer,
    least_turns: int = LEAST_TURNS,
    warm_up: int = WARM_UP,
) -> dict[str, Reading]:
    """Call each function in turn for about ``seconds`` each; return the medians by name.

    Args:
        functions: What to time, by name.
        seconds: Time to spend on each function, warm-up aside.
        timer: What measures a call.
        least_turns: Calls of each, however long they take.
        warm_up: Calls of each before the timing starts.
    """
    for _ in range(warm_up):
        for function in functions.values():
            function()
    readings: dict[str, list[Reading]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds * len(functions)
    turns = 0
    while turns < least_turns or time.perf_counter() < end:
        for name, function in functions.items():
            readings[name].append(timer.read(function))
        turns += 1
    return {name: _median(values) for name, values in readings.items()}


def median_ms(
    functions: Mapping[str, Call],
    seconds: float,
    least_turns: int = LEAST_TURNS,
    warm_up: int = WARM_UP,
) -> dict[str, float]:
    """`median_readings` on the processor, in milliseconds."""
    readings = median_readings(functions, seconds, CpuTimer(), least_turns, warm_up)
    return {name: reading.ms for name, reading in readings.items()}


def _median(readings: list[Reading]) -> Reading:
    clocks = [reading.clock_hz for reading in readings if reading.clock_hz is not None]
    return Reading(
        statistics.median(reading.ms for reading in readings),
        statistics.median(clocks) if clocks else None,
    )
