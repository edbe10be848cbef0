"""The lp operator on a CPU against its float64 reference, and the reference against autograd.

Run once more per instruction set by the last test.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import torchadder as ta
from cases import CASES, Case
from closeness import assert_close
from torchadder.ops import gpu
from torchadder.ops import reference as plain_reference
from torchadder.ops.geometry import Geometry, output_shape
from torchadder.ops.lp import reference, squares

ops = torch.ops.torchadder
EXPONENTS = [1.25, 1.9375]
CLIPS = pytest.mark.parametrize("clip", [False, True], ids=["true", "clipped"])


def wide(*tensors):
    return [None if t is None else t.double() for t in tensors]


def forward_in_float64(x, w, b, geometry, p):
    """The oracle's output and the magnitude of its terms."""
    x, w, b = wide(x, w, b)
    distance = -reference.adder2d_lp(x, w, None, geometry, p)
    return reference.adder2d_lp(x, w, b, geometry, p), distance + (
        0 if b is None else b.abs()[:, None, None]
    )


def input_gradient_in_float64(g, x, w, geometry, p, clip, monkeypatch):
    g, x, w = wide(g, x, w)
    factor = reference.INPUT_FACTOR[clip]
    monkeypatch.setitem(reference.INPUT_FACTOR, "magnitude", lambda d, p: factor(d, p).abs())
    magnitude = reference.adder2d_lp_backward_input(g.abs(), x, w, geometry, p, "magnitude")
    return reference.adder2d_lp_backward_input(g, x, w, geometry, p, clip), magnitude


def weight_gradient_in_float64(g, x, w, geometry, p, monkeypatch):
    g, x, w = wide(g, x, w)
    want = reference.adder2d_lp_backward_weight(g, x, w, geometry, p)
    derivative = reference.derivative
    with monkeypatch.context() as patch:
        patch.setattr(reference, "derivative", lambda d, p: derivative(d, p).abs())
        return want, reference.adder2d_lp_backward_weight(g.abs(), x, w, geometry, p)


# The reference -----------------------------------------------------------------------------------


def test_reference_on_numbers_worked_out_by_hand():
    x = torch.tensor([[[[1.0, 4.0]]]])
    w = torch.tensor([[[[0.0, 0.0]]], [[[5.0, 4.0]]]])
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1)
    y = reference.adder2d_lp(x, w, torch.tensor([0.0, 10.0]), geometry, 1.5)
    assert y.flatten().tolist() == [-9.0, 2.0]  # 1 + 8; 10 - 8 - 0
    g = torch.ones(1, 2, 1, 1)
    gx = reference.adder2d_lp_backward_input(g, x, w, geometry, 1.5, False)
    assert gx.flatten().tolist() == [-1.5 + 3.0, -3.0 + 0.0]
    gx = reference.adder2d_lp_backward_input(g, x, w, geometry, 1.5, True)
    assert gx.flatten().tolist() == [-1.0 + 1.0, -1.0 + 0.0]
    gw = reference.adder2d_lp_backward_weight(g, x, w, geometry, 1.5)
    assert gw.flatten().tolist() == [1.5, 3.0, -3.0, 0.0]


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_reference_is_the_distance_of_unfolded_patches(p):
    case = Case("", (2, 4, 7, 6), (6, 3, 2), stride=(2, 1), padding=(1, 2), groups=2)
    x, w, _ = case.draw(torch.float64)
    patches = torch.nn.functional.unfold(x, (3, 2), 1, (1, 2), (2, 1))
    patches = patches.reshape(2, 2, 12, -1).transpose(2, 3)
    want = -torch.cdist(patches, w.reshape(2, 3, 12), p=p).pow(p)
    got = reference.adder2d_lp(x, w, None, case.geometry, p)
    torch.testing.assert_close(got, want.transpose(2, 3).reshape(got.shape))


@pytest.mark.parametrize("p", [1.125, 1.75])
def test_reference_gradients_are_derivatives(p):
    case = Case("", (2, 4, 6, 5), (6, 3, 3), stride=(2, 1), padding=(1, 1), groups=2)
    x, w, _ = case.draw(torch.float64)
    x.requires_grad_(), w.requires_grad_()
    patches = torch.nn.functional.unfold(x, 3, 1, 1, (2, 1)).reshape(2, 2, 1, 18, -1)
    y = -(patches - w.reshape(1, 2, 3, 18, 1)).abs().pow(p).sum(3)
    g = torch.randn(output_shape(x, w, None, case.geometry), dtype=torch.float64)
    want = torch.autograd.grad(y.reshape(g.shape), (x, w), g)
    operands = (x.detach(), w.detach(), case.geometry, p)
    torch.testing.assert_close(reference.adder2d_lp_backward_input(g, *operands, False), want[0])
    torch.testing.assert_close(reference.adder2d_lp_backward_weight(g, *operands), want[1])


