"""Mean and variance of a layer's output, from the distributions of its inputs and weights.

Taps are taken as independent, see docs/stability.md for the derivations and for what that leaves
out; `torchadder.stability.correlation` puts the dependence of the inputs back in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchadder.stability.distributions import Distribution, Laplace, Normal, Rectified, grid


@dataclass(frozen=True)
class OutputMoments:
    """Moments of a layer's output, in two readings of "the variance".

    Attributes:
        mean: Mean over data and filters.
        data_variance: Variance over the data for fixed filters, averaged over the filters: the
            mean over channels of the variance that batch norm divides by.
        filter_variance: Variance over the filters of their means over the data.
    """

    mean: float
    data_variance: float
    filter_variance: float

    @property
    def variance(self) -> float:
        """Variance over data and filters together, the sum of the two."""
        return self.data_variance + self.filter_variance


def mean_distance(inputs: Distribution, weights: Normal | Laplace) -> float:
    """`E|X - W|` for independent X and W, any means and scales.

    With d the difference of the means:

    * both normal, `s^2 = s_x^2 + s_w^2`: `s sqrt(2/pi) exp(-d^2 / 2 s^2) + d erf(d / s sqrt 2)`;
    * both Laplace, scales a and b:
      `|d| + (a^3 exp(-|d|/a) - b^3 exp(-|d|/b)) / (a^2 - b^2)`;
    * one normal (s), one Laplace (b): the normal's mean distance from d, plus
      `(b/2) exp(-d^2 / 2 s^2) (erfcx((s/b - d/s) / sqrt 2) + erfcx((s/b + d/s) / sqrt 2))`;
    * rectified inputs: an integral over the weights, computed to rounding.

    Examples:
        >>> round(mean_distance(Laplace(), Laplace()), 12)
        1.5
    """
    _check_weights(weights)
    if isinstance(inputs, Rectified):
        points, factors = grid(weights, inputs)
        return float(factors @ inputs.mean_distance(points))
    offset = abs(inputs.mean - weights.mean)
    origin = torch.zeros((), dtype=torch.float64)
    if isinstance(inputs, Normal) and isinstance(weights, Normal):
        return float(Normal(offset, math.hypot(inputs.std, weights.std)).mean_distance(origin))
    if isinstance(inputs, Laplace) and isinstance(weights, Laplace):
        return _laplace_laplace(offset, inputs.scale, weights.scale)
    normal, laplace = (inputs, weights) if isinstance(inputs, Normal) else (weights, inputs)
    folded = float(Normal(offset, normal.scale).mean_distance(origin))
    return folded + laplace.scale * _mean_decay(offset, normal.scale, laplace.scale)


def _laplace_laplace(offset: float, a: float, b: float) -> float:
    """The second case of `mean_distance`, in a form that has no difference of near-equal terms.

    With a >= b, u = d (a - b) / (a b) and phi(u) = (1 - exp(-u)) / u the fraction is
    `exp(-d/a) (a^2 + a b + b^2 + (b^2 d / a) phi(u)) / (a + b)`.
    """
    a, b = max(a, b), min(a, b)
    u = offset * (a - b) / (a * b)
    phi = -math.expm1(-u) / u if u > 0 else 1.0
    rest = (a * a + a * b + b * b + b * b * offset / a * phi) / (a + b)
    return offset + math.exp(-offset / a) * rest


def _mean_decay(offset: float, std: float, scale: float) -> float:
    """`E exp(-|T| / scale)` for a normal T with mean `offset` and standard deviation `std`."""
    total = 0.0
    for sign in (-1, 1):
        z = (std / scale + sign * offset / std) / math.sqrt(2)
        if z >= 0:
            scaled = float(torch.special.erfcx(torch.tensor(z, dtype=torch.float64)))
            total += math.exp(-(offset**2) / (2 * std**2)) * scaled / 2
        else:  # erfcx overflows; the exponent is negative here
            exponent = (std / scale) * (std / (2 * scale) + sign * offset / std)
            total += math.exp(exponent) * math.erfc(z) / 2
    return total


def adder_output_moments(
    inputs: Distribution, weights: Normal | Laplace, num_taps: int
) -> OutputMoments:
    """Moments of `Y = -sum_k |x_k - w_k|` over K independent taps.

    `E Y = -K E|x - w|`, `Var Y = K (Var x + Var w + d^2 - (E|x - w|)^2)` over data and filters, d
    the difference of the means. Of this, `K (Var x + E (w - E x)^2 - E m(w)^2)` is the variance
    over the data, with `m(c) = E|x - c|`, and `K Var m(w)` that between filters. For normal inputs
    and weights of mean 0 the sum is `K (1 - 2/pi) (Var x + Var w)`.

    `E|x - w|` is `mean_distance`; `E m(w)^2` is an integral over the weights, computed to rounding.

    Args:
        inputs: Distribution of one input of the layer.
        weights: Distribution of one weight.
        num_taps: K, inputs that an output sums over (C R S / groups).

    Raises:
        TypeError: If the weights are rectified.
        ValueError: If `num_taps` is below 1.

    Examples:
        >>> moments = adder_output_moments(Normal(), Normal(), 100)
        >>> round(moments.variance / 200, 4), round(1 - 2 / math.pi, 4)
        (0.3634, 0.3634)
    """
    _check_taps(num_taps)
    distance = mean_distance(inputs, weights)
    points, factors = grid(weights, inputs)
    by_weight = inputs.mean_distance(points)
    # Both are sums of positive terms; a difference of moments would lose the digits.
    filters = factors @ (by_weight - distance).square()
    data = factors @ _distance_variance(inputs, points, by_weight)
    return OutputMoments(-num_taps * distance, num_taps * float(data), num_taps * float(filters))


def conv_output_moments(
    inputs: Distribution, weights: Normal | Laplace, num_taps: int
) -> OutputMoments:
    """Moments of a convolution's `Y = sum_k x_k w_k` over K independent taps, without its bias.

    `E Y = K E x E w`; over the data `K Var x (Var w + (E w)^2)`, between filters
    `K (E x)^2 Var w`. For means of 0 this is `K Var x Var w`, as in AdderNet (arXiv 1912.13200).

    Args:
        inputs: Distribution of one input of the layer.
        weights: Distribution of one weight.
        num_taps: K.

    Raises:
        TypeError: If the weights are rectified.
        ValueError: If `num_taps` is below 1.

    Examples:
        >>> conv_output_moments(Normal(), Normal(0.0, 0.5), 100).variance
        25.0
    """
    _check_weights(weights)
    _check_taps(num_taps)
    return OutputMoments(
        mean=num_taps * inputs.mean * weights.mean,
        data_variance=num_taps * inputs.variance * (weights.variance + weights.mean**2),
        filter_variance=num_taps * inputs.mean**2 * weights.variance,
    )


def adder_filter_moments(inputs: Distribution, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the data of each output of an adder layer with these very weights.

    `E Y_o = -sum_k m(w_ok)` and `Var Y_o = sum_k (Var x + (E x - w_ok)^2 - m(w_ok)^2)`, with
    `m(c) = E|x - c|` and independent inputs.

    Args:
        inputs: Distribution of one input of the layer.
        weight: Filters (O, ...).

    Returns:
        Means and variances, each of shape (O), float64.
    """
    points = weight.detach().double().flatten(1)
    distances = inputs.mean_distance(points)
    variances = _distance_variance(inputs, points, distances)
    return -distances.sum(1), variances.sum(1)


def _distance_variance(inputs: Distribution, points: Tensor, distances: Tensor) -> Tensor:
    """`Var|X - c| = Var X + (E X - c)^2 - (E|X - c|)^2`, which rounding must not make negative."""
    offsets = (inputs.mean - points).abs()
    squares = (offsets - distances) * (offsets + distances)
    return (inputs.variance + squares).clamp_min(0)


def _check_weights(weights: Distribution) -> None:
    if not isinstance(weights, Normal | Laplace):
        raise TypeError(f"weights must be Normal or Laplace, got {type(weights).__name__}")


def _check_taps(num_taps: int) -> None:
    if num_taps < 1:
        raise ValueError(f"num_taps must be at least 1, got {num_taps}")
