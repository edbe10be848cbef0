"""A whole training step of ResNet-20, and the memory that it takes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import torchadder.nn
from torchadder import models
from torchadder.bench.baseline import UnfoldAdder2d
from torchadder.bench.timing import BASELINE_TURNS, median_ms

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "adder": torchadder.nn.Adder2d,
    "conv": nn.Conv2d,
    "unfold": UnfoldAdder2d,
}
IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class StepResult:
    """One training step (forward, backward, SGD) of a model with each layer.

    Attributes:
        model: Name of the model.
        batch: Images a step.
        adder_ms: Median of ours.
        conv_ms: Median of the CNN of the same shape.
        unfold_ms: Time with the unfold-and-broadcast operator, None where not measured.
        ratio_to_conv: adder_ms / conv_ms.
        speedup_over_unfold: unfold_ms / adder_ms.
        adder_peak_bytes: Growth of the resident set over two steps, in a process of its own.
        conv_peak_bytes: Likewise for the CNN.
        memory_ratio: adder_peak_bytes / conv_peak_bytes.
    """

    model: str
    batch: int
    adder_ms: float
    conv_ms: float
    unfold_ms: float | None
    ratio_to_conv: float
    speedup_over_unfold: float | None
    adder_peak_bytes: int | None
    conv_peak_bytes: int | None
    memory_ratio: float | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def training_step(layer: str, model: str, batch: int) -> Callable[[], object]:
    """A function that does one step on random images."""
    net = models.build(model, conv=LAYERS[layer])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(batch, *IMAGE), torch.randint(10, (batch,))

    def step() -> object:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        return optimizer.step()

    return step


def peak_resident_bytes() -> int | None:
    """Highest resident set of this process so far; None where the system does not tell.

    Not ``getrusage``: on Linux a process starts with its parent's peak there.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = status.read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _growth_over_two_steps(layer: str, model: str, batch: int) -> int | None:
    training_step(layer, model, 2)()  # loads what is loaded once
    step = training_step(layer, model, batch)
    before = peak_resident_bytes()
    step()
    step()
    after = peak_resident_bytes()
    return None if before is None or after is None else after - before


def peak_growth_bytes(layer: str, model: str, batch: int) -> int | None:
    """How far two steps raise the peak of a fresh process's resident set."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=spawn, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    ) as pool:
        return pool.submit(_growth_over_two_steps, layer, model, batch).result()


def measure_step(
    model: str = "resnet20", batch: int = 128, seconds: float = 5.0, baseline: bool = True
) -> StepResult:
    """Time and weigh one training step.

    Args:
        model: A CIFAR model of :mod:`torchadder.models`.
        batch: Images a step.
        seconds: Time for each side.
        baseline: Whether to time the unfold-and-broadcast operator too (minutes).
    """
    times = median_ms(
        {name: training_step(name, model, batch) for name in ("adder", "conv")}, seconds
    )
    unfold = None
    if baseline:
        slow = {"unfold": training_step("unfold", model, batch)}
        unfold = median_ms(slow, 0.0, BASELINE_TURNS, warm_up=0)["unfold"]
    adder_peak, conv_peak = (peak_growth_bytes(name, model, batch) for name in ("adder", "conv"))
    return StepResult(
        model=model,
        batch=batch,
        adder_ms=times["adder"],
        conv_ms=times["conv"],
        unfold_ms=unfold,
        ratio_to_conv=times["adder"] / times["conv"],
        speedup_over_unfold=None if unfold is None else unfold / times["adder"],
        adder_peak_bytes=adder_peak,
        conv_peak_bytes=conv_peak,
        memory_ratio=adder_peak / conv_peak if adder_peak and conv_peak else None,
    )
