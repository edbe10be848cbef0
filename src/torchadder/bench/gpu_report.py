"""The whole benchmark of a GPU, as the JSON-able dict that is written to results/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchadder.bench.gpu_layers import measure_gpu_layer
from torchadder.bench.gpu_limits import pairs_per_second
from torchadder.bench.gpu_rig import Rig
from torchadder.bench.gpu_step import measure_gpu_step
from torchadder.bench.shapes import Shape


def measure_gpu(
    shapes: Sequence[Shape],
    rig: Rig,
    *,
    seconds: float = 0.5,
    baseline: bool = True,
    step: bool = True,
    announce: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure the limit, the layers and a training step of ResNet-20.

    Args:
        shapes: Layers to time.
        rig: The device and its timer.
        seconds: Time for each side of each measurement.
        baseline: Whether to time the unfold-and-broadcast version, too.
        step: Whether to time a training step, too.
        announce: Told what is measured next, and what had to be left out.

    Returns:
        Keys "device" ("cuda"), "shapes" (the names asked for), "limit", "layers" and "step"; a
        layer that does not fit into the device's memory has no results.
    """
    report: dict[str, Any] = {"device": "cuda", "shapes": [shape.name for shape in shapes]}
    announce("timing the limit in registers")
    report["limit"] = measure_limit(rig)
    report["layers"] = []
    for shape in shapes:
        announce(f"timing {shape.name}")
        try:
            results = measure_gpu_layer(shape, rig, seconds, baseline)
        except torch.OutOfMemoryError:
            announce(f"left out {shape.name}: it does not fit into the device's memory")
            continue
        report["layers"] += [result.to_dict() for result in results]
    report["step"] = None
    if step:
        announce("timing a training step of ResNet-20")
        whole = measure_gpu_step(rig, seconds=4 * seconds, baseline=baseline)
        report["step"] = whole.to_dict()
    return report


def measure_limit(rig: Rig) -> dict[str, Any]:
    """What the chip can do, from its data sheet and as measured in registers.

    Returns:
        "lanes": float32 lanes; "clock_hz": clock during the measurement; "pairs_per_second": lanes
        * clock / 2; "measured_pairs_per_second": of the kernel in `torchadder.bench.gpu_peak`. Each
        None where it is not known.
    """
    measured, clock_hz = None, None
    if rig.device.type == "cuda" and _has_triton():
        from torchadder.bench.gpu_peak import measure_gpu_peak

        measured, reading = measure_gpu_peak(rig.device, rig.timer, rig.units)
        clock_hz = reading.clock_hz
    return {
        "lanes": rig.lanes,
        "clock_hz": clock_hz,
        "pairs_per_second": pairs_per_second(rig.lanes, clock_hz),
        "measured_pairs_per_second": measured,
    }


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
