"""The range of real numbers that the bytes of a value stand for, found from calibration images.

Every value of a net is seen twice: first its smallest and largest number, then a histogram between
them, from which the wanted range follows. Both passes go through the images in their order, so the
result is a function of the images alone. What is done with a range is not known here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from torchadder.quantize.config import Int8Config
from torchadder.quantize.graph import PASSING, FloatGraph, QuantizationError
from torchadder.quantize.grids import Grid

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


def collect(
    graph: FloatGraph, batches: Iterable[Tensor], alike: Mapping[str, str] | None = None
) -> dict[str, Histogram]:
    """Histograms of all values of a net over some images.

    Values that stand for one another (`torchadder.quantize.sharing`) have one histogram, in which
    each of them has the same weight: else the finest level of a detector, with three quarters of
    all numbers, would decide for the others.

    Args:
        graph: The net.
        batches: Images (N, C, H, W), gone through twice.
        alike: For each value the one that stands for it; None: itself. A value that a step only
            hands on is left out of the histogram of what it stands for.

    Raises:
        QuantizationError: If there are no images, or a value is not finite.
    """
    batches = list(batches)
    if not sum(len(images) for images in batches):
        raise QuantizationError("calibration: no images")
    extremes: dict[str, tuple[float, float]] = {}
    handed_on = {step.output for step in graph.steps if step.kind in PASSING}
    group_of = {
        value: value if value in handed_on else (alike or {}).get(value, value)
        for value in graph.nodes
    }

    layers = {step.output: step.name for step in graph.steps}

    def widen(value: str, numbers: Tensor) -> None:
        if not bool(torch.isfinite(numbers).all()):
            what = (
                "the images hold"
                if value == graph.input
                else f"the output of {layers[value]} holds"
            )
            raise QuantizationError(f"calibration: {what} NaN or infinity")
        low, high = numbers.aminmax()
        group = group_of[value]
        before = extremes.get(group, (float("inf"), float("-inf")))
        extremes[group] = (min(before[0], float(low)), max(before[1], float(high)))

    watch(graph, batches, widen)
    counts = {value: torch.zeros(NUM_BINS, dtype=torch.float64) for value in group_of}

    def count(value: str, numbers: Tensor) -> None:
        counts[value] += _count(numbers, *extremes[group_of[value]])

    watch(graph, batches, count)
    members: dict[str, list[str]] = {}
    for value, group in group_of.items():
        members.setdefault(group, []).append(value)
    histograms = {}
    for group, values in members.items():
        total = counts[group] if len(values) == 1 else _in_equal_parts([counts[v] for v in values])
        histograms |= dict.fromkeys(values, Histogram(*extremes[group], total))
    return histograms


def choose(
    histogram: Histogram,
    config: Int8Config,
    bits: int,
    *,
    weights: Tensor | None = None,
) -> tuple[float, float]:
    """The range that the integers of a value are to cover.

    "max" takes all numbers; "percentile" all but a share of the largest magnitudes; "mse" tries
    shares of the whole range and takes the one with the smallest mean squared error. Where the
    filters of adder layers share the value's integers, their error is added, for |x - w| errs as
    much by either; and if they are not clamped, the range covers them, too.

    Args:
        histogram: Of the value.
        config: How to choose.
        bits: Width of the integers.
        weights: All filters that share the value's integers, or None.

    Returns:
        Smallest and largest number, 0 in between.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    covered = weights if weights is not None and not config.clamp else None
    if covered is not None:
        low, high = min(low, float(covered.min())), max(high, float(covered.max()))
    if config.range == "max" or high == low:
        return low, high
    centres, counts = histogram.centres, histogram.counts
    if config.range == "percentile":
        bound = _quantile(centres.abs(), counts, config.percentile)
        if covered is not None:
            sizes = covered.abs().flatten()
            bound = max(bound, _quantile(sizes, torch.ones_like(sizes), config.percentile))
        return max(low, -bound), min(high, bound)
    shares = counts / counts.sum()
    filters = histogram_of(weights) if weights is not None else None
    best, best_error = (low, high), float("inf")
    for part in range(NUM_CANDIDATES, 0, -1):
        grid = Grid.over(low * part / NUM_CANDIDATES, high * part / NUM_CANDIDATES, bits)
        error = float((shares * (grid.rounded(centres) - centres).square()).sum())
        if filters is not None:
            kept = filters.centres
            kept = kept.clamp(grid.low, grid.high) if config.clamp else kept
            squares = filters.counts * (grid.rounded(kept) - kept).square()
            error += float(squares.sum() / filters.counts.sum())
        if error < best_error:
            best, best_error = (grid.low, grid.high), error
    return best


def histogram_of(numbers: Tensor) -> Histogram:
    """Histogram of a tensor."""
    low, high = (float(extreme) for extreme in numbers.aminmax())
    return Histogram(low, high, _count(numbers, low, high))


def clipped_share(histogram: Histogram, low: float, high: float) -> float:
    """Share of the numbers outside `low .. high`, by the middles of their bins."""
    centres = histogram.centres
    outside = (centres < low) | (centres > high)
    return float(histogram.counts[outside].sum() / histogram.counts.sum())


def _in_equal_parts(counts: Sequence[Tensor]) -> Tensor:
    """The shares of several values, each with the same weight."""
    return torch.stack([one / one.sum() for one in counts]).sum(0)


def _count(numbers: Tensor, low: float, high: float) -> Tensor:
    """Numbers in each of the bins between `low` and `high`, float64."""
    if low == high:  # which histc takes for bounds not given
        counts = torch.zeros(NUM_BINS, dtype=torch.float64)
        counts[0] = numbers.numel()
        return counts
    return torch.histc(numbers.float(), NUM_BINS, low, high).double().cpu()


def _quantile(sizes: Tensor, counts: Tensor, share: float) -> float:
    """The size that `share` of the numbers do not exceed."""
    ordered, order = sizes.double().sort()
    covered = counts.double()[order].cumsum(0) / counts.sum()
    inside = int((covered < share).sum())
    return float(ordered[min(inside, len(ordered) - 1)])


class _Watcher(fx.Interpreter):
    """Runs a net and shows every complete value."""

    def __init__(self, graph: FloatGraph, show: Any) -> None:
        super().__init__(graph.module)
        self.extra_traceback = False  # errors of ours are one line
        self.values = {node: value for value, node in graph.nodes.items()}
        self.show = show

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.values:
            self.show(self.values[n.name], result)
        return result


def watch(graph: FloatGraph, batches: Sequence[Tensor], show: Any) -> None:
    """Runs a net over images and calls `show(name, value)` with every value of the graph."""
    watcher = _Watcher(graph, show)
    with torch.no_grad():
        for images in itertools.chain(batches):
            if len(images):
                watcher.run(images)
