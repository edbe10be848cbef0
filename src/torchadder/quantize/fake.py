"""Layers that compute in float with the numbers that integers could hold, for fine-tuning.

What a layer reads and its filters are rounded to the layer's grid; gradients pass as if they were
not (straight through), but not for inputs that the range cuts off. Filters of adder layers that are
clamped keep their remainder, as the integer net has it in the bias. Residuals, pooling and batch
norms stay in float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder import functional as AF
from torchadder.nn import Adder2d
from torchadder.quantize.config import Int8Config
from torchadder.quantize.graph import QuantizationError
from torchadder.quantize.grids import Grid
from torchadder.quantize.lowering import LayerRange, conv_filters


class FakeQuantization:
    """Makes the layers of a net compute with rounded numbers, until it is removed.

    Parameters, buffers and their names stay as they are.

    Args:
        model: The net.
        ranges: The layers' ranges, of `Calibration.lower`.
        config: What they were found with.

    Raises:
        QuantizationError: If a layer is of a class whose forward is not known here, is used in
            ways that are different layers in integers, or is no module.
    """

    def __init__(self, model: nn.Module, ranges: Sequence[LayerRange], config: Int8Config) -> None:
        parts: dict[nn.Module, list[LayerRange]] = {}
        for one in ranges:
            parts.setdefault(_layer(model, one.path), []).append(one)
        for groups in parts.values():
            if len({one.outputs for one in groups}) > 1:
                names = ", ".join(one.layer for one in groups)
                raise QuantizationError(
                    f"{groups[0].path}: used in ways that are different layers in integers "
                    f"({names}), which cannot be fine-tuned"
                )
        self.layers = list(parts)
        for layer, groups in parts.items():
            layer.forward = _forward(layer, groups, config)

    def remove(self) -> None:
        """Gives the layers their own forward back."""
        for layer in self.layers:
            vars(layer).pop("forward", None)

    def __enter__(self) -> FakeQuantization:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def _layer(model: nn.Module, path: str) -> nn.Module:
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        raise QuantizationError(
            f"{path}: an operation that is no layer cannot be fine-tuned"
        ) from None
    # A class of its own, or one that parametrizations have made, may inherit a forward.
    if type(layer).forward not in (Adder2d.forward, nn.Conv2d.forward, nn.Linear.forward):
        raise QuantizationError(f"{path}: a {type(layer).__name__} cannot be fine-tuned")
    return layer


def fake_input(x: Tensor, grid: Grid) -> Tensor:
    """Nearest numbers of the grid; the gradient is 1 inside the range and 0 outside."""
    inside = x.clamp(grid.low, grid.high)
    steps = (inside / grid.scale).round() * grid.scale
    return inside + (steps - inside).detach()


def fake_filters(weight: Tensor, grid: Grid, *, clamp: bool) -> Tensor:
    """Nearest numbers of the grid, plus what is beyond it if filters are clamped; gradient 1."""
    inside = weight.clamp(grid.low, grid.high)
    rounded = (inside / grid.scale).round() * grid.scale
    return weight + (rounded - (inside if clamp else weight)).detach()


def _forward(
    layer: nn.Module, parts: list[LayerRange], config: Int8Config
) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, Adder2d):
        order = torch.cat([part.filters for part in parts]).argsort()

        def adder(x: Tensor) -> Tensor:
            results = []
            for part in parts:
                weight, bias = layer.weight, layer.bias
                if len(parts) > 1:
                    filters = part.filters.to(weight.device)
                    weight = weight[filters]
                    bias = None if bias is None else bias[filters]
                results.append(
                    AF.adder2d(
                        fake_input(x, part.grid),
                        fake_filters(weight, part.grid, clamp=config.clamp),
                        bias, layer.stride, layer.padding, layer.dilation, layer.groups,
                        grad=layer.grad,
                    )
                )  # fmt: skip
            if len(results) == 1:
                return results[0]
            return torch.cat(results, 1).index_select(1, order.to(x.device))

        return adder
    (part,) = parts
    assert isinstance(layer, nn.Conv2d | nn.Linear)

    def convolution(x: Tensor) -> Tensor:
        weight = layer.weight
        wide = weight if weight.dim() == 4 else weight[:, :, None, None]
        integers, steps = conv_filters(wide.detach().double().cpu(), part.bits, config)
        rounded = (integers.double() * steps[:, None, None, None]).to(weight)
        weight = weight + (rounded.view_as(weight) - weight).detach()
        x = fake_input(x, part.grid)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return layer._conv_forward(x, weight, layer.bias)

    return convolution
