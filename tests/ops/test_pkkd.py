"""The sums behind PKKD's distance: the C++ kernels against the reference in float64.

Run once more per instruction set by the last test.
"""

import os
import subprocess
import sys

import pytest
import torch

import torchadder as ta
from torchadder.ops import pkkd
from torchadder.ops.pkkd import Sides, cpu, dispatch, reference

ops = torch.ops.torchadder

# Whole vectors and parts of one, of 16, 8 and 4 lanes; tiles, blocks and tasks begun and filled.
CHANNELS = [1, 3, 16, 17, 40, 64, 128]
POSITIONS = [1, 2, 7, 255, 1024, 1025, 40_000]
RATES = [(None, None), (0.03, None), (None, 0.02), (0.03, 0.02)]
LIMIT = 1.5  # Exponents have a spread of 0.6: some are clamped.

needs_library = pytest.mark.skipif(cpu.library() is None, reason="the library is not in use")


def draw(channels, positions, rates=(0.03, 0.02), dtype=torch.float32):
    generator = torch.Generator().manual_seed(channels * 100_003 + positions)

    def output(mean, deviation):
        rows = torch.randn(positions, channels, generator=generator, dtype=dtype)
        return (rows * deviation + mean).mT.unsqueeze(0)

    student, teacher = output(-300, 20), output(5, 30)
    return Sides(
        student,
        teacher,
        student.mean(2).mT,
        teacher.mean(2).mT,
        *(None if rate is None else torch.tensor(rate, dtype=dtype) for rate in rates),
        LIMIT,
    )


def draw_gradients(channels):
    generator = torch.Generator().manual_seed(channels)
    matrix = torch.randn(2 * channels, 2 * channels, generator=generator)
    offset = torch.randn(2 * channels, generator=generator)
    return matrix + matrix.mT, offset, torch.randn(channels, generator=generator)


def wide(operands):
    return [value.double() if isinstance(value, torch.Tensor) else value for value in operands]


def error(got, want):
    return ((got - want).abs().max() / want.abs().max().clamp(min=1e-30)).item()


@needs_library
@pytest.mark.parametrize("rates", RATES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_sums_are_those_of_the_reference_in_float64(channels, rates):
    for positions in POSITIONS:
        sides = draw(channels, positions, rates)
        want_sums, want_products = reference.sums(Sides(*wide(sides)))
        sums, products = ops.pkkd_sums(*sides)
        assert sums.dtype == products.dtype == torch.float64
        # At most 512 terms in float32, each of values that are good to 2^-23: against the spread of
        # each side, since those of a centred one add up to nearly nothing.
        spreads = want_products[:2].amax((1, 2)).sqrt()
        bounds = torch.stack([spreads[0], spreads[1]])[:, None] * positions**0.5
        assert ((sums - want_sums).abs() <= 4e-6 * bounds).all()
        sizes = torch.stack([spreads[0] ** 2, spreads[1] ** 2, spreads[0] * spreads[1]])
        assert ((products - want_products).abs().amax((1, 2)) <= 4e-6 * sizes).all()


@needs_library
@pytest.mark.parametrize("rates", RATES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_gradient_is_that_of_the_reference_in_float64(channels, rates):
    matrix, offset, shift = draw_gradients(channels)
    wants_teacher = rates[1] is not None
    for positions in POSITIONS:
        sides = draw(channels, positions, rates)
        operands = (matrix, offset, shift)
        want, want_rate_sums = reference.gradient(
            Sides(*wide(sides)), *wide(operands), wants_teacher
        )
        got, rate_sums = ops.pkkd_gradient(*sides, *operands, wants_teacher)
        assert got.stride() == want.stride()
        assert error(got, want) < 4e-6
        # A sum of terms of both signs: in units of their number and spread.
        terms = want.abs().max() * 2 * LIMIT * (positions * channels) ** 0.5
        assert (rate_sums - want_rate_sums).abs().max() <= 4e-6 * max(
            terms, want_rate_sums.abs().max()
        )
        assert rate_sums[0] == 0 or rates[0] is not None
        assert rate_sums[1] == 0 or wants_teacher


@needs_library
def test_kernel_values_over_the_whole_range():
    """One position, one channel: its product with the teacher's 1 is the kernel value itself."""
    values = torch.cat([torch.linspace(-8, 8, 997), torch.tensor([0.0, 1e-30, -1e-30])])
    for y in values:
        one = torch.ones(1, 1, 1)
        zero, rate = torch.zeros(1, 1), torch.tensor(1.0)
        _, products = ops.pkkd_sums(y.view(1, 1, 1), one, zero, zero, rate, None, 6.0)
        want = torch.exp(y.double().clamp(-6, 6)) - 1
        assert products[2] == pytest.approx(want.item(), rel=2e-6, abs=2e-7)


def from_bits(bits):
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32).item()


@needs_library
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, -1, 0x7F800000, -0x800000], ids=hex)
@pytest.mark.parametrize("channel", [0, 16])
def test_values_that_are_not_finite(bits, channel):
    """NaN shows in the sums of its channel alone; an infinite output has a clamped exponent."""
    sides, value = draw(17, 50), from_bits(bits)
    sides.student[0, channel, 3:4].view(torch.int32).fill_(bits)
    sums, products = ops.pkkd_sums(*sides)
    want_sums, want_products = reference.sums(sides)
    torch.testing.assert_close(sums, want_sums, equal_nan=True, rtol=1e-4, atol=1e-3)
    assert torch.equal(products.isnan(), want_products.isnan())
    assert products.isnan().any() == (value != value)


