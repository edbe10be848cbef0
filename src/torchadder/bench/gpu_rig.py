"""On what and with what a GPU benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchadder.bench.gpu_clock import clock_reader
from torchadder.bench.gpu_limits import lanes_per_unit, tensor_core_precisions
from torchadder.bench.gpu_timer import CudaTimer
from torchadder.bench.timing import Timer


@dataclass(frozen=True)
class Rig:
    """A device, its timer and what is known of the chip.

    Attributes:
        device: Where tensors live.
        timer: Measures calls there.
        units: Multiprocessors or compute units.
        lanes: Float32 lanes; None for an unknown chip.
        cache_bytes: Size of the last cache, which the inputs of one round must exceed.
        precisions: What conv2d is timed in beside strict float32, "tf32" and "bf16".
    """

    device: torch.device
    timer: Timer
    units: int
    lanes: int | None
    cache_bytes: int
    precisions: tuple[str, ...]


def current_gpu() -> Rig:
    """The current CUDA or ROCm device.

    Raises:
        ValueError: torch finds none.
    """
    if not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no CUDA or ROCm device on this machine")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    capability, architecture = (properties.major, properties.minor), None
    if torch.version.hip:
        capability, architecture = None, properties.gcnArchName
    lanes = lanes_per_unit(capability, architecture)
    units = properties.multi_processor_count
    return Rig(
        device=device,
        timer=CudaTimer(device, clock_reader(device)),
        units=units,
        lanes=None if lanes is None else lanes * units,
        cache_bytes=properties.L2_cache_size,
        precisions=tensor_core_precisions(capability),
    )