# The kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case, poisoned_memory):
    for dtype, exponents in (
        (torch.float32, EXPONENTS),
        (torch.float64, [1.5] * (case in CASES[::4])),
    ):
        x, w, b = case.draw(dtype)
        for p in exponents:
            want, magnitude = forward_in_float64(x, w, b, case.geometry, p)
            got = ops.adder2d_lp(x, w, b, *case.geometry, p, False)
            assert got.dtype == dtype
            assert_close(got, want, magnitude, f"p = {p}, {dtype}")


CASES_AND_CLIPS = [(case, False) for case in CASES] + [(case, True) for case in CASES[::3]]


@pytest.mark.parametrize(
    ("case", "clip"),
    CASES_AND_CLIPS,
    ids=[f"{c}-{'clipped' if k else 'true'}" for c, k in CASES_AND_CLIPS],
)
def test_gradients(case, clip, poisoned_memory, monkeypatch):
    p = 1.5 if clip else 1.1875
    x, w, _ = case.draw()
    g = torch.randn_like(ops.adder2d(x, w, None, *case.geometry, "clip"))
    want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, p, clip, monkeypatch)
    got = ops.adder2d_lp_backward_input(g, x, w, *case.geometry, p, clip)
    assert_close(got, want, magnitude, "x")
    want, magnitude = weight_gradient_in_float64(g, x, w, case.geometry, p, monkeypatch)
    got = ops.adder2d_lp_backward_weight(g, x, w, *case.geometry, p, clip)
    assert_close(got, want, magnitude, "w")


@CLIPS
def test_gradients_in_float64(clip, monkeypatch):
    for case in CASES[::5]:
        x, w, _ = case.draw(torch.float64)
        g = torch.randn_like(ops.adder2d(x, w, None, *case.geometry, "clip"))
        want, size = input_gradient_in_float64(g, x, w, case.geometry, 1.5, clip, monkeypatch)
        got = ops.adder2d_lp_backward_input(g, x, w, *case.geometry, 1.5, clip)
        assert_close(got, want, size, f"x, {case}")
        want, size = weight_gradient_in_float64(g, x, w, case.geometry, 1.5, monkeypatch)
        got = ops.adder2d_lp_backward_weight(g, x, w, *case.geometry, 1.5, clip)
        assert_close(got, want, size, f"w, {case}")


def powers(d, p):
    """|d|^p and p |d|^(p-1) sign(d) by the kernels, one tap each."""
    x = d.reshape(1, 1, 1, -1)
    w = torch.zeros(1, 1, 1, 1)
    window = ((1, 1), (0, 0), (1, 1), 1, p, False)
    y = ops.adder2d_lp(x, w, None, *window)
    gx = ops.adder2d_lp_backward_input(torch.ones_like(x), x, w, *window)
    return -y.flatten(), -gx.flatten()


@pytest.mark.parametrize("p", [1 + 2**-20, 1.03125, 1.3, 1.5, 1.77, 2 - 2**-20])
def test_powers_keep_the_bound_over_mantissas_and_exponents(p):
    """csrc/README.md promises a relative error below 2^-21 for normal differences below 2^126."""
    p = torch.tensor(p).item()
    mantissas = 1 + torch.arange(2**16).double() / 2**16
    exponents = torch.randint(-126, 126, (2**16,)).double()
    for d in (mantissas, mantissas / 2, mantissas * 2**exponents):
        d = d.float()
        power, derivative = powers(d, p)
        want = d.double().pow(p)
        normal = (want > 2.0**-126) & (want < 2.0**127)
        assert ((power.double() / want - 1).abs()[normal] < 2**-21).all()
        want = p * d.double().pow(p - 1)
        assert ((derivative.double() / want - 1).abs() < 2**-21).all()


