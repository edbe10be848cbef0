"""From a float net's steps and ranges to an integer program.

Which integers its values have is chosen before, in `torchadder.quantize.choosing`. What is done
with them here:

* Filters are cut to the range: for every x in it, `|x - w| = |x - cut(w)| + |w - cut(w)|`, and the
  second term is a constant of the filter.
* Filters of convolutions have a symmetric scale for each output channel.
* Factors, shifts and residuals become one fixed-point requantisation behind each layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchadder.ops.int8.schema import MAX_TERMS
from torchadder.quantize import program as p
from torchadder.quantize.choosing import Choice, Part
from torchadder.quantize.config import Int8Config
from torchadder.quantize.graph import FloatGraph, QuantizationError, Step
from torchadder.quantize.grids import INT32, Grid, fixed_point
from torchadder.quantize.ranges import Histogram, clipped_share
from torchadder.quantize.steps import NORM_LIMIT

LOGIT_STEPS = 2**20
"""Integers over the calibrated range of the logits; what lies beyond still fits 32 bits."""

NORM_STEPS = 2**15
"""Integers over the magnitude of what a group norm reads; eight times as much still fits."""

_CONV_CANDIDATES = 40


@dataclass(frozen=True)
class LayerRange:
    """The range that a layer, or one group of its filters, computes with.

    Attributes:
        layer: Name of the layer.
        kind: "adder" or "conv".
        path: The float net's layer.
        outputs: Names of the values that the layer makes, one for each time it is used.
        filters: Indices of its filters in that layer, int64.
        bits: Width of the integers.
        grid: Integers of what it reads, and of its filters if it is an adder layer.
        clipped: Share of what it reads that is beyond the range, in 0..1.
        clipped_weights: Share of the weights beyond it; folded into the bias if they are clamped.
    """

    layer: str
    kind: str
    path: str
    outputs: tuple[str, ...]
    filters: Tensor
    bits: int
    grid: Grid
    clipped: float
    clipped_weights: float


def lower(
    graph: FloatGraph,
    histograms: Mapping[str, Histogram],
    config: Int8Config,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> tuple[p.Program, list[LayerRange]]:
    """The integer program of a net.

    Args:
        graph: The net.
        histograms: Of all its values.
        config: What the user has chosen.
        mean: Of each channel, what the images were normalised with, for the record.
        std: Likewise.

    Returns:
        The program and the ranges of its layers.

    Raises:
        QuantizationError: If a layer cannot be done in integers, or a value is always zero.
    """
    return _Lowering(graph, histograms, config).run(mean, std)


class _Lowering:
    def __init__(
        self, graph: FloatGraph, histograms: Mapping[str, Histogram], config: Int8Config
    ) -> None:
        self.graph, self.histograms, self.config = graph, histograms, config
        self.choice = Choice(graph, histograms, config)
        self.shapes = graph.shapes()
        self.steps: list[p.Step] = []
        self.values: dict[str, p.Value] = {}
        self.ranges: dict[str, LayerRange] = {}
        self.names = _unique_names(graph.steps)
        self._made: dict[str, p.Layer | p.FloatLayer | p.GroupNorm] = {}

    def run(
        self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
    ) -> tuple[p.Program, list[LayerRange]]:
        """Every step, then the outputs."""
        graph = self.graph
        self._value(graph.input, self._dtype(graph.input))
        for step in graph.steps:
            self._emit(step)
        outputs = []
        for name, is_map in zip(graph.outputs, graph.are_maps, strict=True):
            value = self.values[name]
            value = self._end_in_integers(value) if value.dtype == "uint8" else value
            outputs.append(p.Output(value.name, value.shape[0], value.scale, is_map))
        C, H, W = self.shapes[graph.input]
        first = self.values[graph.input]
        program = p.Program(
            input=p.Input(graph.input, C, H, W, first.scale, first.zero_point, mean, std),
            outputs=tuple(outputs),
            steps=tuple(self.steps),
            values=self.values,
            bits=self.config.bits,
            takes_any_size=graph.takes_any_size,
        )
        return program, list(self.ranges.values())

    # Steps ----------------------------------------------------------------------------------------

    def _dtype(self, value: str) -> p.DType:
        """Images that only layers in float read stay as they are."""
        readers = self.graph.readers(value)
        in_float = all(step.kind == "conv" and self.choice.is_float(step) for step in readers)
        return "float32" if value == self.graph.input and in_float else "uint8"

    def _value(self, name: str, dtype: p.DType = "uint8", grid: Grid | None = None) -> p.Value:
        grid = grid or self.choice.grids[self.choice.root(name)]
        scale, zero_point = (1.0, 0) if dtype == "float32" else (grid.scale, grid.zero_point)
        value = p.Value(name, self.shapes[name], scale, zero_point, dtype)
        self.values[name] = value
        return value

    def _emit(self, step: Step) -> None:
        name = self.names[step.output]
        if step.kind in ("adder", "conv"):
            self._layer(step, name)
            return
        source = self.values[step.inputs[0]]
        result = self._value(step.output)
        low, high = self._limits(step, result)
        if step.kind == "flatten":
            self.steps.append(p.Flatten(name, source.name, result.name))
        elif step.kind == "max_pool":
            assert step.window is not None
            assert step.kernel is not None
            stride, padding, dilation, _ = step.window
            self.steps.append(
                p.MaxPool(name, source.name, result.name, step.kernel, stride, padding, dilation)
            )
        elif step.kind == "upsample":
            self.steps.append(p.Upsample(name, source.name, result.name, step.factor))
        elif step.kind == "group_norm":
            self._group_norm(step, name, source, result)
        elif step.kind == "avg_pool":
            kernel = step.kernel or source.shape[1:]
            stride, padding = (step.window[0], step.window[1]) if step.window else (kernel, (0, 0))
            num_pixels = kernel[0] * kernel[1]
            _check_terms(step, num_pixels, "conv2d")
            factor = source.scale / (result.scale * num_pixels)
            constant = result.zero_point - source.zero_point * num_pixels * factor
            how = _fixed_point(step, *_each(result, factor, constant), low, high)
            self.steps.append(
                p.AvgPool(name, source.name, result.name, kernel, stride, padding, how)
            )
        elif step.kind == "add":
            other = self.values[step.inputs[1]]
            factor, residual = source.scale / result.scale, other.scale / result.scale
            constant = result.zero_point - source.zero_point * factor - other.zero_point * residual
            how = _fixed_point(step, *_each(result, factor, constant), low, high, residual)
            self.steps.append(p.Add(name, source.name, other.name, result.name, how))
        else:
            assert step.scale is not None
            assert step.shift is not None
            factors = step.scale * (source.scale / result.scale)
            constants = step.shift / result.scale + result.zero_point - source.zero_point * factors
            how = _fixed_point(step, factors, constants, low, high)
            self.steps.append(p.Affine(name, source.name, result.name, how))

    def _limits(self, step: Step, result: p.Value) -> tuple[int, int]:
        """Smallest and largest integer that a step, or a group of its filters, makes."""
        if result.dtype == "int32":
            low, high = (-NORM_LIMIT, NORM_LIMIT) if self.choice.is_wide(step) else INT32
            return (0 if step.relu else low), high
        levels = self.choice.grids[self.choice.root(step.output)].levels
        return (result.zero_point if step.relu else 0), levels

    def _layer(self, step: Step, name: str) -> None:
        assert step.weight is not None
        assert step.window is not None
        if step.kind == "conv" and self.choice.is_float(step):
            self._float_layer(step, name)
            return
        terms = step.weight[0].numel()
        _check_terms(step, terms, "adder2d" if step.kind == "adder" else "conv2d")
        source = self.values[step.inputs[0]]
        result = self._result(step)
        residual = self.values[step.inputs[1]] if len(step.inputs) > 1 else None
        parts = self.choice.parts[step.output]
        own = self.choice.grids[self.choice.root(source.name)]
        if len(parts) == 1:
            value = source
            if parts[0].grid != own:
                value = self._requantised(step, f"{name}_requantise", source, parts[0].grid)
            self._part(step, name, parts[0], value, result, residual)
            return
        made = []
        for number, part in enumerate(parts):
            label = f".group{number}"
            value = self._requantised(step, f"{name}.requantise{number}", source, part.grid)
            shape = (len(part.filters), *result.shape[1:])
            piece = p.Value(f"{result.name}.{number}", shape, result.scale, result.zero_point)
            self.values[piece.name] = piece
            share = residual
            if residual is not None:
                share = p.Value(
                    f"{result.name}.residual{number}", shape, residual.scale, residual.zero_point
                )
                self.values[share.name] = share
                self.steps.append(
                    p.Concat(f"{name}.residual{number}", (residual.name,), share.name, part.filters)
                )
            self._part(step, name, part, value, piece, share, label)
            made.append(piece.name)
        order = torch.cat([part.filters for part in parts]).argsort()
        self.steps.append(p.Concat(f"{name}.concat", tuple(made), result.name, order))

    def _result(self, step: Step) -> p.Value:
        """The value that a layer makes: bytes, or integers for logits and for group norms."""
        if self.choice.is_wide(step):
            return self._integers(step.output, step.output, NORM_STEPS)
        if not self.graph.readers(step.output):
            return self._integers(step.output, step.output, LOGIT_STEPS)
        return self._value(step.output)

    def _integers(self, name: str, value: str, num_steps: int) -> p.Value:
        """A value of 32 bits, for the numbers of `value`."""
        histogram = self.histograms[value]
        largest = max(abs(histogram.low), abs(histogram.high))
        if largest == 0:
            maker = self.choice.makers[value].name
            raise QuantizationError(
                f"{maker}: its output is 0 for all calibration images: a range of zero"
            )
        result = p.Value(name, self.shapes[value], largest / num_steps, 0, "int32")
        self.values[name] = result
        return result

    def _group_norm(self, step: Step, name: str, source: p.Value, result: p.Value) -> None:
        if self._use_again(step, name, source, result):
            return
        assert step.scale is not None
        assert step.shift is not None
        low, high = self._limits(step, result)
        weight, bias = step.scale.float(), step.shift.float()
        norm = p.GroupNorm(
            name, source.name, result.name, weight, bias, step.num_groups, step.eps, low, high
        )
        self.steps.append(norm)
        self._made[name] = norm

    def _use_again(
        self, step: Step, name: str, source: p.Value, result: p.Value, label: str = ""
    ) -> bool:
        """Adds another use of a layer, or of a group of its filters, if the step is one."""
        if not self.choice.sharing.is_again(step):
            return False
        first = self.names[self.choice.sharing.first[step.output].output] + label
        self.steps.append(
            dataclasses.replace(
                self._made[first],
                name=name + label,
                input=source.name,
                output=result.name,
                shared=first,
            )
        )
        if first in self.ranges:
            known = self.ranges[first]
            outputs = (*known.outputs, step.output)
            self.ranges[first] = dataclasses.replace(known, outputs=outputs)
        return True

    def _requantised(self, step: Step, name: str, source: p.Value, grid: Grid) -> p.Value:
        value = p.Value(
            f"{step.output}.input{len(self.steps)}", source.shape, grid.scale, grid.zero_point
        )
        self.values[value.name] = value
        factor = source.scale / grid.scale
        constant = grid.zero_point - source.zero_point * factor
        how = _fixed_point(step, *_each(value, factor, constant), 0, grid.levels)
        self.steps.append(p.Requantise(name, source.name, value.name, how))
        return value

    def _part(
        self,
        step: Step,
        name: str,
        part: Part,
        source: p.Value,
        result: p.Value,
        residual: p.Value | None,
        label: str = "",
    ) -> None:
        """One layer, or one group of its filters."""
        if self._use_again(step, name, source, result, label):
            return
        name += label
        assert step.weight is not None
        assert step.window is not None
        assert step.scale is not None
        assert step.shift is not None
        filters = part.filters
        weight = step.weight[filters].double()
        scale, shift = step.scale[filters], step.shift[filters]
        grid = part.grid
        if step.kind == "adder":
            integers = grid.to_integers(weight).to(torch.uint8)
            factors = scale * grid.scale
            if self.config.clamp:
                beyond = (weight - weight.clamp(grid.low, grid.high)).abs().sum((1, 2, 3))
                shift = shift - scale * beyond
        else:
            integers, steps = conv_filters(weight, self.choice.bits(step), self.config)
            factors = scale * steps * source.scale
            shift = shift - factors * source.zero_point * integers.double().sum((1, 2, 3))
        residual_factor, constants = 0.0, shift / result.scale + result.zero_point
        if residual is not None:
            residual_factor = residual.scale / result.scale
            constants = constants - residual.zero_point * residual_factor
        how = _fixed_point(
            step, factors / result.scale, constants, *self._limits(step, result), residual_factor
        )
        stride, padding, dilation, groups = step.window
        layer = p.Layer(
            "adder" if step.kind == "adder" else "conv",
            name,
            source.name,
            result.name,
            integers,
            stride,
            padding,
            dilation,
            groups,
            how,
            None if residual is None else residual.name,
        )
        self.steps.append(layer)
        self._made[name] = layer
        beyond_weights = 0.0
        if step.kind == "adder":
            half = 0.5 * grid.scale
            outside = (weight < grid.low - half) | (weight > grid.high + half)
            beyond_weights = float(outside.double().mean())
        histogram = self.histograms[self.choice.root(step.inputs[0])]
        clipped = clipped_share(
            histogram, grid.low - 0.5 * grid.scale, grid.high + 0.5 * grid.scale
        )
        self.ranges[name] = LayerRange(
            name, step.kind, step.name, (step.output,), filters, self.choice.bits(step), grid,
            clipped, beyond_weights,
        )  # fmt: skip

    def _float_layer(self, step: Step, name: str) -> None:
        assert step.weight is not None
        assert step.window is not None
        assert step.scale is not None
        assert step.shift is not None
        makes_logits = not self.graph.readers(step.output)
        result = self._value(step.output, "float32" if makes_logits else "uint8")
        if self._use_again(step, name, self.values[step.inputs[0]], result):
            return
        weight = step.weight.double() * step.scale[:, None, None, None]
        stride, padding, dilation, groups = step.window
        layer = p.FloatLayer(
            name, step.inputs[0], result.name, weight.float(), step.shift.float(),
            stride, padding, dilation, groups, step.relu,
        )  # fmt: skip
        self.steps.append(layer)
        self._made[name] = layer

    def _end_in_integers(self, source: p.Value) -> p.Value:
        """Logits that no layer makes: bytes to int32."""
        name = f"{source.name}.logits"
        if name in self.values:
            return self.values[name]
        result = self._integers(name, source.name, LOGIT_STEPS)
        factor = source.scale / result.scale
        how = fixed_point(*_each(source, factor, -source.zero_point * factor), *INT32)
        self.steps.append(p.Affine(result.name, source.name, result.name, how))
        return result


def _each(value: p.Value, factor: float, constant: float) -> tuple[Tensor, Tensor]:
    """The same numbers for every channel."""
    ones = torch.ones(value.shape[0], dtype=torch.float64)
    return factor * ones, constant * ones


def _check_terms(step: Step, terms: int, kernel: str) -> None:
    if terms > MAX_TERMS[kernel]:
        raise QuantizationError(
            f"{step.name}: a sum of {terms} terms may overflow 32 bits, at most "
            f"{MAX_TERMS[kernel]} fit for certain"
        )


def _fixed_point(step: Step, *numbers: Any) -> p.Requantisation:
    """As of `fixed_point`, with the name of the layer in what it raises."""
    try:
        return fixed_point(*numbers)
    except QuantizationError as error:
        raise QuantizationError(f"{step.name}: {error}") from None


def conv_filters(weight: Tensor, bits: int, config: Int8Config) -> tuple[Tensor, Tensor]:
    """Filters of a convolution as int8, and the real number of one step for each, float64."""
    most = 2 ** (bits - 1) - 1
    largest = weight.abs().amax((1, 2, 3))
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    best = largest / most
    if config.range == "mse":
        best_error = torch.full_like(largest, torch.inf)
        for part in range(_CONV_CANDIDATES, _CONV_CANDIDATES // 2, -1):
            steps = largest * part / (_CONV_CANDIDATES * most)
            wide = steps[:, None, None, None]
            rounded = (weight / wide).round().clamp(-most, most) * wide
            error = (rounded - weight).square().sum((1, 2, 3))
            best = torch.where(error < best_error, steps, best)
            best_error = torch.minimum(error, best_error)
    integers = (weight / best[:, None, None, None]).round().clamp(-most, most)
    return integers.to(torch.int8), best


def _unique_names(steps: list[Step]) -> dict[str, str]:
    """A name for each step, by its output: its layer's path, or that of the operation.

    None is the beginning of another's path, for steps become modules of those names.
    """
    names: dict[str, str] = {}
    kinds = ("adder", "conv", "group_norm")
    layers = {step.name for step in steps if step.kind in kinds and step.name}
    parents = {path[:end] for path in layers for end, c in enumerate(path) if c == "."}
    for step in steps:
        is_layer = step.kind in kinds and step.name
        wanted = step.name if is_layer else step.output
        name, number = wanted, 1
        while name in names.values() or name in parents or (not is_layer and name in layers):
            name, number = f"{wanted}_{number}", number + 1
        names[step.output] = name
    return names
