"""What a user can choose about an integer net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal["max", "percentile", "mse"]
Ends = Literal["int8", "float"]

METHODS: tuple[Method, ...] = get_args(Method)
MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True)
class Int8Config:
    """How `torchadder.quantize_` makes integers of a net.

    Args:
        bits: Width of the filters of a layer and of what it reads, 2 to 8. Below 8 the integers are
            simply smaller: the same bytes and kernels, an exact simulation of a narrower machine.
            First and last layer always have 8.
        range: How the range of a value is found from calibration images: "max" takes all of it,
            "percentile" leaves out the largest magnitudes, "mse" takes the range with the smallest
            mean squared error.
        percentile: Share of the numbers that "percentile" covers; 0.9997 as in the code of the
            NeurIPS 2022 paper (our reading).
        groups: Groups of filters of each adder layer, by k-means on max |w|, with a range each; 1
            leaves the layer whole. The NeurIPS 2022 paper uses 4.
        clamp: Whether filters of adder layers are cut to the range of what they read, and what is
            cut off becomes part of the bias. Otherwise one range covers both.
        first: Whether convolutions that read the images, maybe behind a norm, compute in "int8" or
            in "float". A net that begins with other layers is refused with "float".
        last: Likewise, whether those that make the logits do, maybe with pools behind them. A net
            with layers in float cannot be exported.

    Raises:
        ValueError: If a value is out of range, or bits or groups are no whole numbers.
    """

    bits: int = 8
    range: Method = "mse"
    percentile: float = 0.9997
    groups: int = 1
    clamp: bool = True
    first: Ends = "int8"
    last: Ends = "int8"

    def __post_init__(self) -> None:
        for name in ("bits", "groups"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits must be within {MIN_BITS} .. {MAX_BITS}, got {self.bits}")
        if self.range not in METHODS:
            raise ValueError(f"range must be one of {', '.join(METHODS)}, got {self.range!r}")
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile must be above 0 and at most 1, got {self.percentile}")
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")
        if self.groups > 1 and not self.clamp:
            raise ValueError(f"groups = {self.groups} want clamp = True, got False")
        for name in ("first", "last"):
            if getattr(self, name) not in get_args(Ends):
                raise ValueError(f"{name} must be int8 or float, got {getattr(self, name)!r}")
