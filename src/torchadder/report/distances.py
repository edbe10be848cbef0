"""How far a sample is from a distribution, or from another sample. Knows arrays only."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from torchadder.report.statistics import Fit

Array = NDArray[np.float64]


def laplace_cdf(x: ArrayLike, fit: Fit) -> Array:
    """Distribution function of a fitted Laplace distribution."""
    z = (np.asarray(x, np.float64) - fit.location) / fit.scale
    tail = np.exp(-np.abs(z)) / 2
    return np.where(z < 0, tail, 1 - tail)


def laplace_quantile(p: ArrayLike, fit: Fit) -> Array:
    """Inverse of `laplace_cdf`."""
    p = np.asarray(p, np.float64)
    z = np.where(p < 0.5, np.log(2 * np.minimum(p, 0.5)), -np.log(2 * np.minimum(1 - p, 0.5)))
    return fit.location + fit.scale * z


def normal_cdf(x: ArrayLike, fit: Fit) -> Array:
    """Distribution function of a fitted normal distribution."""
    z = (np.asarray(x, np.float64) - fit.location) / fit.scale
    return torch.special.ndtr(torch.from_numpy(np.atleast_1d(z))).numpy().reshape(np.shape(z))


def normal_quantile(p: ArrayLike, fit: Fit) -> Array:
    """Inverse of `normal_cdf`."""
    p = np.asarray(p, np.float64)
    z = torch.special.ndtri(torch.from_numpy(np.atleast_1d(p))).numpy().reshape(np.shape(p))
    return fit.location + fit.scale * z


def ks_to_fit(values: ArrayLike, cdf_at_values: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance `sup_x |F_n(x) - F(x)|` of a sample to a distribution.

    Args:
        values: The sample.
        cdf_at_values: F at each of them, in the same order.

    >>> ks_to_fit([1.0, 2.0], [0.5, 1.0])
    0.5
    """
    theory = np.sort(np.ravel(np.asarray(cdf_at_values, np.float64)))
    count = len(theory)
    if count != np.size(values):
        raise ValueError(f"{np.size(values)} values and {count} of their distribution function")
    steps = np.arange(count + 1) / count
    return float(max(np.max(steps[1:] - theory), np.max(theory - steps[:-1])))


def wasserstein_to_fit(values: ArrayLike, quantiles: ArrayLike) -> float:
    """Wasserstein-1 distance of a sample to a distribution, by the midpoint rule.

    `1/n sum_i |x_(i) - Q((i - 1/2) / n)|`, x_(i) the i-th smallest value.

    Args:
        values: The sample.
        quantiles: Q at `midpoints(n)`.
    """
    ordered = np.sort(np.ravel(np.asarray(values, np.float64)))
    return float(np.mean(np.abs(ordered - np.asarray(quantiles, np.float64))))


def midpoints(count: int) -> Array:
    """`(i - 1/2) / n` for i = 1 .. n."""
    return (np.arange(count) + 0.5) / count


def ks_between(first: ArrayLike, second: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance `sup_x |F(x) - G(x)|` of two samples.

    >>> ks_between([1.0, 2.0], [3.0, 4.0]), ks_between([1.0, 2.0], [2.0, 1.0])
    (1.0, 0.0)
    """
    a, b = (np.sort(np.ravel(np.asarray(sample, np.float64))) for sample in (first, second))
    both = np.concatenate([a, b])
    f = np.searchsorted(a, both, side="right") / len(a)
    g = np.searchsorted(b, both, side="right") / len(b)
    return float(np.max(np.abs(f - g)))


def wasserstein_between(first: ArrayLike, second: ArrayLike) -> float:
    """Wasserstein-1 distance `integral |F(x) - G(x)| dx` of two samples.

    >>> wasserstein_between([0.0, 1.0], [5.0, 6.0])
    5.0
    """
    a, b = (np.sort(np.ravel(np.asarray(sample, np.float64))) for sample in (first, second))
    both = np.sort(np.concatenate([a, b]))
    f = np.searchsorted(a, both[:-1], side="right") / len(a)
    g = np.searchsorted(b, both[:-1], side="right") / len(b)
    return float(np.sum(np.abs(f - g) * np.diff(both)))


def standardised(values: ArrayLike) -> Array:
    """A sample shifted and scaled to mean 0 and standard deviation 1.

    Raises:
        ValueError: If all values are equal.
    """
    array = np.ravel(np.asarray(values, np.float64))
    spread = array.std()
    if not spread > 0:
        raise ValueError(f"{array.size} equal values cannot be scaled to unit spread")
    return (array - array.mean()) / spread
