"""Which exponent an epoch has: a function of the epoch alone, so that runs can be resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torchadder.ops.lp import check_exponent

SHAPES = ("linear", "step")


@dataclass(frozen=True)
class ExponentSchedule:
    """p falls from ``start`` to 1 in the first part of a run and stays there.

    With ``fall = min(round(share * epochs), epochs - 1)`` epochs in which p falls, epoch
    e = 0, 1, ... has

    * "linear": ``p = start - (start - 1) e / fall``,
    * "step": ``p = start - (start - 1) floor(e num_steps / fall) / num_steps``,

    and p = 1 from e = fall on, so that every run ends with at least one epoch of the plain adder
    net. That p falls from 2 to 1 is the idea of arXiv 2105.14202; when and how is our reading.

    Args:
        shape: "linear" (a new p every epoch) or "step".
        start: p of the first epoch, above 1 and at most 2.
        share: share of the epochs in which p is above 1, in (0, 1].
        num_steps: number of values above 1, for "step".

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> schedule = ExponentSchedule(share=0.5)
        >>> tuple(schedule.exponent(epoch, 8) for epoch in range(8))
        (2.0, 1.75, 1.5, 1.25, 1.0, 1.0, 1.0, 1.0)
    """

    shape: str = "linear"
    start: float = 2.0
    share: float = 0.75
    num_steps: int = 4

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        check_exponent(self.start)
        if self.start == 1:
            raise ValueError("start must be above 1, got 1: that is the plain adder net")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")

    def exponent(self, epoch: int, num_epochs: int) -> float:
        """Exponent of an epoch, counted from 0, of a run of ``num_epochs``.

        The first epoch has ``start`` and the last 1; a run of a single epoch has 1.
        """
        fall = min(max(round(self.share * num_epochs), 1), num_epochs - 1)
        if epoch >= fall:
            return 1.0
        done = epoch / fall
        if self.shape == "step":
            done = math.floor(epoch * self.num_steps / fall) / self.num_steps
        return self.start - (self.start - 1) * done
