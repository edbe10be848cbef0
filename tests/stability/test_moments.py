"""The formulas of stability.moments against sampling, closed forms and limits worked out by hand.

A sampled estimate may miss its mean by Z times its own standard deviation, which is estimated from
the samples' higher moments; with a fixed seed and Z = 4.5 a right formula passes. Every bound is
also checked to be narrow, so that a formula that is wrong by a few percent fails.
"""

import math

import pytest
import torch

import torchadder as ta
from torchadder.stability import (
    Laplace,
    Normal,
    Rectified,
    adder_filter_moments,
    adder_output_moments,
    conv_output_moments,
    mean_distance,
)
from torchadder.stability.distributions import grid

Z = 4.5
NUM_SAMPLES = 400_000

INPUTS = [
    Normal(),
    Normal(0.7, 0.3),
    Laplace(),
    Laplace(-0.5, 2.0),
    Rectified(Normal()),
    Rectified(Normal(0.4, 1.2)),
    Rectified(Laplace(-0.3, 0.7)),
]
WEIGHTS = [Normal(), Normal(-0.4, 1.5), Laplace(), Laplace(0.6, 0.25)]


def draw(distribution, count):
    if isinstance(distribution, Rectified):
        return draw(distribution.base, count).clamp_min(0)
    if isinstance(distribution, Normal):
        return distribution.mean + distribution.std * torch.randn(count, dtype=torch.float64)
    halves = torch.rand(2, count, dtype=torch.float64).log()  # two exponentials: their difference
    return distribution.mean + distribution.scale * (halves[0] - halves[1])


def assert_mean_is(samples, want, width):
    """The samples' mean is `want` within Z standard errors, and these are below `width`."""
    error = float(samples.std()) / math.sqrt(len(samples))
    assert Z * error < width
    assert abs(float(samples.mean()) - want) < Z * error


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
@pytest.mark.parametrize("inputs", INPUTS, ids=repr)
def test_adder_moments_are_those_of_samples(inputs, weights):
    x, other_x, w = (draw(one, NUM_SAMPLES) for one in (inputs, inputs, weights))
    got = adder_output_moments(inputs, weights, 3)
    size = inputs.variance + weights.variance
    distance, other = (x - w).abs(), (other_x - w).abs()
    assert_mean_is(-3 * distance, got.mean, 0.05 * math.sqrt(size))
    # Two draws of the data for the same weight: half their squared difference has as its mean the
    # variance over the data, their product that of the means by weight.
    assert_mean_is(3 * (distance - other).square() / 2, got.data_variance, 0.06 * size)
    centred = 3 * (distance + got.mean / 3) * (other + got.mean / 3)
    assert_mean_is(centred, got.filter_variance, 0.06 * size)
    assert_mean_is(3 * (distance + got.mean / 3).square(), got.variance, 0.09 * size)


@pytest.mark.parametrize("weights", WEIGHTS[1::2], ids=repr)
@pytest.mark.parametrize("inputs", INPUTS[1::2], ids=repr)
def test_conv_moments_are_those_of_samples(inputs, weights):
    x, other_x, w = (draw(one, NUM_SAMPLES) for one in (inputs, inputs, weights))
    got = conv_output_moments(inputs, weights, 3)
    mean = got.mean / 3
    width = 0.06 * (inputs.variance + inputs.mean**2) * (weights.variance + weights.mean**2)
    assert_mean_is(3 * x * w, got.mean, width**0.5)
    assert_mean_is(3 * ((x - other_x) * w).square() / 2, got.data_variance, 2 * width)
    assert_mean_is(3 * (x * w - mean) * (other_x * w - mean), got.filter_variance, 2 * width)


