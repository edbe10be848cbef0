"""The fast distance equals the plain formula, gradients included."""

import copy
import itertools

import pytest
import torch

from torchadder.distill import EXPONENT_LIMIT, GaussianKernel, KernelAlignment, LaplacianKernel
from torchadder.distill.moments import kernel_moments
from torchadder.ops.pkkd import reference


def build(channels, *, kernel, linear_map, dtype):
    alignment = KernelAlignment(
        channels,
        LaplacianKernel() if kernel else None,
        GaussianKernel() if kernel else None,
        linear_map=linear_map,
    ).to(dtype)
    if linear_map:
        with torch.no_grad():
            alignment.student_map += 0.3 * torch.randn(channels, channels)
    return alignment


def outputs(channels, shape, dtype, size=33):
    student = torch.randn(size, channels, *shape, dtype=dtype) * 5 - 300
    teacher = torch.randn(size, channels, *shape, dtype=dtype) * 2 + 0.2 * student
    student[0] *= 1.5  # far beyond the limit of the exponent, on both of its sides
    teacher[1] += 90
    return student.requires_grad_(), teacher


def results(function, alignment, student, teacher):
    loss = function(student, teacher)
    return loss, *torch.autograd.grad(loss, [student, *alignment.parameters()])


@pytest.fixture(params=[100, 10**9], ids=["many chunks", "one chunk"])
def chunk(request, monkeypatch):
    monkeypatch.setitem(reference.CHUNK_ELEMENTS, "cpu", request.param)


CASES = list(
    itertools.product([(5, (7, 7)), (6, (4,)), (9, (1, 1)), (3, ())], [False, True], [False, True])
)


@pytest.mark.parametrize(("sizes", "kernel", "linear_map"), CASES)
def test_equals_the_plain_formula_in_double_precision(chunk, sizes, kernel, linear_map):
    alignment = build(sizes[0], kernel=kernel, linear_map=linear_map, dtype=torch.float64)
    student, teacher = outputs(*sizes, torch.float64)
    alignment(student, teacher)  # sets the scales
    want = results(alignment.specification, alignment, student, teacher)
    got = results(alignment, alignment, student, teacher)
    assert len(got) == 2 + 2 * kernel + linear_map
    for value, wanted in zip(got, want, strict=True):
        # A sum of about 1,600 terms of size 1, each rounded at 1.1e-16.
        torch.testing.assert_close(value, wanted, rtol=1e-11, atol=1e-13)


def laplacian_outputs(channels, shape, size):
    """Some exponents reach the limit, in other positions of every channel."""
    draws = torch.distributions.Laplace(0.0, 1.0).sample((2, size, channels, *shape))
    student = 20 * draws[0] - 300
    return student, 3 * draws[1] + 0.1 * student


def laid_out(maps, layouts):
    """Both outputs, each "last" (channels-last) or "first"."""
    formats = {"last": torch.channels_last, "first": torch.contiguous_format}
    return [
        each.detach().to(memory_format=formats[layout])
        for each, layout in zip(maps, layouts, strict=True)
    ]


@pytest.mark.parametrize("size", [33, 1])
@pytest.mark.parametrize("sides", ["both", "student", "teacher", "none"])
@pytest.mark.parametrize("layouts", [*itertools.product(["last", "first"], repeat=2)], ids="-".join)
def test_equals_the_plain_formula_in_single_precision(layouts, sides, size):
    alignment = build(5, kernel=True, linear_map=True, dtype=torch.float32)
    if sides in ("teacher", "none"):
        alignment.student_kernel = None
    if sides in ("student", "none"):
        alignment.teacher_kernel = None
    maps = laplacian_outputs(5, (7, 6), max(size, 2))
    student, teacher = (each[:size] for each in laid_out(maps, layouts))
    student.requires_grad_()
    alignment(student, teacher)
    double = copy.deepcopy(alignment).double()
    in_double = student.detach().double().requires_grad_()
    want = results(double.specification, double, in_double, teacher.double())
    got = results(alignment, alignment, student, teacher)
    for value, wanted in zip(got, want, strict=True):
        # Sums of up to 1,386 products, rounded at 6e-8; the gradients of the scales are differences
        # of such sums, a hundred times smaller.
        torch.testing.assert_close(
            value.double(), wanted, rtol=0, atol=1e-4 * wanted.abs().max().item()
        )
    form = torch.channels_last if layouts[0] == "last" else torch.contiguous_format
    assert got[1].is_contiguous(memory_format=form)


