"""One layer on a GPU: adder2d against conv2d in three precisions, part by part.

Each side of a part is recorded once, as a round of calls over several sets of inputs, and replayed
in turns with the others.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from torchadder.bench.gpu_calls import (
    Operands,
    adder_calls,
    check_layer,
    conv_calls,
    unfold_calls,
)
from torchadder.bench.gpu_limits import pairs_per_second
from torchadder.bench.gpu_rig import Rig
from torchadder.bench.layers import PARTS
from torchadder.bench.precision import default_algorithms, strict_float32, tf32_convolutions
from torchadder.bench.shapes import Shape
from torchadder.bench.timing import BASELINE_TURNS, Call, median_readings

LIMITED_PARTS = ("forward", "input gradient")
"""The parts that are two instructions an element; the others are convolutions for the most part."""

CALLS_A_ROUND = 16
CACHES_A_ROUND = 3
"""A round touches so many times the size of the last cache, so that no call finds its inputs."""


@dataclass(frozen=True)
class GpuLayerResult:
    """Times of one part of one layer.

    Attributes:
        shape: Name of the layer.
        part: "forward", "input gradient", "weight gradient" or "step" (forward and both).
        adder_ms: Median of ours, float32.
        conv_ms: Medians of conv2d by precision: "fp32" (no TF32) and, where the chip has them,
            "tf32" and "bf16".
        unfold_ms: Median of the unfold-and-broadcast version; None where it was not measured.
        ratio_to_conv: adder_ms / conv_ms, by precision.
        speedup_over_unfold: unfold_ms / adder_ms.
        elements_per_second: Pairs |x - w| a second; a step counts three times the forward's.
        clock_hz: Clock while ours ran; None where it cannot be read.
        share_of_limit: elements_per_second over lanes * clock_hz / 2; None for parts that are not
            two instructions an element, and for unknown chips and clocks.
        adder_peak_bytes: Peak of the allocator in a step; None for the other parts.
        conv_peak_bytes: Likewise of conv2d in "fp32".
    """

    shape: str
    part: str
    adder_ms: float
    conv_ms: dict[str, float]
    unfold_ms: float | None
    ratio_to_conv: dict[str, float]
    speedup_over_unfold: float | None
    elements_per_second: float
    clock_hz: float | None
    share_of_limit: float | None
    adder_peak_bytes: int | None
    conv_peak_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def num_sets(shape: Shape, cache_bytes: int) -> int:
    """Sets of inputs of a round, at most CALLS_A_ROUND.

    Args:
        shape: The layer.
        cache_bytes: Size of the last cache.
    """
    sizes = (shape.input_shape, shape.weight_shape, shape.output_shape)
    one_set = 4 * sum(math.prod(size) for size in sizes)
    return min(CALLS_A_ROUND, max(1, math.ceil(CACHES_A_ROUND * cache_bytes / one_set)))


def _within(context: Callable[[], contextlib.AbstractContextManager[None]], call: Call) -> Call:
    def call_within() -> object:
        with context():
            return call()

    return call_within


def _sides(
    shape: Shape, sets: list[Operands], part: str, precisions: Sequence[str]
) -> dict[str, list[Call]]:
    """What is timed against each other: name to one call a set.

    Tensor cores get what suits them: operands in channels_last, bfloat16 operands for "bf16".
    """
    sides = {
        "adder": [adder_calls(shape, operands)[part] for operands in sets],
        "fp32": [conv_calls(shape, operands)[part] for operands in sets],
    }
    last = [operands.to(memory_format=torch.channels_last) for operands in sets]
    if "tf32" in precisions:
        calls = [conv_calls(shape, operands)[part] for operands in last]
        sides["tf32"] = [_within(tf32_convolutions, call) for call in calls]
    if "bf16" in precisions:
        half = [operands.to(dtype=torch.bfloat16) for operands in last]
        sides["bf16"] = [conv_calls(shape, operands)[part] for operands in half]
    return sides


@contextlib.contextmanager
def _empty_device() -> Iterator[None]:
    """Leave nothing in torch's cache that the next measurement would have to make room for."""
    try:
        yield
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _unfold_ms(shape: Shape, rig: Rig) -> dict[str, float | None]:
    """Medians of the slow version, called as it is; None where it does not fit into memory."""
    times: dict[str, float | None] = dict.fromkeys(PARTS)
    with _empty_device(), contextlib.suppress(torch.OutOfMemoryError):
        for part, call in unfold_calls(shape, Operands.draw(shape, rig.device)).items():
            readings = median_readings({part: call}, 0.0, rig.timer, BASELINE_TURNS, warm_up=0)
            times[part] = readings[part].ms
    return times


def _step_peaks(shape: Shape, rig: Rig) -> dict[str, int | None]:
    builders = {"adder": adder_calls, "conv": conv_calls}

    def build(side: str) -> Call:
        return builders[side](shape, Operands.draw(shape, rig.device))["step"]

    with default_algorithms():
        return {side: rig.timer.peak_bytes(lambda side=side: build(side)) for side in builders}


def measure_gpu_layer(
    shape: Shape, rig: Rig, seconds: float = 0.5, baseline: bool = True
) -> list[GpuLayerResult]:
    """Check one layer, then time its four parts.

    Args:
        shape: The layer.
        rig: The device and its timer.
        seconds: Time for each side of each part.
        baseline: Whether to time the unfold-and-broadcast version too.

    Returns:
        One result a part.

    Raises:
        FloatingPointError: Ours is wrong on this device, see `check_layer`.
    """
    results = []
    with strict_float32(), _empty_device():
        check_layer(shape, rig.device)
        peaks = _step_peaks(shape, rig)
        unfold = _unfold_ms(shape, rig) if baseline else dict.fromkeys(PARTS)
        sets = [Operands.draw(shape, rig.device) for _ in range(num_sets(shape, rig.cache_bytes))]
        repeats = math.ceil(CALLS_A_ROUND / len(sets))
        for part in PARTS:
            with _empty_device():
                rounds = {
                    side: rig.timer.repeated(calls * repeats)
                    for side, calls in _sides(shape, sets, part, rig.precisions).items()
                }
                readings = median_readings(rounds, seconds, rig.timer)
                del rounds
            ms = {side: reading.ms / (repeats * len(sets)) for side, reading in readings.items()}
            conv_ms = {side: value for side, value in ms.items() if side != "adder"}
            adder_ms, clock_hz, unfold_ms = ms["adder"], readings["adder"].clock_hz, unfold[part]
            rate = shape.num_taps * (3 if part == "step" else 1) / (adder_ms / 1e3)
            limit = pairs_per_second(rig.lanes, clock_hz) if part in LIMITED_PARTS else None
            results.append(
                GpuLayerResult(
                    shape=shape.name,
                    part=part,
                    adder_ms=adder_ms,
                    conv_ms=conv_ms,
                    unfold_ms=unfold_ms,
                    ratio_to_conv={name: adder_ms / value for name, value in conv_ms.items()},
                    speedup_over_unfold=None if unfold_ms is None else unfold_ms / adder_ms,
                    elements_per_second=rate,
                    clock_hz=clock_hz,
                    share_of_limit=None if limit is None else rate / limit,
                    adder_peak_bytes=peaks["adder"] if part == "step" else None,
                    conv_peak_bytes=peaks["conv"] if part == "step" else None,
                )
            )
    return results
