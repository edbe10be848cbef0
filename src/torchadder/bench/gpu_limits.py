"""What a GPU can do: float32 lanes by chip, the operator's limit from them, precisions of products.

An element of the forward takes two instructions (subtract, add the absolute value), one of the
input gradient likewise (saturating add, multiply-add), and a lane starts one instruction a cycle.
"""

from __future__ import annotations

INSTRUCTIONS_PER_ELEMENT = 2

NVIDIA_LANES = {
    (7, 0): 64,
    (7, 2): 64,
    (7, 5): 64,
    (8, 0): 64,
    (8, 6): 128,
    (8, 7): 128,
    (8, 9): 128,
    (9, 0): 128,
    (10, 0): 128,
    (12, 0): 128,
}
"""Results of float32 additions a cycle and multiprocessor, by compute capability: CUDA C++
Programming Guide, table "Throughput of Native Arithmetic Instructions"
(https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions)."""

AMD_LANES = {"gfx908": 64, "gfx90a": 64, "gfx942": 64, "gfx950": 64}
"""Likewise a cycle and compute unit of the CDNA chips: four SIMDs of 16 lanes
(https://rocm.docs.amd.com/en/latest/reference/gpu-arch-specs.html). Their packed additions, two a
lane, have no absolute value of an operand, so they do not count here."""


def lanes_per_unit(capability: tuple[int, int] | None, architecture: str | None) -> int | None:
    """Float32 lanes of a multiprocessor or compute unit; None for a chip that is not listed.

    Args:
        capability: Compute capability of an NVIDIA chip, else None.
        architecture: Name such as "gfx942:sramecc+:xnack-" of an AMD chip, else None.
    """
    if architecture is not None:
        return AMD_LANES.get(architecture.split(":")[0])
    return None if capability is None else NVIDIA_LANES.get(capability)


def tensor_core_precisions(capability: tuple[int, int] | None) -> tuple[str, ...]:
    """What convolutions of float32 may be compared with: "tf32", "bf16" or nothing.

    Args:
        capability: Compute capability of an NVIDIA chip, None for an AMD chip: MIOpen has no TF32.
    """
    if capability is None:
        return ("bf16",)
    return ("tf32", "bf16") if capability >= (8, 0) else ()


def pairs_per_second(lanes: int | None, clock_hz: float | None) -> float | None:
    """The limit ``lanes * clock / 2`` in pairs |x - w| a second; None where a factor is unknown."""
    if lanes is None or clock_hz is None:
        return None
    return lanes * clock_hz / INSTRUCTIONS_PER_ELEMENT