@pytest.mark.parametrize("p", [1.0625, 1.5, 1.9375])
def test_powers_of_what_is_no_ordinary_number(p):
    inf, nan, tiny, most = float("inf"), float("nan"), 1e-45, torch.finfo(torch.float32).max
    power, derivative = powers(torch.tensor([0.0, -0.0, inf, -inf, nan, tiny, -tiny, -most]), p)
    assert power[:4].tolist() == [0, 0, inf, inf]
    assert derivative[:4].tolist() == [0, 0, inf, -inf]
    assert power[4].isnan()
    assert derivative[4].isnan()
    least = p * (2.0**-126) ** (p - 1)
    assert 0 < derivative[5] <= least
    assert -least <= derivative[6] < 0
    assert power[7] == inf
    assert derivative[7] < -(2.0 ** (126 * (p - 1)))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("channels", [3, 32])
def test_infinities_and_nan_pass_through(channels, value):
    x, w = torch.randn(2, channels, 6, 7), torch.randn(20, channels, 3, 3)
    x[1, 2, 3, 3] = value
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
    want, magnitude = forward_in_float64(x, w, None, geometry, 1.5)
    assert_close(ops.adder2d_lp(x, w, None, *geometry, 1.5, False), want, magnitude)
    g = torch.randn_like(want).float()
    got = ops.adder2d_lp_backward_input(g, x, w, *geometry, 1.5, True)
    assert got[1, 2, 3, 3].isfinite() == (value == float("inf"))  # clamped to -1 or 1; NaN stays


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [1.5, 2.0])
def test_half_precision_sums_in_float32(dtype, p):
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
    x, w = torch.randn(2, 20, 7, 6).to(dtype), torch.randn(17, 20, 3, 3).to(dtype)
    y = ops.adder2d_lp(x, w, None, *geometry, p, True)
    assert y.dtype == dtype
    assert torch.equal(y, ops.adder2d_lp(x.float(), w.float(), None, *geometry, p, True).to(dtype))
    g = torch.randn(2, 17, 7, 6).to(dtype)
    got = ops.adder2d_lp_backward_input(g, x, w, *geometry, p, True)
    full = ops.adder2d_lp_backward_input(g.float(), x.float(), w.float(), *geometry, p, True)
    assert torch.equal(got, full.to(dtype))


def test_thread_count_does_not_change_a_bit():
    threads = torch.get_num_threads()
    cases = [
        Case("", (5, 19, 9, 8), (70, 3, 3), padding=(1, 1)),
        Case("", (3, 40, 9, 9), (40, 3, 3), stride=(2, 2), padding=(1, 1), groups=40),
    ]
    try:
        for case in cases:
            x, w, b = case.draw()
            g = torch.randn_like(ops.adder2d(x, w, b, *case.geometry, "clip"))
            window = (*case.geometry, 1.5, False)
            results = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                results.append(
                    (
                        ops.adder2d_lp(x, w, b, *window),
                        ops.adder2d_lp_backward_input(g, x, w, *window),
                        ops.adder2d_lp_backward_weight(g, x, w, *window),
                    )
                )
            for other in results[1:]:
                for first, second in zip(results[0], other, strict=True):
                    assert torch.equal(first, second)
    finally:
        torch.set_num_threads(threads)


# The ends of the range ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_squares(case, monkeypatch):
    """p = 2; the identities' terms are as large as (|x| + |w|)^2 and (|x| + |w|) |g|."""
    x, w, b = case.draw()
    geometry = case.geometry
    got = ops.adder2d_lp(x, w, b, *geometry, 2.0, False)
    want, _ = forward_in_float64(x, w, b, geometry, 2.0)
    size = -reference.adder2d_lp(x.double().abs(), -w.double().abs(), None, geometry, 2.0)
    offset = 0 if b is None else b.double().abs()[:, None, None]
    assert_close(got, want, size + offset, "y")
    assert b is not None or (got <= 0).all()
    g = torch.randn_like(got)
    got = ops.adder2d_lp_backward_input(g, x, w, *geometry, 2.0, False)
    want, _ = input_gradient_in_float64(g, x, w, geometry, 2.0, False, monkeypatch)
    sizes = wide(g.abs(), -x.abs(), w.abs())
    size = reference.adder2d_lp_backward_input(*sizes, geometry, 2.0, False)
    assert_close(got, want, size, "x")
    got = ops.adder2d_lp_backward_input(g, x, w, *geometry, 2.0, True)
    want, size = input_gradient_in_float64(g, x, w, geometry, 2.0, True, monkeypatch)
    assert_close(got, want, size, "x, clipped")
    got = ops.adder2d_lp_backward_weight(g, x, w, *geometry, 2.0, False)
    want = reference.adder2d_lp_backward_weight(*wide(g, x, w), geometry, 2.0)
    sizes = wide(g.abs(), x.abs(), -w.abs())
    assert_close(got, want, reference.adder2d_lp_backward_weight(*sizes, geometry, 2.0), "w")


