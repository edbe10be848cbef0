"""The GPU kernels without a GPU: Triton's interpreter runs them on a CPU, in a process of its own.

The interpreter takes milliseconds for what a GPU does in nanoseconds, so the short form leaves out
the cases with many products; the long form runs all of test_kernels.py.
"""

from pathlib import Path

import pytest

from cases import CASES
from interpreter import ROOT, interpret
from torchadder.ops.geometry import output_size

KERNEL_TESTS = Path(__file__).with_name("test_kernels.py")


def products(case):
    """Rows of tiles times terms of a sum, of the forward and of the input gradient."""
    N, C, H, W = case.input
    O, R, S = case.filters
    P, Q = (
        output_size(size, kernel, stride, padding, dilation)
        for size, kernel, stride, padding, dilation in zip(
            (H, W), (R, S), case.stride, case.padding, case.dilation, strict=True
        )
    )
    if C == case.groups > 1:
        return R * S, R * S
    return -(-N * P * Q // 128) * C * R * S, -(-N * H * W // 128) * O * R * S


def steps(case):
    """Pixels that the programs of the weight gradient of the rule "exact" go through."""
    N, C, H, W = case.input
    O, R, S = case.filters
    tiles = case.groups * -(-C // case.groups // 64) * -(-O // case.groups // 32)
    return N * H * W * R * S * tiles


def few_products():
    """Tests of test_kernels.py that take the interpreter a second at most."""
    for case in CASES:
        forward, backward = products(case)
        if forward <= 180:
            yield f"test_forward[{case}-dtype0]"
        if backward <= 130:
            yield from (f"test_gradients[{case}-{rule}]" for rule in ("clip", "sign", "l2"))
        if backward <= 130 and steps(case) <= 300:
            yield f"test_gradients[{case}-exact]"
    yield from (
        "test_nearly_equal_values_keep_their_digits[1000.0-narrow]",
        "test_equal_patches_give_exactly_zero[narrow]",
        "test_sums_that_overflow_only_in_the_identity[narrow]",
        "test_infinities_and_nan_pass_through[narrow-x-nan]",
        "test_infinities_and_nan_pass_through[narrow-w-nan]",
        "test_infinities_and_nan_pass_through[narrow-x-inf]",
        "test_infinities_and_nan_pass_through[narrow-w--inf]",
        "test_weight_in_any_layout[channels_last]",
        "test_tiny_differences_have_full_sign",
        "test_images_of_nothing_but_padding[clip]",
        "test_images_of_nothing_but_padding[exact]",
    )


def test_kernels_on_small_problems():
    chosen = [f"{KERNEL_TESTS}::{name}" for name in few_products()]
    assert f"{len(chosen)} passed" in interpret(*chosen)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_kernels_on_all_problems():
    # The interpreter truncates where a GPU rounds to bfloat16, and knows no threads.
    left_out = (
        "test_half_precision_sums_in_float32[dtype0]",
        "test_thread_count_does_not_change_a_bit",
    )
    deselected = [f"--deselect={KERNEL_TESTS.relative_to(ROOT)}::{name}" for name in left_out]
    assert "passed" in interpret(str(KERNEL_TESTS), *deselected)
