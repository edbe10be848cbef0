"""What calibration images tell about a net, from which integer nets of any kind are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.quantize.config import Int8Config
from torchadder.quantize.graph import QuantizationError, Step, trace
from torchadder.quantize.lowering import LayerRange, lower
from torchadder.quantize.net import IntegerNet
from torchadder.quantize.program import Program, weight_bytes
from torchadder.quantize.ranges import collect, watch
from torchadder.quantize.report import LayerReport, QuantizationReport, decibels


class Calibration:
    """A net as steps, and histograms of its values over some images; the net stays as it is.

    One calibration serves integer nets of any width and scheme.

    Args:
        model: The net, in evaluation mode.
        batches: Images as the model takes them: tensors, or tuples or lists that begin with one.
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
        if isinstance(model, IntegerNet):
            raise QuantizationError("the net computes with integers already")
        if hasattr(model, "_orig_mod"):
            raise QuantizationError("the net is compiled: quantise it before torch.compile")
        self.batches = _images(batches, model)
        self.graph = trace(model, self.batches[0])
        self.histograms = collect(self.graph, self.batches)
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)

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
                sqnr_db=decibels(signal[one.output], noise[one.output]),
            )
            for one in ranges
        ]
        result = program.output.name
        return QuantizationReport(
            layers=rows,
            num_images=sum(map(len, self.batches)),
            sqnr_db=decibels(signal[result], noise[result]),
            weight_bytes=weight_bytes(program.steps),
            float_weight_bytes=sum(_float_bytes(step) for step in self.graph.steps),
        )

    def _compare(self, program: Program) -> tuple[dict[str, float], dict[str, float]]:
        """Sums of the squares of every value, and of its error."""
        net = IntegerNet(program)
        signal: dict[str, float] = {}
        noise: dict[str, float] = {}
        for images in self.batches:
            floats: dict[str, Tensor] = {}

            def keep(value: str, numbers: Tensor, floats: dict[str, Tensor] = floats) -> None:
                floats[value] = numbers.clone()  # a later step may add to it in place

            watch(self.graph, [images], keep)
            for name, integers in net.each_value(images.cpu()):
                wanted = floats.get(self.graph.output if name == program.output.name else name)
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
    shapes = {tuple(batch.shape[1:]) for batch in images}
    if len(shapes) > 1:
        raise QuantizationError(f"calibration: images of unequal sizes: {sorted(shapes)}")
    return images


def _float_bytes(step: Step) -> int:
    return 0 if step.weight is None else 4 * step.weight.numel()