@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_any_layout_in_memory(layout):
    alignment = build(4, kernel=True, linear_map=True, dtype=torch.float64)
    student, teacher = (maps.detach() for maps in outputs(4, (5, 6), torch.float64))
    if layout == "channels_last":
        moved = [maps.to(memory_format=torch.channels_last) for maps in (student, teacher)]
    else:
        moved = [torch.stack([maps, maps], -1)[..., 0] for maps in (student, teacher)]
    assert not moved[0].is_contiguous()
    want = results(alignment, alignment, student.requires_grad_(), teacher)
    got = results(alignment, alignment, moved[0].detach().requires_grad_(), moved[1])
    for value, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-11, atol=1e-13)


def test_moments_by_hand():
    # Exponents -1 and 1 at rate 1: k - 1 = e^-1 - 1 and e - 1, so the variance is sinh(1)^2.
    student = torch.tensor([[[1.0]], [[3.0]]], dtype=torch.float64)
    teacher = torch.tensor([[[0.0]], [[4.0]]], dtype=torch.float64)
    rate = torch.tensor(1.0, dtype=torch.float64)
    got = kernel_moments(student, teacher, rate, None, None, None, EXPONENT_LIMIT)
    sinh = torch.sinh(rate)
    torch.testing.assert_close(got.student, sinh[None] ** 2)
    torch.testing.assert_close(got.teacher, torch.tensor([4.0], dtype=torch.float64))
    torch.testing.assert_close(got.both, 2 * sinh[None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    alignment = build(4, kernel=True, linear_map=True, dtype=torch.float32)
    student, teacher = (maps.detach().to(dtype) for maps in outputs(4, (5, 6), torch.float32))
    student.requires_grad_()
    loss = alignment(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, alignment(student.float(), teacher.float()))
    loss.backward()
    assert student.grad.dtype == dtype
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("layout", ["last", "first"])
def test_nothing_of_the_size_of_an_output_is_kept(layout):
    alignment = build(4, kernel=True, linear_map=True, dtype=torch.float32)
    student, teacher = laid_out(outputs(4, (16, 16), torch.float32), [layout] * 2)
    student.requires_grad_()
    alignment(student, teacher)
    own = {student.untyped_storage().data_ptr(), teacher.untyped_storage().data_ptr()}
    kept = []

    def keep(saved):
        if saved.untyped_storage().data_ptr() not in own:
            kept.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        alignment(student, teacher)
    assert kept
    assert max(kept) <= 4 * 4


def test_compiles_as_one_graph():
    alignment = build(4, kernel=True, linear_map=True, dtype=torch.float32)
    student, teacher = outputs(4, (5, 6), torch.float32)
    want = results(alignment, alignment, student, teacher)
    compiled = torch.compile(alignment, fullgraph=True, backend="aot_eager")
    got = results(compiled, alignment, student, teacher)
    for value, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(value, wanted)
    torch._dynamo.reset()


def test_backward_under_autocast():
    alignment = build(4, kernel=True, linear_map=True, dtype=torch.float32)
    student, teacher = laid_out(laplacian_outputs(4, (5, 6), 33), ["last"] * 2)
    student.requires_grad_()
    (want,) = torch.autograd.grad(alignment(student, teacher), [student])
    loss = alignment(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = torch.autograd.grad(loss, [student])
    # torch rounds the gradients of the three matrices to bfloat16, which has 8 bits.
    torch.testing.assert_close(got, want, rtol=0, atol=2**-7 * want.abs().max().item())


def test_double_backward_is_refused():
    alignment = build(4, kernel=True, linear_map=True, dtype=torch.float32)
    student, teacher = outputs(4, (5, 6), torch.float32)
    (gradient,) = torch.autograd.grad(alignment(student, teacher), [student], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_different_shapes_are_refused():
    alignment = build(4, kernel=True, linear_map=True, dtype=torch.float32)
    student = torch.randn(4, 4, 8, 8).to(memory_format=torch.channels_last)
    teacher = torch.randn(4, 4, 4, 4).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"same shape, got \(4, 4, 8, 8\) and \(4, 4, 4, 4\)"):
        alignment(student, teacher)