@needs_library
def test_equal_bits_for_every_number_of_threads():
    sides, threads = draw(40, 30_000), torch.get_num_threads()
    operands = draw_gradients(40)
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append([*ops.pkkd_sums(*sides), *ops.pkkd_gradient(*sides, *operands, True)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for value, first in zip(other, results[0], strict=True):
            assert torch.equal(value, first)


@needs_library
def test_whatever_the_default_dtype_is():
    sides, operands = draw(5, 40), draw_gradients(5)
    want = ops.pkkd_gradient(*sides, *operands, True)
    default = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            for value, wanted in zip(ops.pkkd_gradient(*sides, *operands, True), want, strict=True):
                assert torch.equal(value, wanted)
                assert value.dtype == torch.float32
    finally:
        torch.set_default_dtype(default)


def test_opcheck():
    sides = draw(5, 30)
    torch.library.opcheck(ops.pkkd_sums.default, tuple(sides))
    arguments = (*sides, *draw_gradients(5), True)
    torch.library.opcheck(ops.pkkd_gradient.default, arguments)


OTHERS = {
    "wide": draw(129, 3),
    "float64": draw(5, 3, dtype=torch.float64),
    "other layout": draw(5, 3)._replace(teacher=draw(5, 3).teacher.contiguous()),
    "two samples": Sides(*(t.expand(2, -1, -1) for t in draw(5, 3)[:2]), *draw(5, 3)[2:]),
    "large limit": draw(5, 3)._replace(limit=100.0),
}


def test_the_kernels_serve_narrow_rows(monkeypatch):
    asked = []
    monkeypatch.setattr(dispatch.cpu, "library", lambda: asked.append(True))
    sides = draw(128, 3)
    results = pkkd.sums(sides)
    assert asked
    # Without the library the operators fall back on the reference.
    for value, wanted in zip(results, reference.sums(sides), strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.parametrize("sides", OTHERS.values(), ids=OTHERS)
def test_nothing_else_reaches_the_kernels(sides, monkeypatch):
    """Neither by the functions nor by the operators themselves."""
    monkeypatch.setattr(dispatch.cpu, "library", lambda: pytest.fail("the kernels were asked for"))
    channels, dtype = sides.student.shape[1], sides.student.dtype
    operands = [value.to(dtype) for value in draw_gradients(channels)]
    for sums in (pkkd.sums(sides), ops.pkkd_sums(*sides)):
        for value, wanted in zip(sums, reference.sums(sides), strict=True):
            assert torch.equal(value, wanted)
    want = reference.gradient(sides, *operands, True)
    for gradient in (
        pkkd.gradient(sides, *operands, True),
        ops.pkkd_gradient(*sides, *operands, True),
    ):
        for value, wanted in zip(gradient, want, strict=True):
            assert torch.equal(value, wanted)


def test_different_shapes_do_not_reach_the_kernels():
    with pytest.raises(RuntimeError):
        ops.pkkd_sums(*draw(5, 3)._replace(teacher=draw(5, 2).teacher))


def test_compiles_with_channels_last():
    alignment = ta.distill.KernelAlignment(
        5, ta.distill.LaplacianKernel(), ta.distill.GaussianKernel()
    )
    outputs = [
        torch.randn(4, 5, 6, 7).to(memory_format=torch.channels_last) * size for size in (20, 3)
    ]
    student, teacher = outputs[0].requires_grad_(), outputs[1]
    alignment(student, teacher)
    want = torch.autograd.grad(alignment(student, teacher), [student, *alignment.parameters()])
    compiled = torch.compile(alignment, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(student, teacher), [student, *alignment.parameters()])
    for value, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(value, wanted)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()


@needs_library
@pytest.mark.parametrize(
    "environment",
    [
        {"TORCHADDER_CPU_CAPABILITY": "avx2"},
        {"TORCHADDER_CPU_CAPABILITY": "portable"},
        {"MALLOC_PERTURB_": "1"},
    ],
    ids=["avx2", "portable", "dirty memory"],
)
def test_other_instruction_sets_and_dirty_memory(environment):
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__,
         "-k", "reference or whole_range or finite or threads"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
    assert "passed" in result.stdout
