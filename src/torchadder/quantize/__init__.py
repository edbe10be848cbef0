"""Integer nets from trained ones: `torchadder.quantize_`.

`graph` writes a float net down as steps, `ranges` finds the ranges of its values, `lowering` makes
integers of both: a `Program`, which `interpreter` explains and `net` and `modules` run fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.quantize.config import Int8Config as Int8Config
from torchadder.quantize.graph import FloatGraph, QuantizationError, Step, trace
from torchadder.quantize.lowering import LayerRange, lower
from torchadder.quantize.modules import Adder2dInt8 as Adder2dInt8
from torchadder.quantize.modules import Conv2dInt8 as Conv2dInt8
from torchadder.quantize.net import IntegerNet
from torchadder.quantize.program import Program, weight_bytes
from torchadder.quantize.ranges import collect, watch
from torchadder.quantize.report import LayerReport, QuantizationReport, decibels

__all__ = [
    "Adder2dInt8",
    "Conv2dInt8",
    "Int8Config",
    "IntegerNet",
    "LayerReport",
    "Program",
    "QuantizationError",
    "QuantizationReport",
    "quantize",
    "quantize_",
]


def quantize_(
    model: nn.Module,
    calibration_batches: Iterable[Any],
    config: Int8Config | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> QuantizationReport:
    """Makes an integer net of a trained model, in place: afterwards it is an `IntegerNet`.

    Post-training: the calibration images go through the float net, twice for the ranges of its
    values and once more to be compared. The result is a function of the model and the images alone.
    `-sum |x - w|` of reals is `scale` times `-sum |x_q - w_q|` of integers if x and w have one
    scale and zero point (arXiv 2101.10015); see docs/int8.md for what is shared with whom.

    Args:
        model: Images (N, C, H, W) to logits, in evaluation mode: adder layers, convolutions, linear
            layers, batch norms, ReLU, residual additions, pooling, flattening.
        calibration_batches: Images as the model takes them: tensors, or tuples or lists that begin
            with one, such as a data loader gives. A few hundred images are plenty.
        config: What to choose; 8 bits by default.
        mean: Of each channel, what the images were normalised with, for exports; pixels in 0..1.
        std: Likewise.

    Returns:
        Range, clipped share and signal-to-noise ratio of every layer.

    Raises:
        QuantizationError: If a layer cannot be quantised (with its name and the reason), there is
            no calibration data, it has NaN in it, or a range is zero. A ValueError; the model is
            unchanged after any error.
        TypeError: If the batches are no tensors.
    """
    program, report = quantize(model, calibration_batches, config, mean=mean, std=std)
    _become(model, program)
    return report


def quantize(
    model: nn.Module,
    calibration_batches: Iterable[Any],
    config: Int8Config | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[Program, QuantizationReport]:
    """The integer program of a model, which stays as it is; arguments as of `quantize_`."""
    config = config or Int8Config()
    if isinstance(model, IntegerNet):
        raise QuantizationError("the net computes with integers already")
    if hasattr(model, "_orig_mod"):
        raise QuantizationError("the net is compiled: quantise it before torch.compile")
    batches = _images(calibration_batches, model)
    graph = trace(model, batches[0])
    histograms = collect(graph, batches)
    program, ranges = lower(
        graph,
        histograms,
        config,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
    )
    return program, _report(graph, batches, program, ranges)


def _become(model: nn.Module, program: Program) -> None:
    """Turns a module into the integer net of a program."""
    net = IntegerNet(program)
    kept = {
        name: value
        for name, value in vars(model).items()
        if name not in vars(net) and name in ("config",)
    }
    model.__class__ = IntegerNet
    vars(model).clear()
    vars(model).update(vars(net), **kept)


def _images(batches: Iterable[Any], model: nn.Module) -> list[Tensor]:
    """The images of all batches, on the model's device."""
    anything = next(iter([*model.parameters(), *model.buffers()]), None)
    device = anything.device if anything is not None else torch.device("cpu")
    images = []
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        first = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(first, Tensor):
            raise TypeError(f"calibration: batches must be tensors, got {type(first).__name__}")
        if first.dim() != 4 or not first.is_floating_point():
            raise QuantizationError(
                f"calibration: images must be floats of shape (N, C, H, W), got {first.dtype} "
                f"{tuple(first.shape)}"
            )
        if len(first):
            images.append(first.to(device))
    if not images:
        raise QuantizationError("calibration: no images")
    shapes = {tuple(batch.shape[1:]) for batch in images}
    if len(shapes) > 1:
        raise QuantizationError(f"calibration: images of unequal sizes: {sorted(shapes)}")
    return images


def _report(
    graph: FloatGraph, batches: list[Tensor], program: Program, ranges: list[LayerRange]
) -> QuantizationReport:
    """Compares the integer net with the float one, value by value."""
    net = IntegerNet(program)
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for images in batches:
        floats: dict[str, Tensor] = {}

        def keep(value: str, numbers: Tensor, floats: dict[str, Tensor] = floats) -> None:
            floats[value] = numbers.clone()  # a later step may add to it in place

        watch(graph, [images], keep)
        for name, integers in net.each_value(images.cpu()):
            wanted = floats.get(graph.output if name == program.output.name else name)
            if wanted is None:
                continue
            value = program.values[name]
            real = integers.double()
            if not integers.is_floating_point():
                real = (real - value.zero_point) * value.scale
            wanted = wanted.cpu().double().reshape(real.shape)
            signal[name] = signal.get(name, 0.0) + float(wanted.square().sum())
            noise[name] = noise.get(name, 0.0) + float((wanted - real).square().sum())
    rows = [
        LayerReport(
            layer=one.layer,
            kind=one.kind,
            num_filters=one.num_filters,
            bits=one.bits,
            low=one.grid.low,
            high=one.grid.high,
            scale=one.grid.scale,
            zero_point=one.grid.zero_point,
            clipped=one.clipped,
            clipped_weights=one.clipped_weights,
            sqnr_db=decibels(signal[one.output], noise[one.output]),
        )
        for one in ranges
    ]
    result = program.output.name
    return QuantizationReport(
        layers=rows,
        num_images=sum(map(len, batches)),
        sqnr_db=decibels(signal[result], noise[result]),
        weight_bytes=weight_bytes(program.steps),
        float_weight_bytes=sum(_float_bytes(step) for step in graph.steps),
    )


def _float_bytes(step: Step) -> int:
    return 0 if step.weight is None else 4 * step.weight.numel()
