"""Grids, fixed point, groups and ranges, by hand and by trying everything."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchadder.quantize import Int8Config, QuantizationError
from torchadder.quantize.grids import Grid, fixed_point
from torchadder.quantize.grouping import kmeans
from torchadder.quantize.ranges import choose, clipped_share, histogram_of


def test_a_grid_by_hand():
    grid = Grid.over(-1.0, 3.0, 2)  # steps of 4/3; -1 is 0.75 steps, so the zero point is 1
    assert grid == Grid(4 / 3, 1, 3)
    assert grid.low == pytest.approx(-4 / 3)
    assert grid.high == pytest.approx(8 / 3)
    numbers = torch.tensor([-9.0, -0.7, -0.6, 0.0, 2.1, 9.0])
    assert grid.to_integers(numbers).tolist() == [0, 0, 1, 1, 3, 3]
    assert grid.rounded(torch.tensor([0.0])).tolist() == [0.0]
    assert Grid.over(0.0, 2.55, 8) == Grid(pytest.approx(0.01), 0, 255)


@given(
    low=st.floats(-100, 0),
    high=st.floats(0.01, 100),
    bits=st.integers(2, 8),
    part=st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_numbers_inside_are_off_by_half_a_step_at_most(low, high, bits, part):
    grid = Grid.over(low, high, bits)
    number = grid.low + part * (grid.high - grid.low)
    off = abs(float(grid.rounded(torch.tensor([number], dtype=torch.float64))) - number)
    assert off <= grid.scale * (0.5 + 1e-9)
    assert 0 <= grid.zero_point <= grid.levels == 2**bits - 1


def test_fixed_point_is_the_nearest_integer():
    random = torch.Generator().manual_seed(0)
    factor = torch.randn(50, generator=random, dtype=torch.float64) * 0.01
    constant = torch.randn(50, generator=random, dtype=torch.float64) * 100
    how = fixed_point(factor, constant, -(2**31), 2**31 - 1, residual_factor=-0.3)
    assert how.multiplier.abs().max() <= 2**31 - 1
    sums = torch.randint(-(2**20), 2**20, (200, 50), generator=random)
    residual = torch.randint(0, 256, (200, 50), generator=random)
    got = (sums * how.multiplier + how.offset + how.residual_multiplier * residual) >> how.shift
    want = sums * factor + constant - 0.3 * residual
    # A multiplier is off by half of 2^-shift, the result by that and half a step of rounding.
    off = (2**20 + 255) * 0.5 * 2.0**-how.shift
    assert (got - want).abs().max() <= 0.5 + off + 1e-9
    assert off < 0.01


def test_the_shift_is_the_largest_possible():
    one = torch.tensor([1.0], dtype=torch.float64)
    how = fixed_point(one, 0 * one, 0, 255)
    assert (how.shift, how.multiplier.item(), how.offset.item()) == (30, 2**30, 2**29)
    small = fixed_point(one * 2.0**-60, 0 * one, 0, 255)
    assert small.shift == 60  # the offset's half and the zero points leave no more
    with pytest.raises(QuantizationError, match=r"a factor of 1e\+12 does not fit 32 bits"):
        fixed_point(one * 1e12, one, 0, 255)
    with pytest.raises(QuantizationError, match="not finite"):
        fixed_point(one * torch.nan, one, 0, 255)


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_kmeans_is_the_best_of_all_divisions(num_groups):
    numbers = torch.rand(8, generator=torch.Generator().manual_seed(num_groups))
    plain = numbers.tolist()

    def cost(groups):
        means = [sum(plain[i] for i in group) / len(group) for group in groups]
        return sum(
            (plain[i] - mean) ** 2 for group, mean in zip(groups, means, strict=True) for i in group
        )

    groups = [group.tolist() for group in kmeans(numbers, num_groups)]
    assert len(groups) == num_groups
    assert sorted(itertools.chain(*groups)) == list(range(8))
    largest = [max(plain[i] for i in group) for group in groups]
    assert largest == sorted(largest)
    assert all(group == sorted(group) for group in groups)
    best = min(
        cost([[i for i in range(8) if labels[i] == k] for k in range(num_groups)])
        for labels in itertools.product(range(num_groups), repeat=8)
        if len(set(labels)) == num_groups
    )
    assert cost(groups) == pytest.approx(best, rel=1e-5, abs=1e-7)


def test_kmeans_of_few_different_numbers():
    groups = kmeans(torch.tensor([2.0, 1.0, 2.0]), 4)
    assert [g.tolist() for g in groups] == [[1], [0, 2]]


def test_ranges():
    numbers = torch.cat([torch.linspace(-1, 2, 9999), torch.tensor([50.0])])
    histogram = histogram_of(numbers)
    assert float(histogram.counts.sum()) == 10_000
    assert choose(histogram, Int8Config(range="max"), 8) == (-1.0, 50.0)
    low, high = choose(histogram, Int8Config(range="percentile", percentile=0.99), 8)
    assert low == -1.0
    assert high == pytest.approx(0.99 * 3 - 1, abs=0.05)
    # One number of 10,000 at 50 is worth a range of 51 in 255 steps, but not in 3.
    assert choose(histogram, Int8Config(), 8)[1] > 45
    assert choose(histogram, Int8Config(), 2)[1] < 5
    assert clipped_share(histogram, -0.5, 2.5) == pytest.approx(1 / 6, abs=0.01)
    # Filters that are not clamped must fit the range, those that are need not.
    filters = torch.tensor([-7.0, 0.5])
    wide = Int8Config(range="max", clamp=False)
    assert choose(histogram, wide, 8, weights=filters) == (-7.0, 50.0)
    assert choose(histogram, Int8Config(range="max"), 8, weights=filters) == (-1.0, 50.0)


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_the_range_by_mse_has_the_least_error_of_all_candidates(bits):
    numbers = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).relu()
    chosen = choose(histogram_of(numbers), Int8Config(), bits)

    def error(high):
        grid = Grid.over(0.0, high, bits)
        return float((grid.rounded(numbers) - numbers).square().mean())

    largest = float(numbers.max())
    errors = [error(largest * part / 20) for part in range(1, 21)]
    assert error(chosen[1]) <= min(errors) * 1.01
    assert chosen[0] == 0


def test_positive_values_begin_at_zero():
    low, high = choose(histogram_of(torch.tensor([2.0, 3.0])), Int8Config(range="max"), 8)
    assert (low, high) == (0.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 9}, r"bits must be within 2 .. 8, got 9"),
        ({"bits": 1}, r"bits must be within 2 .. 8, got 1"),
        ({"range": "best"}, r"range must be one of max, percentile, mse, got 'best'"),
        ({"percentile": 0.0}, r"percentile must be above 0 and at most 1, got 0.0"),
        ({"groups": 0}, r"groups must be at least 1, got 0"),
        ({"groups": 4, "clamp": False}, r"groups = 4 want clamp = True, got False"),
        ({"first": "bf16"}, r"first must be int8 or float, got 'bf16'"),
    ],
)
def test_bad_configs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Int8Config(**arguments)
