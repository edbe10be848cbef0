"""The variance of a layer's output over the data where its inputs depend on each other.

Neighbouring pixels and channels of a real net do. What that adds to the variance of independent
taps is a sum over pairs of taps; docs/stability.md derives both forms given here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def response_variance(covariance: Tensor, slope: Tensor, variance: Tensor) -> Tensor:
    """`Var Y_o = sum_k v_ok + sum_{j != k} b_oj' C_jk b_ok`, for inputs of any distribution.

    Each term `|x_k - w_ok|` is split into its best linear fit in F features of x_k, of slopes b_ok,
    and a rest; the rests of different taps are taken as uncorrelated with each other and with the
    features of other taps. With x_k itself as the only feature and normal inputs,
    `b_ok = E sign(x_k - w_ok)`, and the first order of the exact series of
    `gaussian_adder_variance` is left; with `x_k^2` as a second feature, the second order, too. A
    convolution has `b_ok = w_ok` and no rest: exact.

    Args:
        covariance: C, covariances of the features of all taps, those of a tap side by side, shape
            (K F, K F).
        slope: `Cov(features of x_k)^-1 Cov(features, |x_k - w_ok|)`, shape (O, K F).
        variance: `v_ok = Var|x_k - w_ok|`, shape (O, K).

    Returns:
        The variance of each output, shape (O).
    """
    num_taps = variance.shape[1]
    together = ((slope @ covariance) * slope).sum(1)
    blocks_KFF = own_blocks(covariance, num_taps)
    slope_OKF = slope.unflatten(1, (num_taps, -1))
    alone = torch.einsum("okf,kfg,okg->o", slope_OKF, blocks_KFF, slope_OKF)
    return together + variance.sum(1) - alone


def own_blocks(covariance: Tensor, num_taps: int) -> Tensor:
    """Covariances of the features of each tap among themselves, shape (K, F, F)."""
    blocks_KFKF = covariance.unflatten(1, (num_taps, -1)).unflatten(0, (num_taps, -1))
    return torch.einsum("kfkg->kfg", blocks_KFKF)


def gaussian_adder_variance(
    mean: Tensor, covariance: Tensor, weight: Tensor, order: int = 24
) -> Tensor:
    """Variance of `Y_o = -sum_k |x_k - w_ok|` over jointly normal inputs.

    `Var Y_o = sum_k v_ok + sum_{j != k} sum_{n >= 1} r_jk^n c_n,oj c_n,ok / n!` (Mehler's series),
    with r the correlations, s the standard deviations, `z = (w - mean) / s`,
    `c_1 = -s erf(z / sqrt 2)` and `c_n = 2 s He_{n-2}(z) phi(z)`. The diagonal is exact at any
    order; what is left out of a pair is at most `|r_jk|^(order+1) sqrt(v_oj v_ok)`.

    Args:
        mean: Means of the taps' inputs, shape (K).
        covariance: Their covariances, shape (K, K), of positive diagonal.
        weight: Filters, shape (O, K).
        order: Terms of the series.

    Returns:
        The variance of each output, shape (O), float64.

    Raises:
        ValueError: If a variance is not positive or `order` is below 1.
    """
    mean, covariance, weight = (t.detach().double() for t in (mean, covariance, weight))
    std = covariance.diagonal().sqrt()
    if not bool((std > 0).all()):
        raise ValueError("covariance must have a positive diagonal")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    correlation = covariance / torch.outer(std, std)
    z = (weight - mean) / std
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    folded = 2 * density + z * torch.erf(z / math.sqrt(2))
    variance = std.square() * (1 + z.square() - folded.square())
    total = variance.sum(1)
    # c_n / sqrt(n!) by the recurrence of the normalised Hermite polynomials.
    coefficient = -std * torch.erf(z / math.sqrt(2))
    before, hermite = torch.zeros_like(z), torch.ones_like(z)
    power = correlation.clone()
    for n in range(1, order + 1):
        if n >= 2:
            coefficient = 2 * std * density * hermite / math.sqrt(n * (n - 1))
            k = n - 2
            after = (z * hermite - math.sqrt(k) * before) / math.sqrt(k + 1)
            before, hermite = hermite, after
            power = power * correlation
        pairs = ((coefficient @ power) * coefficient).sum(1)
        total = total + pairs - coefficient.square().sum(1)
    return total
