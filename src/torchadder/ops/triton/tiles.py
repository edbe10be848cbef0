"""Which tile of the output one program computes, and how it is dealt out to its threads.

A tile is a 4-d tensor (rows a thread, columns a thread, threads along rows, threads along columns).
Triton deals the last dimensions of a tensor out to threads first, so with as many elements in the
last two as there are threads, the first two lie in the registers of one thread: an outer product of
``rows`` values of one operand and ``columns`` of the other, without any exchange between threads.
Both operands are then read where they are needed, which Triton does as long as a slice of an
operand has fewer elements than there are threads (see README.md).

The choice is a model of the instructions issued, not a measurement; :mod:`tuning` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

WARP = 32
LONGEST_STRETCH = 8
"""Most terms of the sum in one unrolled stretch."""


class Tile(NamedTuple):
    """A tile of ``rows * threads_m`` by ``columns * threads_n`` results.

    Attributes:
        rows: Results a thread along rows (pixels).
        columns: Results a thread along columns (channels).
        threads_m: Threads along rows.
        threads_n: Threads along columns.
    """

    rows: int
    columns: int
    threads_m: int
    threads_n: int

    @property
    def block_m(self) -> int:
        """Rows of the tile."""
        return self.rows * self.threads_m

    @property
    def block_n(self) -> int:
        """Columns of the tile."""
        return self.columns * self.threads_n

    @property
    def threads(self) -> int:
        """Threads of a program."""
        return self.threads_m * self.threads_n


TILES = (
    Tile(8, 8, 16, 16),  # 128 x 128
    Tile(8, 4, 16, 16),  # 128 x 64
    Tile(4, 8, 16, 16),  # 64 x 128
    Tile(4, 4, 16, 16),  # 64 x 64
    Tile(8, 2, 16, 16),  # 128 x 32
    Tile(4, 2, 16, 16),  # 64 x 32
    Tile(4, 8, 16, 8),  # 64 x 64
    Tile(4, 4, 16, 8),  # 64 x 32
    Tile(4, 4, 32, 8),  # 128 x 32
    Tile(4, 2, 32, 8),  # 128 x 16
    Tile(4, 2, 16, 8),  # 64 x 16
    Tile(4, 1, 32, 8),  # 128 x 8
    Tile(4, 1, 16, 8),  # 64 x 8
)
"""Tiles whose operand slices are shorter than the number of threads: rows < threads_n and columns <
threads_m."""

GRADIENT_TILES = tuple(tile for tile in TILES if tile.rows * tile.columns <= 32)
"""For the input gradient, which holds x besides the sums in registers: more would spill."""

WEIGHT_TILE = Tile(4, 4, 16, 8)
"""For the weight gradient of the rule "exact", which nobody trains with."""

_SCHEDULERS = 4
_WARPS_TO_HIDE_LATENCY = 8
_START = 600
"""Instructions a program spends before and after its loop."""


def _slots(tile: Tile, num_rows: int, num_columns: int, depth: int, groups: int, sms: int) -> float:
    """Issue slots of the busiest multiprocessor: the smaller, the better."""
    programs = -(-num_rows // tile.block_m) * -(-num_columns // tile.block_n) * groups
    rounds = -(-programs // sms)
    pairs = 2 * tile.rows * tile.columns  # two instructions a pair
    loads = (tile.rows + tile.columns) / 2  # of two values each
    warps = tile.threads // WARP
    work = rounds * warps / _SCHEDULERS * (depth * (pairs + loads + 2) + _START)
    resident = min(rounds, 2) * warps
    return work / min(1.0, 0.5 + 0.5 * resident / _WARPS_TO_HIDE_LATENCY)


def choose(
    num_rows: int,
    num_columns: int,
    depth: int,
    groups: int,
    sms: int,
    candidates: Sequence[Tile] = TILES,
) -> Tile:
    """The tile of least modelled cost.

    Args:
        num_rows: Pixels of the result (images included).
        num_columns: Channels of a group of the result.
        depth: Terms of one sum.
        groups: Groups.
        sms: Multiprocessors of the device.
        candidates: What to choose from.
    """
    return min(candidates, key=lambda tile: _slots(tile, num_rows, num_columns, depth, groups, sms))


def stretch(depth: int) -> int:
    """Terms to unroll: the largest power of two up to 8 that divides ``depth``."""
    length = 1
    while length < LONGEST_STRETCH and depth % (2 * length) == 0:
        length *= 2
    return length
