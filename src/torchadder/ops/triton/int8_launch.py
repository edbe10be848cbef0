"""Calls the kernel of bytes on tensors; :mod:`launch` does so for floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from torchadder.ops.geometry import Geometry
from torchadder.ops.int8 import packing
from torchadder.ops.triton import launch, tiles, tuning
from torchadder.ops.triton.int8 import adder2d_int8 as adder2d_int8_kernel

Shape = tuple[int, int, int, int]

_STEP = 8
_LONGEST_STRETCH = 4
"""Steps that are unrolled, of eight terms each."""


class Requantisation(NamedTuple):
    """How sums become bytes: see :func:`torchadder.ops.int8.reference.requantise`."""

    multiplier: Tensor
    offset: Tensor
    shift: int
    low: int
    high: int
    residual: Tensor | None
    residual_multiplier: int


def adder2d_int8(
    input: Tensor,
    packed: Tensor,
    kernel: Shape,
    zero_point: int,
    geometry: Geometry,
    size: Shape,
    requantisation: Sequence[Any] | None,
) -> Tensor:
    """Sums, int32, or bytes; ``size`` is the checked shape of the result.

    ``requantisation`` holds the arguments of :func:`torchadder.ops.int8.reference.requantise`
    behind the sums, or is None for sums.
    """
    how = None if requantisation is None else Requantisation(*requantisation)
    output = torch.empty(
        size,
        dtype=torch.int32 if how is None else torch.uint8,
        device=input.device,
        memory_format=torch.channels_last,
    )
    if output.numel() == 0:
        return output
    N, O, P, Q = size
    depth, R, S = kernel[1:]
    groups = geometry.groups
    x, packed, depth = _in_steps(input, packed, kernel, geometry)
    nowhere = torch.zeros(depth, dtype=torch.uint8, device=input.device)
    nowhere[: kernel[1]] = zero_point
    residual = None if how is None else how.residual
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    num_rows, filters = N * P * Q, O // groups
    # The model of the tiles counts a float's instructions, which are in proportion to a byte's.
    problem = (num_rows, filters, depth * R * S, groups)
    num_steps = depth // _STEP

    def run(tile: tiles.Tile) -> Tensor:
        programs = -(-num_rows // tile.block_m) * -(-filters // tile.block_n)
        adder2d_int8_kernel[launch._grid(programs, groups, f"{groups} groups")](
            x, packed, nowhere,
            output if how is None else how.multiplier.contiguous(),
            output if how is None else how.offset.contiguous(),
            output if residual is None else residual,
            output,
            num_rows, *x.shape[2:], P, Q, depth * groups, O,
            *geometry.stride, *geometry.padding, *geometry.dilation,
            *((0, 0, 0, 0) if how is None else
              (how.shift, how.low, how.high, how.residual_multiplier)),
            C=depth, O=filters, R=R, S=S, REQUANTISE=how is not None,
            HAS_RESIDUAL=residual is not None,
            WIDE=launch._is_wide(num_rows, N * x.shape[2] * x.shape[3]),
            UNROLL=min(_LONGEST_STRETCH, tiles.stretch(num_steps)),
            PTX=input.device.type == "cuda" and torch.version.hip is None,
            ROWS=tile.rows, COLUMNS=tile.columns, THREADS_M=tile.threads_m,
            THREADS_N=tile.threads_n, num_warps=launch._num_warps(tile, input.device),
        )  # fmt: skip
        return output

    with launch._on(input):
        model = tiles.choose(*problem, launch._multiprocessors(input.device))
        return tuning.run_best("int8 forward", problem, model, tiles.TILES, input, run)


def _in_steps(
    input: Tensor, packed: Tensor, kernel: Shape, geometry: Geometry
) -> tuple[Tensor, Tensor, int]:
    """Images and filters whose groups have whole steps of channels, and their number.

    Zeros fill up both: they are at no distance. Both start at an address fit for steps.
    """
    depth = kernel[1]
    groups = geometry.groups
    x = launch._channels_last(input)
    if depth % _STEP:
        weight = packing.unpack(packed, kernel, geometry.dilation[1], groups)
        more = -depth % _STEP
        packed = packing.pack(F.pad(weight, (0, 0, 0, 0, 0, more)), geometry.dilation[1], groups)
        rows = F.pad(x.permute(0, 2, 3, 1).unflatten(3, (groups, depth)), (0, more))
        depth += more
        x = rows.flatten(3).permute(0, 3, 1, 2)
    if x.data_ptr() % _STEP:
        x = x.clone(memory_format=torch.preserve_format)
    packed = packed.contiguous()
    if packed.data_ptr() % _STEP:
        packed = packed.clone()
    return x, packed, depth
