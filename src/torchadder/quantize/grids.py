"""Integers for real numbers: evenly spaced grids, and going from one to another in fixed point."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchadder.quantize.graph import QuantizationError
from torchadder.quantize.program import Requantisation

MAX_SHIFT = 62
_MAX_MULTIPLIER = 2**31 - 1
_MAX_OFFSET = 2**61 - 1

INT32 = (-(2**31), 2**31 - 1)


@dataclass(frozen=True)
class Grid:
    """Integers 0 .. levels, of which q stands for `scale (q - zero_point)`.

    Attributes:
        scale: Real number of one step.
        zero_point: Integer of the real zero, which is always on the grid.
        levels: Largest integer, 255 for a byte.
    """

    scale: float
    zero_point: int
    levels: int

    @staticmethod
    def over(low: float, high: float, bits: int) -> Grid:
        """The grid of 2^bits integers over `low .. high`, moved so that it has the real zero.

        Args:
            low: At most 0.
            high: At least 0; above `low`.
            bits: 1 to 8.
        """
        levels = 2**bits - 1
        scale = (high - low) / levels
        return Grid(scale, round(-low / scale), levels)

    @property
    def low(self) -> float:
        """Smallest real number."""
        return -self.scale * self.zero_point if self.zero_point else 0.0

    @property
    def high(self) -> float:
        """Largest real number."""
        return self.scale * (self.levels - self.zero_point)

    def to_integers(self, numbers: Tensor) -> Tensor:
        """The nearest integers, int64; numbers beyond the grid go to its ends."""
        steps = (numbers.double() / self.scale).round() + self.zero_point
        return steps.clamp(0, self.levels).to(torch.int64)

    def rounded(self, numbers: Tensor) -> Tensor:
        """The nearest real numbers of the grid, float64."""
        return (self.to_integers(numbers) - self.zero_point).double() * self.scale


def fixed_point(
    factor: Tensor, constant: Tensor, low: int, high: int, residual_factor: float = 0.0
) -> Requantisation:
    """`clamp(round(factor[c] sum + constant[c] + residual_factor r), low, high)` in integers.

    The shift is the largest with which all multipliers fit 32 bits and all offsets 61; the
    multipliers are rounded to the nearest in float64, which a shift by a power of two leaves exact.

    Args:
        factor: Steps of the result for one of the sum, float64 (C).
        constant: Steps to add, zero points included, float64 (C).
        low: Smallest result.
        high: Largest result.
        residual_factor: Steps of the result for one of the residual.

    Raises:
        QuantizationError: If a factor is too large for 32 bits, or not finite.
    """
    largest = max(float(factor.abs().max()), abs(residual_factor))
    furthest = float(constant.abs().max()) + 1
    if not math.isfinite(largest) or not math.isfinite(furthest):
        raise QuantizationError("a factor or shift of a batch norm is not finite")
    shift = MAX_SHIFT
    while shift >= 0 and (
        round(largest * 2.0**shift) > _MAX_MULTIPLIER or furthest * 2.0**shift > _MAX_OFFSET
    ):
        shift -= 1
    if shift < 0:
        raise QuantizationError(f"a factor of {largest:.3g} does not fit 32 bits")
    half = 1 << (shift - 1) if shift else 0
    return Requantisation(
        multiplier=(factor * 2.0**shift).round().to(torch.int32),
        offset=(constant * 2.0**shift).round().to(torch.int64) + half,
        shift=shift,
        low=low,
        high=high,
        residual_multiplier=round(residual_factor * 2.0**shift),
    )
