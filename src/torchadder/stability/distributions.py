"""Distributions of a tap's input or weight, with what the moments of `|x - w|` need of them.

All numbers are float64. Nothing here knows layers or nets; docs/stability.md has the derivations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SQRT_2 = math.sqrt(2)
_LADDER = (0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 11.0, 15.0, 22.0, 32.0, 46.0)
# Distances, in scales, at which an integral is cut; e^-46 is below float64's resolution.


def _check(owner: str, **numbers: float) -> None:
    for name, value in numbers.items():
        is_scale = name in ("std", "scale", "variance")
        if not math.isfinite(value) or (is_scale and value <= 0):
            wanted = "a positive finite number" if is_scale else "a finite number"
            raise ValueError(f"{owner}: {name} must be {wanted}, got {value}")


@dataclass(frozen=True)
class Normal:
    """The normal distribution.

    Attributes:
        mean: Its mean.
        std: Its standard deviation.

    Raises:
        ValueError: If a number is not finite or `std` is not positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check("Normal", mean=self.mean, std=self.std)

    @property
    def variance(self) -> float:
        """`E (X - E X)^2`."""
        return self.std**2

    @property
    def scale(self) -> float:
        """The length over which the density changes."""
        return self.std

    def density(self, points: Tensor) -> Tensor:
        """The density at points, any shape, float64."""
        z = (points - self.mean) / self.std
        return torch.exp(-z.square() / 2) / (self.std * math.sqrt(2 * math.pi))

    def mean_distance(self, points: Tensor) -> Tensor:
        """`E|X - c| = s sqrt(2/pi) exp(-d^2 / 2 s^2) + d erf(d / s sqrt 2)`, d = mean - c.

        The mean of the folded normal distribution.
        """
        z = (self.mean - points) / (self.std * _SQRT_2)
        return self.std * _SQRT_2 * (torch.exp(-z.square()) / math.sqrt(math.pi) + z * torch.erf(z))

    def above_zero(self) -> tuple[float, float]:
        """`E[X; X > 0]` and `E[X^2; X > 0]`."""
        t = self.mean / self.std
        density = math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
        # erfc keeps its digits where hardly anything is above zero.
        share = math.erfc(-t / _SQRT_2) / 2
        return (
            self.std * (t * share + density),
            self.variance * ((t**2 + 1) * share + t * density),
        )


@dataclass(frozen=True)
class Laplace:
    """The Laplace distribution `exp(-|x - mean| / scale) / (2 scale)`, of variance `2 scale^2`.

    Attributes:
        mean: Its mean.
        scale: Mean distance from the mean.

    Raises:
        ValueError: If a number is not finite or `scale` is not positive.
    """

    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check("Laplace", mean=self.mean, scale=self.scale)

    @property
    def variance(self) -> float:
        """`E (X - E X)^2`."""
        return 2 * self.scale**2

    def density(self, points: Tensor) -> Tensor:
        """The density at points, any shape, float64."""
        return torch.exp(-(points - self.mean).abs() / self.scale) / (2 * self.scale)

    def mean_distance(self, points: Tensor) -> Tensor:
        """`E|X - c| = |d| + b exp(-|d| / b)`, d = mean - c."""
        distance = (self.mean - points).abs()
        return distance + self.scale * torch.exp(-distance / self.scale)

    def above_zero(self) -> tuple[float, float]:
        """`E[X; X > 0]` and `E[X^2; X > 0]`."""
        tail = math.exp(-abs(self.mean) / self.scale)
        first, second = self.scale * tail / 2, self.scale**2 * tail
        if self.mean < 0:
            return first, second
        return self.mean + first, self.mean**2 + self.variance - second


@dataclass(frozen=True)
class Rectified:
    """`max(Z, 0)` for a Z of another distribution: what a ReLU hands to the next layer.

    With a normal Z of mean 0 it is 0 half of the time and half-normal otherwise.

    Attributes:
        base: The distribution of Z.
    """

    base: Normal | Laplace

    @property
    def mean(self) -> float:
        """`E[Z; Z > 0]`."""
        return self.base.above_zero()[0]

    @property
    def variance(self) -> float:
        """`E[Z^2; Z > 0] - (E[Z; Z > 0])^2`."""
        first, second = self.base.above_zero()
        return second - first**2

    @property
    def scale(self) -> float:
        """The length over which the density changes."""
        return self.base.scale

    def mean_distance(self, points: Tensor) -> Tensor:
        """`E|X - c|`: `E|Z - c| + E min(Z, 0)` for c >= 0, else `E X - c`.

        For c >= 0 and Z < 0, `|X - c| = c = |Z - c| + Z`; for c < 0 the absolute value has no work.
        """
        below = self.base.mean - self.mean
        return torch.where(points >= 0, self.base.mean_distance(points) + below, self.mean - points)

    @classmethod
    def from_moments(cls, mean: float, variance: float) -> Rectified:
        """The rectified normal distribution with a given mean and variance.

        `E X^2 / (E X)^2` falls from infinity to 1 as the mean of Z rises, so there is exactly one.

        Raises:
            ValueError: If a number is not positive and finite.
        """
        if not (0 < mean < math.inf):
            raise ValueError(f"mean must be a positive finite number, got {mean}")
        _check("Rectified", variance=variance)
        wanted = 1 + variance / mean**2
        # Of E Z / std: at -12 the ratio is 1e32; from above, cutting off what is negative makes
        # the mean larger and the deviation smaller.
        low, high = -12.0, mean / math.sqrt(variance)
        for _ in range(100):
            middle = (low + high) / 2
            first, second = Normal(middle, 1.0).above_zero()
            if second > wanted * first**2:
                low = middle
            else:
                high = middle
        std = mean / Normal(low, 1.0).above_zero()[0]
        return cls(Normal(low * std, std))


Distribution = Normal | Laplace | Rectified


def grid(weights: Normal | Laplace, inputs: Distribution) -> tuple[Tensor, Tensor]:
    """Points c and factors f so that `sum f g(c)` is the mean of g over the weights.

    Gauss-Legendre quadrature in pieces, cut where either distribution bends: exact to rounding for
    every g that is made of `inputs.mean_distance`.

    Returns:
        Points and factors, both of shape (M), float64.
    """
    base = inputs.base if isinstance(inputs, Rectified) else inputs
    reach = _LADDER[-1] * weights.scale
    cuts = {0.0} | {
        one.mean + sign * step * one.scale
        for one in (weights, base)
        for step in _LADDER
        for sign in (-1, 1)
    }
    inside = sorted(cut for cut in cuts if abs(cut - weights.mean) <= reach)
    edges = torch.tensor(inside, dtype=torch.float64)
    nodes, factors = _legendre(24)
    halves = edges.diff()[:, None] / 2
    points = (edges[:-1, None] + halves + halves * nodes).flatten()
    return points, (halves * factors).flatten() * weights.density(points)


def _legendre(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and factors of Gauss-Legendre quadrature on [-1, 1] (Golub and Welsch)."""
    n = torch.arange(1, count, dtype=torch.float64)
    beside = n / (4 * n.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return nodes, 2 * vectors[0].square()
