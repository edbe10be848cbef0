"""What calibration images tell about a net, from which integer nets of any kind are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.quantize import sharing
from torchadder.quantize.config import Int8Config
from torchadder.quantize.core import HasCore, integer_net
from torchadder.quantize.graph import FloatGraph, QuantizationError
from torchadder.quantize.lowering import LayerRange, lower
from torchadder.quantize.net import IntegerNet
from torchadder.quantize.program import Program, weight_bytes
from torchadder.quantize.ranges import collect, watch
from torchadder.quantize.report import LayerReport, QuantizationReport, decibels
from torchadder.quantize.tracing import trace


class Calibration:
    """A net as steps, and histograms of its values over some images; the net stays as it is.

    One calibration serves integer nets of any width and scheme.

    Args:
        model: The net, or a model around one (`torchadder.quantize.core`), in evaluation mode.
        batches: Images as the model takes them: tensors, or tuples or lists that begin with one;
            for a detector images (3, H, W), or lists of them, of any sizes.
        mean: Of each channel, what the images were normalised with, for exports; pixels in 0..1.
        std: Likewise.

    Raises:
        QuantizationError: If the net does something that integers cannot do, or there are no
            images, or they make something that is not finite.
        TypeError: If the batches are no tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if integer_net(model) is not None:
            raise QuantizationError("the net computes with integers already")
        if hasattr(model, "_orig_mod"):
            raise QuantizationError("the net is compiled: quantise it before torch.compile")
        if model.training:
            raise QuantizationError("the net is in training mode: call model.eval() first")
        core = model
        if isinstance(model, HasCore):
            core = model.integer_core()
            core.training = False  # not eval(), which would reach into the model
            batches = (model.core_images(batch) for batch in batches)
        self.batches = _images(batches, model)
        self.graph = trace(core, self.batches[0])
        _check_sizes(self.batches, self.graph)
        self.histograms = collect(self.graph, self.batches, sharing.find(self.graph).alike)
        self.mean = None if mean is None else tuple(float(number) for number in mean)
        self.std = None if std is None else tuple(float(number) for number in std)

    def lower(self, config: Int8Config) -> tuple[Program, list[LayerRange]]:
        """The integer program of the net, and the range of each layer.

        Raises:
            QuantizationError: If a layer cannot be done in integers, or a range is zero.
        """
        return lower(self.graph, self.histograms, config, mean=self.mean, std=self.std)

    def report(self, program: Program, ranges: list[LayerRange]) -> QuantizationReport:
        """Compares an integer program with the net, value by value, over the images."""
        signal, noise = self._compare(program)
        rows = [
            LayerReport(
                layer=one.layer,
                kind=one.kind,
                num_filters=len(one.filters),
                bits=one.bits,
                low=one.grid.low,
                high=one.grid.high,
                scale=one.grid.scale,
                zero_point=one.grid.zero_point,
                clipped=one.clipped,
                clipped_weights=one.clipped_weights,
                sqnr_db=_decibels(one.outputs, signal, noise),
            )
            for one in ranges
        ]
        return QuantizationReport(
            layers=rows,
            num_images=sum(map(len, self.batches)),
            sqnr_db=_decibels([output.name for output in program.outputs], signal, noise),
            float_layers=program.float_layers,
            weight_bytes=weight_bytes(program.steps),
            float_weight_bytes=self.float_weight_bytes,
        )

    @property
    def float_weight_bytes(self) -> int:
        """Bytes of all filters in float32, those of a layer that is used several times once."""
        weights = {
            step.parameter or step.output: step.weight.numel()
            for step in self.graph.steps
            if step.weight is not None
        }
        return 4 * sum(weights.values())

    def _compare(self, program: Program) -> tuple[dict[str, float], dict[str, float]]:
        """Sums of the squares of every value, and of its error."""
        net = IntegerNet(program)
        ends = zip(program.outputs, self.graph.outputs, strict=True)
        float_names = {output.name: name for output, name in ends}
        signal: dict[str, float] = {}
        noise: dict[str, float] = {}
        for images in self.batches:
            floats: dict[str, Tensor] = {}

            def keep(value: str, numbers: Tensor, floats: dict[str, Tensor] = floats) -> None:
                floats[value] = numbers.clone()  # a later step may add to it in place

            watch(self.graph, [images], keep)
            for name, integers in net.each_value(images.cpu()):
                wanted = floats.get(float_names.get(name, name))
                if wanted is None:
                    continue
                value = program.values[name]
                real = integers.float()
                if not integers.is_floating_point():
                    real = (real - value.zero_point) * value.scale
                wanted = wanted.cpu().reshape(real.shape)
                signal[name] = signal.get(name, 0.0) + float(wanted.square().sum())
                noise[name] = noise.get(name, 0.0) + float((wanted - real).square().sum())
        return signal, noise


def device_of(model: nn.Module) -> torch.device:
    """Where a model's tensors are."""
    anything = next(iter([*model.parameters(), *model.buffers()]), None)
    return anything.device if anything is not None else torch.device("cpu")


def _images(batches: Iterable[Any], model: nn.Module) -> list[Tensor]:
    """The images of all batches, on the model's device."""
    device, images = device_of(model), []
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
    if not all(bool(torch.isfinite(batch).all()) for batch in images):
        raise QuantizationError("calibration: the images hold NaN or infinity")
    return images


def _check_sizes(batches: Sequence[Tensor], graph: FloatGraph) -> None:
    shapes = sorted({tuple(batch.shape[1:]) for batch in batches})
    if len(shapes) > 1 and not graph.takes_any_size:
        raise QuantizationError(f"calibration: images of unequal sizes: {shapes}")


def _decibels(
    values: Iterable[str], signal: Mapping[str, float], noise: Mapping[str, float]
) -> float:
    """Of several values together."""
    values = list(values)
    return decibels(sum(signal[value] for value in values), sum(noise[value] for value in values))
