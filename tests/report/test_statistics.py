"""Fits against known distributions, intervals and tests against hand-computed values."""

import math

import numpy as np
import pytest

from torchadder.report.statistics import (
    fit_laplace,
    fit_normal,
    fit_weights,
    laplace_density,
    mcnemar,
    normal_density,
    radial_share,
    wilson_interval,
)

# Standard errors of a parameter estimate at this size are below 0.01.
NUM_SAMPLES = 100_000


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_laplace_fit_is_median_and_mean_absolute_deviation():
    fit = fit_laplace([[3.0, -1.0], [0.0, 10.0]])
    assert fit.location == 1.5
    assert fit.scale == (1.5 + 2.5 + 1.5 + 8.5) / 4
    assert fit.log_likelihood == pytest.approx(-math.log(7.0) - 1)


def test_normal_fit_is_mean_and_standard_deviation():
    fit = fit_normal([[3.0, -1.0], [0.0, 10.0]])
    assert fit.location == 3.0
    assert fit.scale == pytest.approx(math.sqrt((0 + 16 + 9 + 49) / 4))
    assert fit.log_likelihood == pytest.approx(-0.5 * math.log(2 * math.pi * 18.5) - 0.5)


@pytest.mark.parametrize(
    ("fit", "density"), [(fit_laplace, laplace_density), (fit_normal, normal_density)]
)
def test_log_likelihood_is_the_mean_log_density_and_the_fit_a_maximum(fit, density, rng):
    values = rng.gamma(2.0, size=500) - 1.0
    best = fit(values)
    assert np.log(density(values, best)).mean() == pytest.approx(best.log_likelihood)
    for location, scale in ((0.05, 1.0), (-0.05, 1.0), (0.0, 1.05), (0.0, 0.95)):
        other = type(best)(best.location + location, best.scale * scale, 0.0)
        assert np.log(density(values, other)).mean() < best.log_likelihood


@pytest.mark.parametrize(
    ("fit", "density"), [(fit_laplace, laplace_density), (fit_normal, normal_density)]
)
def test_densities_integrate_to_one(fit, density, rng):
    best = fit(rng.normal(1.0, 2.0, 100))
    x = np.linspace(best.location - 40 * best.scale, best.location + 40 * best.scale, 20001)
    assert np.trapezoid(density(x, best), x) == pytest.approx(1.0, abs=1e-4)


def test_samples_are_recognised(rng):
    laplace = fit_weights(rng.laplace(0.5, 2.0, NUM_SAMPLES))
    assert laplace.better == "Laplace"
    assert laplace.laplace.location == pytest.approx(0.5, abs=0.05)
    assert laplace.laplace.scale == pytest.approx(2.0, abs=0.05)
    # Of a Laplace sample: E log p_laplace - E log p_normal = (log pi - 1) / 2.
    assert laplace.advantage == pytest.approx((math.log(math.pi) - 1) / 2, abs=0.01)
    normal = fit_weights(rng.normal(-0.5, 3.0, NUM_SAMPLES))
    assert normal.better == "normal"
    assert normal.normal.location == pytest.approx(-0.5, abs=0.05)
    assert normal.normal.scale == pytest.approx(3.0, abs=0.05)
    assert normal.num_weights == NUM_SAMPLES


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [1.0, math.nan], [1.0, math.inf]])
@pytest.mark.parametrize("fit", [fit_laplace, fit_normal])
def test_fits_refuse_what_has_no_maximum(fit, values):
    with pytest.raises(ValueError, match="at least two different ones"):
        fit(values)


def test_wilson_interval():
    # Wilson's closed form for no success: z^2 / (n + z^2).
    assert wilson_interval(0, 10) == pytest.approx((0.0, 3.8414588 / 13.8414588))
    assert wilson_interval(10, 10) == pytest.approx((1 - 3.8414588 / 13.8414588, 1.0))
    low, high = wilson_interval(50, 100)
    assert low == pytest.approx(1 - high)
    with pytest.raises(ValueError, match="11 successes in 10 trials"):
        wilson_interval(11, 10)


def test_mcnemar_is_the_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
    # Two-sided, 1 of 6: 2 (1 + 6) / 64.
    assert mcnemar(1, 5) == mcnemar(5, 1) == 14 / 64


def test_mcnemar_of_many_images(monkeypatch):
    """As many as ImageNet may give: binomials that size, each from scratch, would take minutes."""
    tail = sum(math.comb(650, k) for k in range(301))
    want = 2 * tail / 2**650
    monkeypatch.delattr(math, "comb")
    assert mcnemar(300, 350) == want
    # The normal distribution, with a continuity correction.
    assert mcnemar(12_000, 12_500) == pytest.approx(math.erfc(499 / math.sqrt(49_000)), rel=1e-3)


def _classes(rng, spread):
    """Ten classes on a circle, with scatter `spread` = (outwards, sideways)."""
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    outwards = np.stack([np.cos(angles), np.sin(angles)], 1)
    sideways = np.stack([-np.sin(angles), np.cos(angles)], 1)
    labels = np.repeat(np.arange(10), 400)
    scatter = rng.normal(size=(4000, 2)) * spread
    along, across = scatter[:, :1] * outwards[labels], scatter[:, 1:] * sideways[labels]
    return 10 * outwards[labels] + along + across, labels


@pytest.mark.parametrize(
    ("spread", "share"), [((1.0, 1.0), 0.5), ((3.0, 0.0), 1.0), ((2.0, 1.0), 0.8)]
)
def test_radial_share_tells_rays_from_clusters(rng, spread, share):
    features, labels = _classes(rng, spread)
    assert radial_share(features, labels) == pytest.approx(share, abs=0.03)
    # Neither the origin nor the unit matters.
    assert radial_share(7 * features - 100, labels) == pytest.approx(
        radial_share(features, labels), rel=1e-6
    )


def test_radial_share_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(N, D\) and \(N\)"):
        radial_share(np.zeros((3, 2)), np.zeros(4))


def test_features_without_scatter_have_no_radial_share():
    assert radial_share(np.ones((3, 2)), np.array([0, 0, 1])) is None
