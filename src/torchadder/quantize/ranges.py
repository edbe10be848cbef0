"""The range of real numbers that the bytes of a value stand for, found from calibration images.

Every value of a net is seen twice: first its smallest and largest number, then a histogram between
them, from which the wanted range follows. Both passes go through the images in their order, so the
result is a function of the images alone. What is done with a range is not known here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from torchadder.quantize.graph import FloatGraph, QuantizationError

Method = Literal["max", "percentile", "mse"]

METHODS: tuple[Method, ...] = ("max", "percentile", "mse")

NUM_BINS = 4096
NUM_CANDIDATES = 100


@dataclass
class Histogram:
    """Numbers of a value that fell into equal bins between `low` and `high`."""

    low: float
    high: float
    counts: Tensor

    @property
    def centres(self) -> Tensor:
        """Middle of each bin, float64."""
        width = (self.high - self.low) / len(self.counts)
        return self.low + width * (torch.arange(len(self.counts), dtype=torch.float64) + 0.5)


def collect(graph: FloatGraph, batches: Iterable[Tensor]) -> dict[str, Histogram]:
    """Histograms of all values of a net over some images.

    Args:
        graph: The net.
        batches: Images (N, C, H, W), gone through twice.

    Raises:
        QuantizationError: If there are no images, or a value is not finite.
    """
    batches = list(batches)
    if not sum(len(images) for images in batches):
        raise QuantizationError("calibration: no images")
    extremes: dict[str, tuple[float, float]] = {}

    def widen(value: str, numbers: Tensor) -> None:
        if not bool(torch.isfinite(numbers).all()):
            what = "the images hold" if value == graph.input else f"the output of {value} holds"
            raise QuantizationError(f"calibration: {what} NaN or infinity")
        low, high = numbers.aminmax()
        before = extremes.get(value, (float("inf"), float("-inf")))
        extremes[value] = (min(before[0], float(low)), max(before[1], float(high)))

    _watch(graph, batches, widen)
    histograms = {
        value: Histogram(low, max(high, low + 1e-30), torch.zeros(NUM_BINS, dtype=torch.float64))
        for value, (low, high) in extremes.items()
    }

    def count(value: str, numbers: Tensor) -> None:
        seen = histograms[value]
        if seen.high - seen.low <= 1e-30:
            seen.counts[0] += numbers.numel()
            return
        counts = torch.histc(numbers.float(), NUM_BINS, seen.low, seen.high)
        seen.counts += counts.double()

    _watch(graph, batches, count)
    return histograms


def choose(
    histogram: Histogram, method: Method, levels: int, percentile: float, *, is_positive: bool
) -> tuple[float, float]:
    """The range that `levels` equal steps are to cover.

    Args:
        histogram: Of the value.
        method: "max" (all of it), "percentile" (all but a share of the largest magnitudes), or
            "mse" (the share of the largest magnitude with the smallest mean squared error).
        levels: Number of steps, 255 for a byte.
        percentile: Share of the numbers that "percentile" covers, in 0..1.
        is_positive: Whether the value has no negative numbers, so that the range begins at 0.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if is_positive:
        low = 0.0
    if method == "max" or high == low:
        return low, high
    centres, counts = histogram.centres, histogram.counts
    if method == "percentile":
        order = centres.abs().argsort()
        share = counts[order].cumsum(0) / counts.sum()
        inside = int(torch.searchsorted(share, torch.tensor(percentile, dtype=torch.float64)))
        bound = float(centres.abs()[order][min(inside, len(order) - 1)])
        return max(low, -bound), min(high, bound)
    best, best_error = (low, high), float("inf")
    for part in range(NUM_CANDIDATES, 0, -1):
        a, b = low * part / NUM_CANDIDATES, high * part / NUM_CANDIDATES
        step = (b - a) / levels
        rounded = ((centres - a) / step).round().clamp(0, levels) * step + a
        error = float((counts * (rounded - centres).square()).sum())
        if error < best_error:
            best, best_error = (a, b), error
    return best


class _Watcher(fx.Interpreter):
    """Runs a net and shows every complete value."""

    def __init__(self, graph: FloatGraph, show: Any) -> None:
        super().__init__(graph.module)
        self.values = {node: value for value, node in graph.nodes.items()}
        self.show = show

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.values:
            self.show(self.values[n.name], result)
        return result


def _watch(graph: FloatGraph, batches: Sequence[Tensor], show: Any) -> None:
    watcher = _Watcher(graph, show)
    with torch.no_grad():
        for images in itertools.chain(batches):
            if len(images):
                watcher.run(images)
