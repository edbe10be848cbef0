"""Which integers the values and layers of a net get.

Who shares a scale with whom is decided here:

* The output of a max pool, an enlargement or a flattening has the integers of what it reads.
* Uses of one layer have one range of what they read and one of what they make, and so one set of
  filters and one requantisation (`torchadder.quantize.sharing`).
* A value that only adder layers or convolutions of one width read gets integers of that width. One
  that a residual, a mean or a layer of another width reads, too, gets bytes.
* An adder layer's filters have the integers of the value it reads, directly where that value has
  the layer's width, so that several layers reading one value agree on its range. Otherwise, and
  where a layer's filters form groups, the layer or group has a range of its own and the value is
  requantised for it.
* What only group norms read keeps 16 bits of its range: a norm's statistics are those of the image,
  so the range that is right for it is not known before.

How a program is made of it is the business of `torchadder.quantize.lowering`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchadder.quantize import sharing
from torchadder.quantize.config import MAX_BITS, Int8Config
from torchadder.quantize.graph import PASSING, FloatGraph, QuantizationError, Step
from torchadder.quantize.grids import Grid
from torchadder.quantize.grouping import kmeans
from torchadder.quantize.ranges import Histogram, choose

_TAIL = (*PASSING, "avg_pool", "affine")
"""Kinds of steps without filters: a layer of which only they come before the logits is the last."""


@dataclass(frozen=True)
class Part:
    """Filters of a layer that share a grid."""

    filters: Tensor
    grid: Grid


class Choice:
    """The integers of a net.

    Args:
        graph: The net.
        histograms: Of all its values.
        config: What the user has chosen.

    Attributes:
        grids: Integers of each value, by the one that stands for it (`root`).
        parts: For each layer, by the name of its value, the groups of its filters with the integers
            that they compute with.

    Raises:
        QuantizationError: If a value is always zero, or the first or last layer is to stay in float
            and is no convolution.
    """

    def __init__(
        self, graph: FloatGraph, histograms: Mapping[str, Histogram], config: Int8Config
    ) -> None:
        self.graph, self.histograms, self.config = graph, histograms, config
        self.sharing = sharing.find(graph)
        self.makers = {step.output: step for step in graph.steps}
        self.grids: dict[str, Grid] = {}
        self.parts: dict[str, list[Part]] = {}
        self._check_ends()
        for value in [graph.input, *self.makers]:
            if self.root(value) == value:
                self._choose_grids(value)

    def root(self, value: str) -> str:
        """The value whose integers this one has."""
        return self.sharing.alike[value]

    def bits(self, step: Step) -> int:
        """Width of the integers of a layer."""
        at_an_end = self.is_first(step) or self.is_last(step)
        return MAX_BITS if at_an_end else self.config.bits

    def is_first(self, step: Step) -> bool:
        """Whether a layer reads the images, maybe with a factor and a shift for each channel."""
        value = self.root(step.inputs[0])
        maker = self.makers.get(value)
        while maker is not None and maker.kind == "affine":
            value = self.root(maker.inputs[0])
            maker = self.makers.get(value)
        return value == self.root(self.graph.input)

    def is_last(self, step: Step) -> bool:
        """Whether a layer, in any of its uses, makes logits, maybe through pools and the like."""
        return any(self._is_output(use.output) for use in self._uses(step))

    def is_float(self, step: Step) -> bool:
        """Whether a layer stays in float."""
        if step.kind != "conv" or len(step.inputs) > 1:
            return False
        first = self.config.first == "float" and self.is_first(step)
        return first or (self.config.last == "float" and self._is_only_last(step))

    def _is_only_last(self, step: Step) -> bool:
        """Whether nothing with filters reads what a last layer makes."""
        readers = [one for use in self._uses(step) for one in self.graph.readers(use.output)]
        return self.is_last(step) and all(one.kind in _TAIL for one in readers)

    def _is_output(self, value: str) -> bool:
        return value in self.graph.outputs or any(
            step.kind in _TAIL and self._is_output(step.output)
            for step in self.graph.readers(value)
        )

    def _uses(self, step: Step) -> list[Step]:
        """All steps that use a layer."""
        first = self.sharing.first
        layer = first.get(step.output, step)
        return [one for one in self.graph.steps if first.get(one.output, one) is layer]

    def _check_ends(self) -> None:
        """Refuses a choice without any effect."""
        layers = [step for step in self.graph.steps if self.is_float(step)]
        if self.config.first == "float" and not any(map(self.is_first, layers)):
            raise QuantizationError("first = float: no convolution reads the images")
        if self.config.last == "float" and not any(map(self._is_only_last, layers)):
            raise QuantizationError("last = float: no convolution or linear layer makes the logits")

    def is_wide(self, step: Step) -> bool:
        """Whether what a layer makes keeps more than 8 bits for the group norms behind it."""
        return sharing.is_wide(step, self.graph) and not self.is_float(step)

    def _choose_grids(self, root: str) -> None:
        """Integers of a value and, where they differ, of the layers that read it."""
        if root in self.makers and self.is_wide(self.makers[root]):
            return
        histogram = self.histograms[root]
        layers, others = [], any(self.root(value) == root for value in self.graph.outputs)
        for step in self.graph.steps:
            for place, value in enumerate(step.inputs):
                if self.root(value) != root or step.kind in PASSING:
                    continue
                if place == 0 and step.kind in ("adder", "conv"):
                    layers.append(step)
                else:
                    others = True
        groups = {step.output: self._groups(step) for step in layers}
        grouped = any(len(parts) > 1 for parts in groups.values())
        widths = {self.bits(step) for step in layers}
        bits = MAX_BITS if others or grouped or len(widths) != 1 else widths.pop()
        direct = [
            step for step in layers if self.bits(step) == bits and len(groups[step.output]) == 1
        ]
        grid = self._grid(root, histogram, bits, [s for s in direct if s.kind == "adder"])
        self.grids[root] = grid
        for step in layers:
            if step in direct:
                self.parts[step.output] = [Part(groups[step.output][0], grid)]
                continue
            assert step.weight is not None
            self.parts[step.output] = [
                Part(filters, self._part_grid(step, histogram, filters, len(parts)))
                for parts in (groups[step.output],)
                for filters in parts
            ]

    def _grid(self, value: str, histogram: Histogram, bits: int, direct: list[Step]) -> Grid:
        own = [step for step in direct if not self.sharing.is_again(step)]
        filters = [step.weight.flatten() for step in own if step.weight is not None]
        weights = torch.cat(filters) if filters else None
        low, high = choose(histogram, self.config, bits, weights=weights)
        if low == high:
            maker = self.makers.get(value)
            what = f"{maker.name}: its output is" if maker else "calibration: the images are"
            raise QuantizationError(f"{what} 0 for all calibration images: a range of zero")
        return Grid.over(low, high, bits)

    def _part_grid(
        self, step: Step, histogram: Histogram, filters: Tensor, num_groups: int
    ) -> Grid:
        """Integers of a layer, or of a group of its filters, that requantises what it reads."""
        assert step.weight is not None
        bits = self.bits(step)
        weights = step.weight[filters] if step.kind == "adder" else None
        low, high = choose(histogram, self.config, bits, weights=weights)
        if num_groups > 1 and weights is not None:
            # Beyond the largest weight of the group, |x - w| grows alike for all its filters.
            largest = float(weights.abs().max())
            if largest > 0:
                low, high = max(low, -largest), min(high, largest)
        return Grid.over(low, high, bits)

    def _groups(self, step: Step) -> list[Tensor]:
        """Filters of a layer that get a range together.

        All of them at both ends of the net, in convolutions, and where a group norm, which reads
        channels side by side, takes the sums as they are.
        """
        assert step.weight is not None
        assert step.window is not None
        everything = torch.arange(len(step.weight))
        at_an_end = self.is_first(step) or self.is_last(step)
        whole = at_an_end or self.is_wide(step) or step.window.groups > 1
        if step.kind != "adder" or whole:
            return [everything]
        return kmeans(step.weight.abs().flatten(1).amax(1), self.config.groups)
