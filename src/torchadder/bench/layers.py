"""One layer: adder2d against conv2d and the unfold-and-broadcast version, part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from torchadder import functional as AF
from torchadder.bench.baseline import unfold_adder2d
from torchadder.bench.shapes import Shape
from torchadder.bench.timing import BASELINE_TURNS, median_ms
from torchadder.ops.cpu import peak_pairs_per_second

PARTS = ("forward", "input gradient", "weight gradient", "step")


@dataclass(frozen=True)
class LayerResult:
    """Times of one part of one layer.

    Attributes:
        shape: Name of the layer.
        part: "forward", "input gradient", "weight gradient" or "step" (forward and both).
        adder_ms: Median of ours.
        conv_ms: Median of torch's conv2d.
        unfold_ms: Median of the unfold-and-broadcast version, None where it was not measured.
        ratio_to_conv: adder_ms / conv_ms.
        speedup_over_unfold: unfold_ms / adder_ms.
        elements_per_second: Pairs |x - w| a second; a step counts three times the forward's.
        share_of_peak: That over one thread's rate in registers at one maximum and one addition a
            pair times the number of threads; None for parts that are not made of those.
    """

    shape: str
    part: str
    adder_ms: float
    conv_ms: float
    unfold_ms: float | None
    ratio_to_conv: float
    speedup_over_unfold: float | None
    elements_per_second: float
    share_of_peak: float | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def _functions(shape: Shape) -> dict[str, dict[str, Callable[[], object]]]:
    x = torch.randn(shape.input_shape, requires_grad=True)
    w = torch.randn(shape.weight_shape, requires_grad=True)
    stride, padding = shape.stride, shape.padding
    g = torch.randn(shape.output_shape)
    operators: dict[str, Callable[..., torch.Tensor]] = {
        "adder": lambda x, w: AF.adder2d(x, w, None, stride, padding),
        "conv": lambda x, w: F.conv2d(x, w, None, stride, padding),
        "unfold": lambda x, w: unfold_adder2d(x, w, stride, padding),
    }

    def forward(operator: Callable[..., torch.Tensor]) -> object:
        with torch.no_grad():
            return operator(x, w)

    def gradient(graph: torch.Tensor, target: torch.Tensor) -> object:
        return torch.autograd.grad(graph, target, g, retain_graph=True)

    def step(operator: Callable[..., torch.Tensor]) -> object:
        return torch.autograd.grad(operator(x, w), (x, w), g)

    functions: dict[str, dict[str, Callable[[], object]]] = {part: {} for part in PARTS}
    for name, operator in operators.items():
        for_input, for_weight = operator(x, w.detach()), operator(x.detach(), w)
        functions["forward"][name] = lambda f=operator: forward(f)
        functions["input gradient"][name] = lambda y=for_input: gradient(y, x)
        functions["weight gradient"][name] = lambda y=for_weight: gradient(y, w)
        functions["step"][name] = lambda f=operator: step(f)
    return functions


def measure_layer(
    shape: Shape, seconds: float = 0.5, baseline: bool = True, peak: float | None = None
) -> list[LayerResult]:
    """Time the four parts of one layer.

    Args:
        shape: The layer.
        seconds: Time for each side of each part.
        baseline: Whether to time the unfold-and-broadcast version too (slow).
        peak: Pairs a second of all threads, see :func:`measure_peak`.

    Returns:
        One result a part.
    """
    results = []
    for part, sides in _functions(shape).items():
        fast = {name: sides[name] for name in ("adder", "conv")}
        times = median_ms(fast, seconds)
        unfold = None
        if baseline:
            slow = median_ms({"unfold": sides["unfold"]}, 0.0, BASELINE_TURNS, warm_up=0)
            unfold = slow["unfold"]
        taps = shape.num_taps * (3 if part == "step" else 1)
        rate = taps / (times["adder"] / 1e3)
        results.append(
            LayerResult(
                shape=shape.name,
                part=part,
                adder_ms=times["adder"],
                conv_ms=times["conv"],
                unfold_ms=unfold,
                ratio_to_conv=times["adder"] / times["conv"],
                speedup_over_unfold=None if unfold is None else unfold / times["adder"],
                elements_per_second=rate,
                share_of_peak=rate / peak if peak and part == "forward" else None,
            )
        )
    return results


def measure_peak() -> dict[str, float]:
    """What one thread does in registers times the number of threads, in pairs a second.

    Returns:
        "max_add": a maximum and an addition a pair, the forward's limit; "multiply_add": a
        multiply-add a pair, the convolution's.
    """
    threads = torch.get_num_threads()
    return {
        kind: threads * max(peak_pairs_per_second(kind, 0.2) for _ in range(3))
        for kind in ("max_add", "multiply_add")
    }