def test_clipped_squares_take_the_kernels_of_the_adder_layer(monkeypatch):
    """Which serve on a GPU, too."""
    seen = []

    def kernel(g, x, w, geometry, grad):
        seen.append(grad)
        return plain_reference.adder2d_backward_input(g, x, w, geometry, grad)

    monkeypatch.setattr(gpu, "kernels", lambda x: SimpleNamespace(adder2d_backward_input=kernel))
    monkeypatch.setattr(gpu, "run", lambda kernel, fallback, *operands: kernel(*operands))
    x, w = torch.randn(1, 3, 5, 5), torch.randn(4, 3, 3, 3)
    g, geometry = torch.randn(1, 4, 3, 3), Geometry((1, 1), (0, 0), (1, 1), 1)
    got = ops.adder2d_lp_backward_input(g, x, w, *geometry, 2.0, True)
    torch.testing.assert_close(
        got, reference.adder2d_lp_backward_input(g, x, w, geometry, 2.0, True)
    )
    assert seen == ["clip"]


def test_squares_are_never_negative_where_all_digits_cancel():
    x = 1e3 + torch.randn(1, 20, 3, 3) * 1e-4
    y = squares.adder2d(x, x.clone(), None, Geometry((1, 1), (0, 0), (1, 1), 1))
    assert y.item() <= 0


def test_the_ends_are_the_adder_layer_and_the_neighbouring_kernels():
    case = Case("", (2, 18, 7, 6), (33, 3, 3), padding=(1, 1), bias=True)
    x, w, b = case.draw()
    geometry = case.geometry
    assert torch.equal(
        ops.adder2d_lp(x, w, b, *geometry, 1.0, False), ops.adder2d(x, w, b, *geometry, "clip")
    )
    g = torch.randn(2, 33, 7, 6)
    assert torch.equal(
        ops.adder2d_lp_backward_weight(g, x, w, *geometry, 1.0, False),
        ops.adder2d_backward_weight(g, x, w, *geometry, "exact"),
    )
    for end, beside in ((1.0, 1 + 2**-22), (2.0, 2 - 2**-22)):
        near = ops.adder2d_lp(x, w, b, *geometry, beside, False)
        torch.testing.assert_close(
            near, ops.adder2d_lp(x, w, b, *geometry, end, False), rtol=1e-4, atol=1e-3
        )
        near = ops.adder2d_lp_backward_input(g, x, w, *geometry, beside, True)
        at_end = ops.adder2d_lp_backward_input(g, x, w, *geometry, end, True)
        torch.testing.assert_close(near, at_end, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif("TORCHADDER_CPU_CAPABILITY" in os.environ, reason="runs this file again")
@pytest.mark.parametrize("capability", ["avx2", pytest.param("portable", marks=pytest.mark.slow)])
def test_lesser_instruction_sets(capability):
    some = "(true and (channels or depthwise or stride or K)) or (test_forward and groups)"
    chosen = f"(test_gradients and {some}) or powers or thread or infinities"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen],
        env={**os.environ, "TORCHADDER_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert "passed" in result.stdout


def test_the_reference_serves_without_the_library():
    code = (
        "import torch, torchadder as ta\n"
        "x = torch.randn(2, 4, 6, 6, requires_grad=True); w = torch.randn(8, 4, 3, 3)\n"
        "w.requires_grad_()\n"
        "for p in (1.0, 1.5, 2.0):\n"
        "    y = torch.ops.torchadder.adder2d_lp(x, w, None, (1, 1), (1, 1), (1, 1), 1, p, True)\n"
        "    y.sum().backward()\n"
        "print(ta.ops.cpu_library_info()['backend'], tuple(x.grad.shape))\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "TORCHADDER_BACKEND": "reference"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "reference (2, 4, 6, 6)\n", result.stderr


def test_this_installation_has_the_kernels():
    assert ta.ops.cpu_library_info()["backend"] == "cpu"
