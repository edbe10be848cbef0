"""The numbers behind the figures: fits, intervals, tests. Knows arrays, not nets or files."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NORMAL_95 = 1.959963984540054
"""The 0.975 quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Fit:
    """A distribution with two parameters, fitted by maximum likelihood.

    Attributes:
        location: Centre: the median for Laplace, the mean for the normal distribution.
        scale: Laplace's b, or the normal distribution's standard deviation.
        log_likelihood: Mean log-likelihood of the fitted values, in nats per value.
    """

    location: float
    scale: float
    log_likelihood: float


def fit_laplace(values: ArrayLike) -> Fit:
    """Fits `p(x) = exp(-|x - m| / b) / (2 b)` by maximum likelihood.

    The maximum is at `m` = median and `b` = mean absolute deviation from it; there the mean
    log-likelihood is `-log(2 b) - 1`.

    Args:
        values: Numbers, of any shape.

    Raises:
        ValueError: If there are no values, not all are finite, or all are equal.

    >>> fit_laplace([-1.0, 0.0, 4.0]).location
    0.0
    """
    array = _checked(values)
    location = float(np.median(array))
    scale = float(np.mean(np.abs(array - location)))
    return Fit(location, scale, -math.log(2 * scale) - 1)


def fit_normal(values: ArrayLike) -> Fit:
    """Fits `p(x) = exp(-(x - m)^2 / (2 s^2)) / (s sqrt(2 pi))` by maximum likelihood.

    The maximum is at `m` = mean and `s` = standard deviation (divided by N, not N - 1); there the
    mean log-likelihood is `-log(s sqrt(2 pi)) - 1/2`.

    Args:
        values: Numbers, of any shape.

    Raises:
        ValueError: If there are no values, not all are finite, or all are equal.

    >>> fit_normal([-1.0, 0.0, 4.0]).location
    1.0
    """
    array = _checked(values)
    location, scale = float(np.mean(array)), float(np.std(array))
    return Fit(location, scale, -math.log(scale * math.sqrt(2 * math.pi)) - 0.5)


@dataclass(frozen=True)
class WeightFits:
    """Laplace and normal fit of the same weights; both have two parameters.

    Attributes:
        num_weights: Number of weights.
        laplace: The Laplace fit.
        normal: The normal fit.
    """

    num_weights: int
    laplace: Fit
    normal: Fit

    @property
    def advantage(self) -> float:
        """Mean log-likelihood of Laplace minus that of normal, in nats per weight."""
        return self.laplace.log_likelihood - self.normal.log_likelihood

    @property
    def better(self) -> str:
        """`"Laplace"` or `"normal"`, whichever has the higher likelihood."""
        return "Laplace" if self.advantage > 0 else "normal"


def fit_weights(values: ArrayLike) -> WeightFits:
    """Fits both distributions to the same values; see `fit_laplace` and `fit_normal`."""
    return WeightFits(np.size(np.asarray(values)), fit_laplace(values), fit_normal(values))


def laplace_density(x: ArrayLike, fit: Fit) -> NDArray[np.float64]:
    """The Laplace density of `fit` at `x`."""
    distance = np.abs(np.asarray(x, np.float64) - fit.location)
    return np.exp(-distance / fit.scale) / (2 * fit.scale)


def normal_density(x: ArrayLike, fit: Fit) -> NDArray[np.float64]:
    """The normal density of `fit` at `x`."""
    z = (np.asarray(x, np.float64) - fit.location) / fit.scale
    return np.exp(-(z**2) / 2) / (fit.scale * math.sqrt(2 * math.pi))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share, after Wilson (1927).

    Unlike the textbook `p +- 1.96 sqrt(p (1 - p) / n)` it stays within 0..1 and has a width where
    every trial succeeded.

    Args:
        successes: Number of successes, 0 .. `trials`.
        trials: Number of trials, at least 1.

    Raises:
        ValueError: If the counts are out of range.

    >>> [round(bound, 4) for bound in wilson_interval(980, 1000)]
    [0.9693, 0.987]
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials: 0 <= successes <= trials")
    share, z = successes / trials, NORMAL_95
    centre = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    norm = 1 + z**2 / trials
    return max(0.0, (centre - half) / norm), min(1.0, (centre + half) / norm)


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test for two classifiers on the same images: the two-sided p-value.

    Images that both nets get right, or both get wrong, say nothing about which is better. Of the
    others, each net would win half if they were equally good: a binomial test with p = 1/2.

    Args:
        only_first: Images that only the first net gets right.
        only_second: Images that only the second net gets right.

    >>> mcnemar(5, 5), mcnemar(0, 10)
    (1.0, 0.001953125)
    """
    discordant, smaller = only_first + only_second, min(only_first, only_second)
    tail = ways = 1
    for k in range(smaller):
        ways = ways * (discordant - k) // (k + 1)  # (discordant over k + 1), exactly
        tail += ways
    return min(1.0, 2 * tail / 2**discordant)


def radial_share(features: ArrayLike, labels: ArrayLike) -> float | None:
    """How far the classes are rays: the part of their scatter that points outwards, 0..1.

    For each class c with mean `m_c`, the variance along the line from the centre of the class means
    through `m_c`, divided by the variance in all directions; the median over the classes. In two
    dimensions a round cluster gives 0.5 and a ray from the centre 1. None if no class has any
    scatter, as where a net in its first steps gives every image the same features.

    Args:
        features: Features, shape (N, D).
        labels: Class of each, shape (N).

    Raises:
        ValueError: If the shapes do not fit.
    """
    points, classes = np.asarray(features, np.float64), np.asarray(labels)
    if points.ndim != 2 or classes.shape != points.shape[:1]:
        raise ValueError(
            f"features {points.shape} and labels {classes.shape}: (N, D) and (N) are wanted"
        )
    groups = [points[classes == c] for c in np.unique(classes)]
    means = np.stack([group.mean(0) for group in groups])
    shares = []
    for group, outwards in zip(groups, means - means.mean(0), strict=True):
        centred, length = group - group.mean(0), np.linalg.norm(outwards)
        total = np.sum(centred**2)
        if total > 0 and length > 0:
            shares.append(np.sum((centred @ outwards / length) ** 2) / total)
    return float(np.median(shares)) if shares else None


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64).ravel()
    if not array.size or not np.isfinite(array).all() or np.ptp(array) == 0:
        raise ValueError(
            f"{array.size} values: at least two different ones are wanted, all of them finite"
        )
    return array