@pytest.mark.parametrize("inputs", INPUTS, ids=repr)
def test_moments_of_the_inputs_themselves(inputs):
    x = draw(inputs, NUM_SAMPLES)
    assert_mean_is(x, inputs.mean, 0.03 * inputs.variance**0.5)
    assert_mean_is((x - inputs.mean).square(), inputs.variance, 0.04 * inputs.variance)


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
@pytest.mark.parametrize("inputs", INPUTS[:4], ids=repr)
def test_closed_forms_and_quadrature_agree(inputs, weights):
    """`mean_distance` of the four combinations never sees the grid, so the grid is right too."""
    points, factors = grid(weights, inputs)
    assert float(factors.sum()) == pytest.approx(1, rel=1e-13)
    got = float(factors @ inputs.mean_distance(points))
    assert got == pytest.approx(mean_distance(inputs, weights), rel=1e-13)
    got = adder_output_moments(inputs, weights, 1)
    offset = inputs.mean - weights.mean
    want = inputs.variance + weights.variance + offset**2 - got.mean**2
    assert got.variance == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.3, 2.0), (2.0, 1.9999999)])
@pytest.mark.parametrize("offset", [0.0, 0.8, -5.0])
def test_laplace_by_the_difference_of_two_exponentials(a, b, offset):
    want = Laplace(offset, a).mean_distance(torch.tensor(0.0, dtype=torch.float64))
    if a == b:
        d = abs(offset)
        want = d + (3 * a + d) / 2 * math.exp(-d / a)
    elif abs(a - b) > 0.1:
        d = abs(offset)
        terms = a**3 * math.exp(-d / a) - b**3 * math.exp(-d / b)
        want = d + terms / (a**2 - b**2)
    else:
        want = mean_distance(Laplace(0.0, a), Laplace(offset, a))
    got = mean_distance(Laplace(offset, a), Laplace(0.0, b))
    assert got == pytest.approx(float(want), rel=1e-7)
    assert got == mean_distance(Laplace(0.0, b), Laplace(offset, a))


def test_normals_of_mean_zero():
    """E|d d'| of two normals with correlation r is (2/pi) s^2 (sqrt(1 - r^2) + r asin r)."""
    for s_x, s_w in ((1.0, 1.0), (0.2, 3.0), (5.0, 0.1)):
        got = adder_output_moments(Normal(0.0, s_x), Normal(0.0, s_w), 9)
        s2 = s_x**2 + s_w**2
        r = s_w**2 / s2
        between = 2 / math.pi * (math.sqrt(1 - r**2) + r * math.asin(r))
        assert got.mean == pytest.approx(-9 * math.sqrt(2 * s2 / math.pi), rel=1e-13)
        assert got.variance == pytest.approx(9 * (1 - 2 / math.pi) * s2, rel=1e-12)
        assert got.data_variance == pytest.approx(9 * s2 * (1 - between), rel=1e-9)


def test_laplace_inputs_of_mean_zero():
    """Of `m(w) = |w| + a exp(-|w|/a)` the square integrates in closed form over both weights."""
    a, b, s = 0.7, 1.3, 1.1
    square = 2 * b**2 + 2 * a**3 * b / (a + b) ** 2 + a**3 / (a + 2 * b)
    got = adder_output_moments(Laplace(0.0, a), Laplace(0.0, b), 1)
    assert got.data_variance == pytest.approx(2 * a**2 + 2 * b**2 - square, rel=1e-12)

    def scaled(z):
        return float(torch.special.erfcx(torch.tensor(z, dtype=torch.float64)))

    first = s * math.sqrt(2 / math.pi) - s**2 / a * scaled(s / (a * math.sqrt(2)))
    square = s**2 + 2 * a * first + a**2 * scaled(math.sqrt(2) * s / a)
    got = adder_output_moments(Laplace(0.0, a), Normal(0.0, s), 1)
    assert got.data_variance == pytest.approx(2 * a**2 + s**2 - square, rel=1e-12)


