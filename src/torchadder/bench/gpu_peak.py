"""Pairs |x - w| a second that a GPU computes in registers, from a Triton kernel without memory.

The limit ``lanes * clock / 2`` is arithmetic on a data sheet; this is what the chip does of it.
Importing this module imports Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from torchadder.bench.timing import Reading, Timer

BLOCK = 1024
WARPS = 4
UNROLL = 16
PROGRAMS_PER_UNIT = 64
ITERATIONS = 400
TURNS = 7
OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}
"""No fused multiply-add: two additions a pair are what is measured."""


@triton.jit
def chains(values, results, iterations, UNROLL: tl.constexpr, BLOCK: tl.constexpr):
    """Two pairs a step and element: ``a <- |b - w| - a``, ``b <- |a - w| - b``.

    Every step needs the one before, so that nothing can be left out, and the sequence stays bounded
    without repeating itself (a gingerbread-man map), so that the operands are those of real work.
    """
    lane = tl.arange(0, BLOCK)
    a = tl.load(values + lane)
    b = tl.load(values + BLOCK + lane)
    w = tl.load(values + 2 * BLOCK + lane)
    for _ in range(iterations):
        for _ in tl.static_range(UNROLL):  # pyright: ignore[reportGeneralTypeIssues]
            a = tl.abs(b - w) - a
            b = tl.abs(a - w) - b
    tl.store(results + tl.program_id(0) * BLOCK + lane, a + b)


def run_chains(values: torch.Tensor, results: torch.Tensor, iterations: int) -> torch.Tensor:
    """Start the kernel.

    Args:
        values: 3 * BLOCK numbers, what the chains start from.
        results: (programs, BLOCK), overwritten and returned; all rows come out the same.
        iterations: Times UNROLL steps.
    """
    launch: Any = chains[(len(results),)]
    launch(values, results, iterations, UNROLL=UNROLL, BLOCK=BLOCK, **OPTIONS)
    return results


def num_pairs(programs: int, iterations: int) -> int:
    """Pairs that `run_chains` computes."""
    return programs * BLOCK * iterations * UNROLL * 2


def measure_gpu_peak(device: torch.device, timer: Timer, units: int) -> tuple[float, Reading]:
    """Pairs a second, and the reading of the fastest of TURNS runs.

    Args:
        device: The GPU.
        timer: Its timer.
        units: Its multiprocessors.
    """
    programs = units * PROGRAMS_PER_UNIT
    values = torch.rand(3 * BLOCK, device=device)
    results = torch.empty(programs, BLOCK, device=device)
    call = timer.repeated([lambda: run_chains(values, results, ITERATIONS)])
    best = min((timer.read(call) for _ in range(TURNS)), key=lambda reading: reading.ms)
    return num_pairs(programs, ITERATIONS) / (best.ms / 1e3), best
