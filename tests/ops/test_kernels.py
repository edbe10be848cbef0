"""The operators on a CPU against the float64 reference, for every shape of cases.py.

Run once more per instruction set, with other memory and without the library, by test_variants.py.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import CASES, Case
from closeness import (
    assert_close,
    forward_in_float64,
    input_gradient_in_float64,
    weight_gradient_in_float64,
)
from torchadder.ops.geometry import GRAD_RULES, output_shape, output_size

ops = torch.ops.torchadder


def forward(x, w, b, geometry):
    return ops.adder2d(x, w, b, *geometry, "clip")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case, dtype, poisoned_memory):
    x, w, b = case.draw(dtype)
    want, magnitude = forward_in_float64(x, w, b, case.geometry)
    got = forward(x, w, b, case.geometry)
    assert got.dtype == dtype
    assert_close(got, want, magnitude)


@pytest.mark.parametrize("rule", GRAD_RULES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case, rule, poisoned_memory, monkeypatch):
    x, w, _ = case.draw()
    g = torch.randn_like(forward(x, w, None, case.geometry))
    want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, rule, monkeypatch)
    assert_close(ops.adder2d_backward_input(g, x, w, *case.geometry, rule), want, magnitude, "x")
    want, magnitude = weight_gradient_in_float64(g, x, w, case.geometry, rule)
    assert_close(ops.adder2d_backward_weight(g, x, w, *case.geometry, rule), want, magnitude, "w")


@pytest.mark.parametrize("rule", ["clip", "exact"])
def test_gradients_in_float64(rule, monkeypatch):
    for case in CASES[::4]:
        x, w, _ = case.draw(torch.float64)
        g = torch.randn_like(forward(x, w, None, case.geometry))
        want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, rule, monkeypatch)
        got = ops.adder2d_backward_input(g, x, w, *case.geometry, rule)
        assert_close(got, want, magnitude, f"x, {case}")
        want, magnitude = weight_gradient_in_float64(g, x, w, case.geometry, rule)
        got = ops.adder2d_backward_weight(g, x, w, *case.geometry, rule)
        assert_close(got, want, magnitude, f"w, {case}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype):
    """Rounded once, at the end: equal to the rounded float32 result."""
    case = Case("", (2, 40, 7, 6), (33, 3, 3), padding=(1, 1))
    x, w, _ = case.draw(dtype)
    wide = [x.float(), w.float()]
    assert torch.equal(
        forward(x, w, None, case.geometry), forward(*wide, None, case.geometry).to(dtype)
    )
    g = torch.randn(2, 33, 7, 6).to(dtype)
    for operator in (ops.adder2d_backward_input, ops.adder2d_backward_weight):
        got = operator(g, x, w, *case.geometry, "clip")
        assert got.dtype == dtype
        assert torch.equal(got, operator(g.float(), *wide, *case.geometry, "clip").to(dtype))


@pytest.mark.parametrize("layout", ["channels_last", "expanded", "transposed", "sliced"])
def test_gradient_that_arrives_in_any_layout(layout, monkeypatch):
    case = Case("", (2, 18, 7, 6), (17, 3, 3), padding=(1, 1))
    x, w, _ = case.draw()
    g = Case("", (2, 17, 7, 6), (1, 1, 1), layout=layout).laid_out(torch.randn(2, 17, 7, 6))
    for rule in ("clip", "exact"):
        want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, rule, monkeypatch)
        got = ops.adder2d_backward_input(g, x, w, *case.geometry, rule)
        assert_close(got, want, magnitude)
        want, magnitude = weight_gradient_in_float64(g, x, w, case.geometry, rule)
        got = ops.adder2d_backward_weight(g, x, w, *case.geometry, rule)
        assert_close(got, want, magnitude)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_weight_in_any_layout(layout, monkeypatch):
    case = Case("", (2, 18, 5, 4), (17, 3, 2))
    x, w, _ = case.draw()
    w = Case("", (17, 18, 3, 2), (1, 1, 1), layout=layout).laid_out(w)
    want, magnitude = forward_in_float64(x, w, None, case.geometry)
    assert_close(forward(x, w, None, case.geometry), want, magnitude)
    g = torch.randn_like(want).float()
    for rule in ("clip", "exact"):
        want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, rule, monkeypatch)
        got = ops.adder2d_backward_input(g, x, w, *case.geometry, rule)
        assert_close(got, want, magnitude)
        want, magnitude = weight_gradient_in_float64(g, x, w, case.geometry, rule)
        got = ops.adder2d_backward_weight(g, x, w, *case.geometry, rule)
        assert_close(got, want, magnitude)


def test_results_follow_the_memory_format_of_the_input():
    case = Case("", (2, 18, 7, 6), (17, 3, 3), padding=(1, 1), layout="channels_last")
    x, w, _ = case.draw()
    y = forward(x, w, None, case.geometry)
    assert y.is_contiguous(memory_format=torch.channels_last)
    gx = ops.adder2d_backward_input(y, x, w, *case.geometry, "clip")
    assert gx.is_contiguous(memory_format=torch.channels_last)


# Values that break identities --------------------------------------------------------------------

WIDE = Case("", (2, 32, 6, 7), (48, 3, 3), padding=(1, 1))
NARROW = Case("", (2, 3, 6, 7), (5, 3, 3), padding=(1, 1))


@pytest.mark.parametrize("case", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("offset", [10.0, 1e3, 1e6])
def test_nearly_equal_values_keep_their_digits(case, offset):
    """Where x - w is small against x, |x - w| = 2 max - x - w would lose the difference."""
    x, w, _ = case.draw()
    x, w = offset + x, offset + w
    geometry = case.geometry._replace(padding=(0, 0))
    want, magnitude = forward_in_float64(x, w, None, geometry)
    assert_close(forward(x, w, None, geometry), want, magnitude)


@pytest.mark.parametrize("case", [WIDE, NARROW], ids=["wide", "narrow"])
def test_equal_patches_give_exactly_zero(case):
    w = torch.randn(case.filters[0], case.input[1], 3, 3) * 100
    x = w[2:3].clone()
    y = forward(x, w, None, case.geometry._replace(padding=(0, 0)))
    assert y[0, 2].item() == 0


@pytest.mark.parametrize("case", [WIDE, NARROW], ids=["wide", "narrow"])
def test_sums_that_overflow_only_in_the_identity(case):
    """Sums of x overflow, distances do not."""
    x, w, _ = case.draw()
    x, w = x * 1e30 + 3e37, w * 1e30 + 3e37
    geometry = case.geometry._replace(padding=(0, 0))
    want, magnitude = forward_in_float64(x, w, None, geometry)
    assert_close(forward(x, w, None, geometry), want, magnitude)


def test_distances_that_overflow_only_in_the_identity():
    """Sums of maxima and of |x| do, distances do not."""
    x, w = torch.zeros(1, 32, 1, 1), torch.zeros(64, 32, 1, 1)
    x[0, 0:2], x[0, 16:18] = 2e38, -2e38
    w[:, 0], w[:, 1], w[:, 16], w[:, 17] = 2e38, 1e38, -1e38, -2e38
    want, magnitude = forward_in_float64(x, w, None, NARROW.geometry._replace(padding=(0, 0)))
    assert_close(forward(x, w, None, NARROW.geometry._replace(padding=(0, 0))), want, magnitude)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", ["x", "w"])
@pytest.mark.parametrize("case", [WIDE, NARROW], ids=["wide", "narrow"])
def test_infinities_and_nan_pass_through(case, where, value, monkeypatch):
    x, w, _ = case.draw()
    (x if where == "x" else w)[1, 2, 1, 1] = value
    want, magnitude = forward_in_float64(x, w, None, case.geometry)
    assert_close(forward(x, w, None, case.geometry), want, magnitude)
    g = torch.randn_like(want).float()
    for rule in ("clip", "sign"):
        want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, rule, monkeypatch)
        got = ops.adder2d_backward_input(g, x, w, *case.geometry, rule)
        assert_close(got, want, magnitude, rule)


@pytest.mark.parametrize("rule", GRAD_RULES)
def test_images_of_nothing_but_padding(rule, poisoned_memory, monkeypatch):
    """The input is empty, the output and the gradient of the weight are not."""
    case = Case("", (2, 3, 0, 4), (5, 2, 2), padding=(1, 0), bias=True)
    x, w, b = case.draw()
    want, magnitude = forward_in_float64(x, w, b, case.geometry)
    got = forward(x, w, b, case.geometry)
    assert got.shape == (2, 5, 1, 3)
    assert_close(got, want, magnitude)
    g = torch.randn_like(got)
    want, magnitude = weight_gradient_in_float64(g, x, w, case.geometry, rule)
    assert want.any()
    assert_close(ops.adder2d_backward_weight(g, x, w, *case.geometry, rule), want, magnitude)
    assert ops.adder2d_backward_input(g, x, w, *case.geometry, rule).shape == x.shape


def test_infinity_minus_infinity_is_nan(monkeypatch):
    for case in (WIDE, NARROW):
        x, w, _ = case.draw()
        x[1, 2, 1, 1] = w[1, 2, 1, 1] = float("inf")
        g = torch.randn(2, case.filters[0], 6, 7)
        want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, "clip", monkeypatch)
        assert want[1, 2, 1, 1].isnan()
        got = ops.adder2d_backward_input(g, x, w, *case.geometry, "clip")
        assert_close(got, want, magnitude)


def test_ties_have_zero_sign(monkeypatch):
    x = torch.randint(-2, 3, (2, 18, 6, 6)).float()
    w = torch.randint(-2, 3, (20, 18, 3, 3)).float()
    g = torch.randint(-3, 4, (2, 20, 4, 4)).float()
    geometry = NARROW.geometry._replace(padding=(0, 0))
    for rule in GRAD_RULES:
        want, _ = input_gradient_in_float64(g, x, w, geometry, rule, monkeypatch)
        assert torch.equal(ops.adder2d_backward_input(g, x, w, *geometry, rule).double(), want)
        want, _ = weight_gradient_in_float64(g, x, w, geometry, rule)
        assert torch.equal(ops.adder2d_backward_weight(g, x, w, *geometry, rule).double(), want)


@pytest.mark.parametrize("padding", [(0, 0), (3, 1)])
@pytest.mark.parametrize("rule", ["clip", "exact"])
def test_stride_that_leaves_most_pixels_out(padding, rule, monkeypatch):
    case = Case("", (2, 5, 31, 37), (4, 2, 1), stride=(11, 9), padding=padding, dilation=(4, 1))
    x, w, _ = case.draw()
    g = torch.randn(output_shape(x, w, None, case.geometry))
    want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, rule, monkeypatch)
    got = ops.adder2d_backward_input(g, x, w, *case.geometry, rule)
    assert_close(got, want, magnitude)
    assert (got == 0).double().mean() > 0.9


def test_tiny_differences_have_full_sign():
    x = torch.full((1, 1, 1, 1), 1e-40)
    w = torch.zeros(1, 1, 1, 1)
    one = torch.ones(1, 1, 1, 1)
    gx = ops.adder2d_backward_input(one, x, w, [1, 1], [0, 0], [1, 1], 1, "sign")
    gw = ops.adder2d_backward_weight(one, x, w, [1, 1], [0, 0], [1, 1], 1, "exact")
    assert (gx.item(), gw.item()) == (-1, 1)


# Properties --------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    groups = draw(st.integers(1, 5))
    R, S = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    pairs = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    stride, dilation, padding = draw(pairs(1, 4)), draw(pairs(1, 3)), draw(pairs(0, 5))
    H = draw(st.integers(1, 14))
    W = draw(st.integers(1, 14))
    if (
        min(
            output_size(H, R, stride[0], padding[0], dilation[0]),
            output_size(W, S, stride[1], padding[1], dilation[1]),
        )
        < 1
    ):
        H, W = H + dilation[0] * R, W + dilation[1] * S
    shape = (draw(st.integers(0, 7)), groups * draw(st.integers(1, 37)), H, W)
    filters = (groups * draw(st.integers(1, 70)), R, S)
    layout = draw(st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"]))
    return Case("", shape, filters, stride, padding, dilation, groups, layout, draw(st.booleans()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=problems(), rule=st.sampled_from(GRAD_RULES))
def test_any_problem(case, rule):
    torch.manual_seed(1)
    x, w, b = case.draw()
    want, magnitude = forward_in_float64(x, w, b, case.geometry)
    got = forward(x, w, b, case.geometry)
    assert_close(got, want, magnitude)
    g = torch.randn_like(got)
    with pytest.MonkeyPatch.context() as monkeypatch:
        want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, rule, monkeypatch)
    assert_close(ops.adder2d_backward_input(g, x, w, *case.geometry, rule), want, magnitude, "x")
    want, magnitude = weight_gradient_in_float64(g, x, w, case.geometry, rule)
    assert_close(ops.adder2d_backward_weight(g, x, w, *case.geometry, rule), want, magnitude, "w")


def test_thread_count_does_not_change_a_bit():
    threads = torch.get_num_threads()
    cases = [
        Case("", (5, 19, 17, 16), (70, 3, 3), padding=(1, 1)),
        Case("", (1, 64, 7, 7), (300, 1, 1)),
        Case("", (3, 40, 15, 15), (40, 3, 3), stride=(2, 2), padding=(1, 1), groups=40),
    ]
    try:
        for case in cases:
            x, w, b = case.draw()
            g = torch.randn_like(forward(x, w, b, case.geometry))
            results = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                results.append(
                    [forward(x, w, b, case.geometry)]
                    + [
                        ops.adder2d_backward_input(g, x, w, *case.geometry, rule)
                        for rule in GRAD_RULES
                    ]
                    + [ops.adder2d_backward_weight(g, x, w, *case.geometry, "exact")]
                )
            for other in results[1:]:
                for first, second in zip(results[0], other, strict=True):
                    assert torch.equal(first, second)
    finally:
        torch.set_num_threads(threads)