def test_half_normal_inputs():
    """With mean 0, Z > 0 halves `E|Z - W|` by symmetry; the other half is E|W|."""
    got = mean_distance(Rectified(Normal(0.0, 1.5)), Normal(0.0, 2.0))
    assert got == pytest.approx(math.sqrt(2 / math.pi) * (2.0 + 2.5) / 2, rel=1e-12)


@pytest.mark.parametrize("inputs", INPUTS, ids=repr)
def test_limits(inputs):
    origin = torch.zeros((), dtype=torch.float64)
    # Weights that are all 0: |x|. Far from all inputs |x - w| = +-(x - w): the variance of x.
    near = adder_output_moments(inputs, Normal(0.0, 1e-6), 7)
    size = float(inputs.mean_distance(origin))
    want = 7 * (inputs.variance + inputs.mean**2 - size**2)
    assert near.data_variance == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert near.filter_variance == pytest.approx(0, abs=1e-10)
    far = adder_output_moments(inputs, Normal(1000.0, 1.0), 7)
    assert far.data_variance == pytest.approx(7 * inputs.variance, rel=1e-6)
    assert far.filter_variance == pytest.approx(7, rel=1e-6)
    assert far.mean == pytest.approx(-7 * (1000 - inputs.mean), rel=1e-9)
    # Hardly any inputs: |w|.
    scale = {Normal: "std", Laplace: "scale"}.get(type(inputs))
    if scale:
        narrow = adder_output_moments(type(inputs)(0.0, 1e-4), Normal(), 7)
        assert narrow.filter_variance == pytest.approx(7 * (1 - 2 / math.pi), rel=1e-6)


def test_data_variance_stays_between_its_bounds():
    """For normal x of mean 0 between (1 - 2/pi) K Var x and K Var x, however wide the weights."""
    values = [
        adder_output_moments(Normal(), Normal(0.0, 10.0**n), 1).data_variance for n in range(-4, 5)
    ]
    assert values == sorted(values)
    assert values[0] == pytest.approx(1 - 2 / math.pi, rel=1e-6)
    assert values[-1] == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("inputs", [INPUTS[1], INPUTS[3], INPUTS[5]], ids=repr)
def test_filters_of_an_adder_layer(inputs):
    layer = ta.nn.AdderLinear(40, 5, bias=False, dtype=torch.float64)
    x = draw(inputs, 20_000 * 40).view(20_000, 40)
    with torch.no_grad():
        outputs = layer(x)
    means, variances = adder_filter_moments(inputs, layer.weight)
    for o in range(5):
        assert_mean_is(outputs[:, o], float(means[o]), 0.04 * float(variances[o]) ** 0.5)
        squares = (outputs[:, o] - means[o]).square()
        assert_mean_is(squares, float(variances[o]), 0.05 * float(variances[o]))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-3.0, 1.2), (2.0, 0.1), (-0.5, 40.0)])
def test_rectified_normal_is_found_by_its_moments(mean, std):
    want = Rectified(Normal(mean, std))
    got = Rectified.from_moments(want.mean, want.variance)
    assert got.mean == pytest.approx(want.mean, rel=1e-9)
    assert got.variance == pytest.approx(want.variance, rel=1e-9)
    if mean / std < 5:  # above, nothing is cut off and many Z look alike
        assert got.base.mean == pytest.approx(mean, rel=1e-6, abs=1e-9)
        assert got.base.scale == pytest.approx(std, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Normal(0.0, 0.0), ValueError, "std must be a positive finite number, got 0.0"),
        (lambda: Laplace(math.nan), ValueError, "mean must be a finite number, got nan"),
        (lambda: Laplace(0.0, -1.0), ValueError, "scale must be a positive finite number"),
        (lambda: Rectified.from_moments(-1.0, 1.0), ValueError, "mean must be a positive"),
        (lambda: adder_output_moments(Normal(), Normal(), 0), ValueError, "num_taps must be at"),
        (
            lambda: conv_output_moments(Normal(), Rectified(Normal()), 1),
            TypeError,
            "weights must be Normal or Laplace, got Rectified",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
