"""Median times of several functions, taken in turns so that drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

WARM_UP = 2
LEAST_TURNS = 5
BASELINE_TURNS = 3
"""Calls of the slow baseline, whose first is as slow as the others."""


def median_ms(
    functions: dict[str, Callable[[], object]],
    seconds: float,
    least_turns: int = LEAST_TURNS,
    warm_up: int = WARM_UP,
) -> dict[str, float]:
    """Call each function in turn for about ``seconds`` each; return medians in milliseconds.

    Args:
        functions: What to time, by name.
        seconds: Time to spend on each function, warm-up aside.
        least_turns: Calls of each, however long they take.
        warm_up: Calls of each before the timing starts.
    """
    for _ in range(warm_up):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds * len(functions)
    turns = 0
    while turns < least_turns or time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
        turns += 1
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}
