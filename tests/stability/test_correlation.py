"""Variances of outputs over dependent inputs, against sampling and the operator itself."""

import math

import pytest
import torch

import torchadder as ta
from torchadder.stability import (
    Normal,
    adder_filter_moments,
    gaussian_adder_variance,
    response_variance,
)

Z = 4.5


@pytest.fixture
def case():
    """Means, covariances and filters of 12 taps on a line, neighbours alike."""
    places = torch.arange(12, dtype=torch.float64)
    std = 0.5 + places / 12
    correlation = 0.8 ** (places[:, None] - places).abs()
    covariance = correlation * torch.outer(std, std)
    mean = torch.linspace(-0.5, 1.0, 12, dtype=torch.float64)
    weight = torch.randn(4, 12, dtype=torch.float64)
    weight[1] -= 2  # most inputs are above these
    return mean, covariance, weight


def sample(mean, covariance, count):
    return (
        mean
        + torch.randn(count, len(mean), dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    )


def assert_variance_is(outputs, want, width):
    """The sample variance is `want` within Z of its standard error, which is below `width`."""
    centred = outputs - outputs.mean()
    variance = float(centred.square().mean())
    error = math.sqrt(float(centred.pow(4).mean()) - variance**2) / math.sqrt(len(outputs))
    assert Z * error < width * variance
    assert abs(variance - float(want)) < Z * error


def test_series_for_jointly_normal_inputs(case):
    mean, covariance, weight = case
    want = gaussian_adder_variance(mean, covariance, weight, order=60)
    outputs = ta.functional.adder_linear(sample(mean, covariance, 100_000), weight)
    for o in range(4):
        assert_variance_is(outputs[:, o], want[o], 0.03)
    # The taps on their own are far off: the test above sees the correlation.
    alone = gaussian_adder_variance(mean, covariance.diagonal().diag(), weight)
    assert (want > 1.2 * alone).all()


def test_independent_inputs_leave_the_diagonal(case):
    _, _, weight = case
    got = gaussian_adder_variance(
        torch.full((12,), 0.3), 1.44 * torch.eye(12), weight.float(), order=1
    )
    _, want = adder_filter_moments(Normal(0.3, 1.2), weight.float())
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_first_order_is_the_response_to_x(case):
    mean, covariance, weight = case
    std = covariance.diagonal().sqrt()
    slope = torch.erf((mean - weight) / (std * math.sqrt(2)))  # E sign(x - w)
    variance = torch.stack(
        [
            adder_filter_moments(Normal(float(m), float(s)), weight[:, k : k + 1])[1]
            for k, (m, s) in enumerate(zip(mean, std, strict=True))
        ],
        1,
    )
    got = response_variance(covariance, slope, variance)
    want = gaussian_adder_variance(mean, covariance, weight, order=1)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    # What it leaves out is of second order: halved correlations leave a quarter of it.
    own = covariance.diagonal().diag()
    rests = []
    for factor in (0.2, 0.1):
        weak = own + factor * (covariance - own)
        rest = gaussian_adder_variance(mean, weak, weight) - response_variance(
            weak, slope, variance
        )
        rests.append(rest)
    assert (rests[1] > 0).all()
    torch.testing.assert_close(rests[0] / rests[1], torch.full_like(rests[0], 4), rtol=0.1, atol=0)


def test_the_response_is_exact_for_a_convolution(case):
    mean, covariance, weight = case
    x = sample(mean, covariance, 2000)
    covariance = x.T.cov(correction=0)
    variance = covariance.diagonal() * weight.square()
    got = response_variance(covariance, weight, variance)
    torch.testing.assert_close(got, (x @ weight.T).var(0, correction=0), rtol=1e-10, atol=0)


def test_one_tap_twice():
    """Two equal inputs with one weight: twice |x - w|, four times its variance."""
    covariance = torch.full((2, 2), 0.81, dtype=torch.float64)
    weight = torch.tensor([[0.4, 0.4]])
    got = gaussian_adder_variance(torch.zeros(2), covariance, weight, order=5_000)
    _, alone = adder_filter_moments(Normal(0.0, 0.9), weight[:, :1])
    assert float(got) == pytest.approx(4 * float(alone), rel=3e-3)


def test_what_is_refused():
    with pytest.raises(ValueError, match="covariance must have a positive diagonal"):
        gaussian_adder_variance(torch.zeros(2), torch.zeros(2, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        gaussian_adder_variance(torch.zeros(2), torch.eye(2), torch.zeros(1, 2), order=0)
