"""Weights in the order in which the kernels read them.

Packed weights have shape (groups, taps, depth / V, columns, V): a thread reads V = 2 neighbouring
terms of its column at once (V = 1 where the depth is odd), neighbouring threads neighbouring
columns. Columns are padded to whole tiles, so that no load needs a mask. Behind the weights lie
``depth`` zeros, which the kernels read for taps outside the image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 64


class Packed(NamedTuple):
    """Packed weights.

    Attributes:
        values: float32, the packed weights and behind them the zeros.
        zeros: The zeros, a view of ``values``.
        has_nan: int32 (groups, column tiles, row blocks): whether a weight there is NaN.
        num_blocks: Row blocks.
    """

    values: Tensor
    zeros: Tensor
    has_nan: Tensor
    num_blocks: int


@triton.jit
def _pack(
    weight, packed, has_nan,
    depth, columns, padded_columns, taps,
    group_stride, depth_stride, column_stride, tap_stride, num_zeros, scale,
    V: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows (tap, term) of COLUMNS columns of one group."""
    block, tile, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = block * ROWS + tl.arange(0, ROWS)[:, None]
    column = tile * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tap, term = row // depth, row % depth
    inside = (row < taps * depth) & (column < columns)
    source = group.to(tl.int64) * group_stride + term * depth_stride + column * column_stride
    source += tap * tap_stride
    value = tl.load(weight + source, mask=inside, other=0.0).to(tl.float32)
    found = tl.max(tl.max((value != value).to(tl.int32), axis=1), axis=0)
    tl.store(has_nan + (group * tl.num_programs(1) + tile) * tl.num_programs(0) + block, found)
    first = group.to(tl.int64) * taps * depth * padded_columns
    target = first + ((row // V).to(tl.int64) * padded_columns + column) * V + row % V
    tl.store(packed + target, value * scale, mask=row < taps * depth)
    if (block == 0) & (tile == 0) & (group == 0):
        tail = packed + tl.num_programs(2).to(tl.int64) * taps * depth * padded_columns
        for start in range(0, num_zeros, ROWS):
            index = start + tl.arange(0, ROWS)
            tl.store(tail + index, tl.zeros((ROWS,), tl.float32), mask=index < num_zeros)


def pack(
    weight: Tensor, groups: int, block_n: int, *, transposed: bool, scale: float = 1.0
) -> Packed:
    """Pack weights (O, C / groups, R, S).

    Args:
        weight: The weights.
        groups: Groups.
        block_n: Columns of a tile.
        transposed: Whether terms are outputs and columns inputs (the input gradient); else terms
            are inputs and columns outputs (the forward).
        scale: Factor of the packed weights.
    """
    O, C, R, S = weight.shape
    O //= groups
    taps = R * S
    depth, columns = (O, C) if transposed else (C, O)
    stride_o, stride_c, stride_r, stride_s = weight.stride()
    if R > 1 and S > 1 and stride_r != S * stride_s:  # taps must lie at equal distances
        weight = weight.contiguous()
        stride_o, stride_c, stride_r, stride_s = weight.stride()
    depth_stride, column_stride = (stride_o, stride_c) if transposed else (stride_c, stride_o)
    num_tiles = -(-columns // block_n)
    padded = num_tiles * block_n
    num_blocks = -(-taps * depth // _ROWS)
    num_zeros = depth + depth % 2
    values = torch.empty(
        groups * taps * depth * padded + num_zeros, dtype=torch.float32, device=weight.device
    )
    has_nan = torch.empty(groups, num_tiles, num_blocks, dtype=torch.int32, device=weight.device)
    _pack[(num_blocks, num_tiles, groups)](
        weight, values, has_nan,
        depth, columns, padded, taps, O * stride_o, depth_stride, column_stride,
        stride_s if S > 1 else stride_r, num_zeros, scale,
        V=2 - depth % 2, ROWS=_ROWS, COLUMNS=block_n,
    )  # fmt: skip
    return Packed(values, values[values.numel() - num_zeros :], has_nan, num_blocks)
