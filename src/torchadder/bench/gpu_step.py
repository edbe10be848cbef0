"""A whole training step on a GPU: an adder net, its CNN twin, and both at once under PKKD.

Forward, backward, AdderNet's adaptive rate and SGD, on one batch that stays on the device: once
launched call by call, once as the replay of a graph of all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadder import models
from torchadder.bench.gpu_rig import Rig
from torchadder.bench.precision import default_algorithms, strict_float32
from torchadder.bench.shapes import GPU_BATCH
from torchadder.bench.step import IMAGE, LAYERS
from torchadder.bench.timing import BASELINE_TURNS, Call, median_readings
from torchadder.distill import PKKD
from torchadder.nn import AdderModule
from torchadder.optim import AdaptiveLR

SIDES = ("adder", "conv", "pkkd")
RATE = 1e-3
"""Small, so that the many steps of a measurement do not run away; times do not depend on it."""


@dataclass(frozen=True)
class GpuStepResult:
    """One training step of a model: the adder net, its CNN twin and both under PKKD.

    Attributes:
        model: Name of the model.
        batch: Images a step.
        eager_ms: Medians by side, "adder", "conv" (float32 without TF32) and "pkkd", with every
            kernel launched from Python.
        graph_ms: Likewise as the replay of a CUDA graph.
        unfold_ms: With the unfold-and-broadcast operator, launched from Python; None where not
            measured.
        ratio_to_conv: The adder net's time over its twin's, for "eager" and "graph".
        speedup_over_unfold: unfold_ms / eager_ms of the adder net.
        peak_bytes: Peak of torch's allocator in a step, parameters and batch included, by side.
        memory_ratio: The adder net's peak over its twin's.
    """

    model: str
    batch: int
    eager_ms: dict[str, float]
    graph_ms: dict[str, float]
    unfold_ms: float | None
    ratio_to_conv: dict[str, float]
    speedup_over_unfold: float | None
    peak_bytes: dict[str, int | None]
    memory_ratio: float | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def gpu_training_step(side: str, model: str, batch: int, device: torch.device) -> Call:
    """A function that does one step on random images.

    Args:
        side: "adder", "conv", "unfold", or "pkkd" for an adder net and the CNN that teaches it.
        model: A CIFAR model of :mod:`torchadder.models`.
        batch: Images a step.
        device: Where net and images are.
    """
    images = torch.randn(batch, *IMAGE, device=device)
    labels = torch.randint(10, (batch,), device=device)
    if side == "pkkd":
        return _pkkd_step(model, images, labels)
    net = models.build(model, conv=LAYERS[side]).to(device)
    return _step(net, net.parameters(), lambda: F.cross_entropy(net(images), labels))


def _pkkd_step(model: str, images: Tensor, labels: Tensor) -> Call:
    nets = (models.build(model, conv=LAYERS[side]) for side in ("adder", "conv"))
    pkkd = PKKD(*nets).to(images.device)

    def loss() -> Tensor:
        output = pkkd(images, labels)
        assert output.teacher_loss is not None
        return output.loss + output.teacher_loss

    return _step(pkkd, pkkd.parameters(), loss)


def _step(net: nn.Module, parameters: Any, loss: Callable[[], Tensor]) -> Call:
    optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=5e-4)
    if any(isinstance(layer, AdderModule) for layer in net.modules()):
        AdaptiveLR(optimizer, net)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def measure_gpu_step(
    rig: Rig,
    model: str = "resnet20",
    batch: int = GPU_BATCH,
    seconds: float = 2.0,
    baseline: bool = True,
) -> GpuStepResult:
    """Time and weigh one training step.

    Args:
        rig: The device and its timer.
        model: A CIFAR model of :mod:`torchadder.models`.
        batch: Images a step.
        seconds: Time for each side, with and without a graph.
        baseline: Whether to time the unfold-and-broadcast operator too.
    """

    def build(side: str) -> Call:
        return gpu_training_step(side, model, batch, rig.device)

    def timed(calls: dict[str, Call]) -> dict[str, float]:
        readings = median_readings(calls, seconds, rig.timer)
        return {side: reading.ms for side, reading in readings.items()}

    with strict_float32():
        with default_algorithms():
            peaks = {side: rig.timer.peak_bytes(lambda side=side: build(side)) for side in SIDES}
        unfold_ms = _unfold_ms(build("unfold"), rig) if baseline else None
        eager_ms = timed({side: build(side) for side in SIDES})
        graph_ms = timed({side: rig.timer.repeated([build(side)]) for side in SIDES})
    adder_peak, conv_peak = peaks["adder"], peaks["conv"]
    return GpuStepResult(
        model=model,
        batch=batch,
        eager_ms=eager_ms,
        graph_ms=graph_ms,
        unfold_ms=unfold_ms,
        ratio_to_conv={
            "eager": eager_ms["adder"] / eager_ms["conv"],
            "graph": graph_ms["adder"] / graph_ms["conv"],
        },
        speedup_over_unfold=None if unfold_ms is None else unfold_ms / eager_ms["adder"],
        peak_bytes=peaks,
        memory_ratio=adder_peak / conv_peak if adder_peak and conv_peak else None,
    )


def _unfold_ms(step: Call, rig: Rig) -> float | None:
    """Median of the slow step; None where it does not fit into memory."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return median_readings({"": step}, 0.0, rig.timer, BASELINE_TURNS, warm_up=0)[""].ms
    return None
