import math

import pytest
import torch

from torchadder.distill import (
    GaussianKernel,
    KernelAlignment,
    LaplacianKernel,
    exponential_kernel,
    fixed_orthogonal_map,
    standardise,
)
from torchadder.ops.pkkd import MAX_LIMIT
from torchadder.ops.pkkd.reference import CHUNK_ELEMENTS


def correlation(a, b):
    """Pearson's correlation of each channel (rows of `a` and `b` are samples)."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0))


def test_standardise_by_hand():
    maps = torch.tensor([[1.0, 10.0], [3.0, 40.0], [5.0, 70.0]], dtype=torch.float64)
    root = math.sqrt(1.5)
    expected = torch.tensor([[-root, -root], [0, 0], [root, root]], dtype=torch.float64)
    # The floor is 1e-5 of the mean variance (300), so the small channel moves by 6e-4.
    torch.testing.assert_close(standardise(maps), expected, rtol=1e-3, atol=1e-9)


def test_standardise_is_blind_to_scale_and_offset():
    maps = torch.randn(8, 3, 4, 4)
    for factor in (0.1, 1.0, 1e6):
        torch.testing.assert_close(
            standardise(maps * factor - 2 * factor), standardise(maps), rtol=1e-4, atol=1e-4
        )


def test_standardise_takes_statistics_over_samples_and_positions():
    z = standardise(torch.randn(8, 3, 4, 5) * torch.tensor([1.0, 5.0, 9.0]).view(3, 1, 1))
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(z.square().mean((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-3)


@pytest.mark.parametrize("maps", [torch.full((4, 3), 7.0), torch.randn(1, 3), torch.zeros(2, 1, 1)])
def test_standardise_of_constant_maps_is_zero(maps):
    maps = maps.clone().requires_grad_()
    z = standardise(maps)
    z.square().sum().backward()
    assert not z.any()
    assert torch.isfinite(maps.grad).all()


def test_fixed_orthogonal_map():
    matrix = fixed_orthogonal_map(7)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(7))


def test_distance_by_hand():
    student = torch.tensor([[0.0], [0.0], [2.0], [2.0]])
    teacher = torch.tensor([[0.0], [2.0], [0.0], [2.0]])
    alignment = KernelAlignment(1, None, None, linear_map=False)
    for a, b, expected in ((student, teacher, 2), (student, student, 0), (student, -student, 4)):
        assert alignment(a, b).item() == pytest.approx(expected, abs=1e-4)


def test_distance_is_two_times_one_minus_correlation():
    student, teacher = torch.randn(50, 4) * 20 - 300, torch.randn(50, 4)
    alignment = KernelAlignment(4, LaplacianKernel(), GaussianKernel(), linear_map=False)
    distance = alignment(student, teacher)
    h = exponential_kernel(student - student.mean(0), alignment.student_kernel.sigma)
    g = exponential_kernel(teacher - teacher.mean(0), alignment.teacher_kernel.sigma)
    expected = 2 * (1 - correlation(h, g)).mean()
    torch.testing.assert_close(distance, expected, rtol=1e-3, atol=0)


def test_maps_are_1x1_convolutions():
    student, teacher = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 3)
    alignment = KernelAlignment(4, None, None)
    torch.nn.init.normal_(alignment.student_map)
    conv = torch.nn.functional.conv2d
    expected = torch.nn.functional.mse_loss(
        standardise(conv(student, alignment.student_map[:, :, None, None])),
        standardise(conv(teacher, alignment.teacher_map[:, :, None, None])),
    )
    torch.testing.assert_close(alignment(student, teacher), expected)


def test_both_maps_start_equal():
    maps = torch.randn(20, 4, 3, dtype=torch.float64)
    assert abs(KernelAlignment(4, None, None).double()(maps, maps).item()) < 1e-12


def test_gradients_reach_student_and_own_parameters_only():
    student = torch.randn(20, 4, requires_grad=True)
    teacher = torch.randn(20, 4, requires_grad=True)
    alignment = KernelAlignment(4, LaplacianKernel(), GaussianKernel())
    alignment(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    names = [name for name, p in alignment.named_parameters() if p.grad.abs().sum() > 0]
    assert names == ["student_map", "student_kernel.log_scale", "teacher_kernel.log_scale"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    alignment = KernelAlignment(4, LaplacianKernel(), GaussianKernel())
    student = (torch.randn(20, 4, 3, 3) * 20 - 300).to(dtype).requires_grad_()
    distance = alignment(student, torch.randn(20, 4, 3, 3).to(dtype))
    distance.backward()
    assert distance.dtype == torch.promote_types(dtype, torch.float32)
    assert student.grad.dtype == dtype


def unrelated_features():
    """Features of two nets that see different things: 4,096 positions, 8 channels."""
    return torch.randn(16, 8, 16, 16) * 20 - 300, torch.randn(16, 8, 16, 16) * 2


def optimise(loss, parameters, steps=250):
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    return value.item()


def test_own_parameters_cannot_collapse_the_distance():
    student, teacher = unrelated_features()
    alignment = KernelAlignment(8, LaplacianKernel(), GaussianKernel())
    start = alignment(student, teacher).item()
    end = optimise(lambda: alignment(student, teacher), alignment.parameters())
    assert start == pytest.approx(2, abs=0.1)
    # The best linear fit of 8 channels to noise over 4,096 positions correlates by
    # sqrt(8 / 4096) = 0.044; anything below 2 * (1 - 0.1) would be a shortcut.
    assert end > 1.8


def test_naive_form_collapses():
    """The same test for the formula without the precautions: it can fail."""
    student, teacher = unrelated_features()
    student_kernel, teacher_kernel = LaplacianKernel(), GaussianKernel()
    student_map = torch.nn.Parameter(fixed_orthogonal_map(8))
    teacher_map = torch.nn.Parameter(fixed_orthogonal_map(8))

    def naive():
        h = torch.einsum("oc,nchw->nohw", student_map, student_kernel(student))
        g = torch.einsum("oc,nchw->nohw", teacher_map, teacher_kernel(teacher))
        return (h - g).square().mean()

    start = naive().item()
    own = [student_map, teacher_map, *student_kernel.parameters(), *teacher_kernel.parameters()]
    assert optimise(naive, own) < 1e-3 * start


@pytest.mark.parametrize("limit", [0.5, 3.0, 30.0])
def test_the_exponents_have_the_limit_of_the_kernels(limit):
    student, teacher = (3 * values for values in unrelated_features())
    student.requires_grad_()
    alignment = KernelAlignment(8, LaplacianKernel(limit=limit), GaussianKernel(limit=limit))
    got, want = alignment(student, teacher), alignment.specification(student, teacher)
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(d, student) for d in (got, want)), strict=True):
        torch.testing.assert_close(a, b)
    wide = KernelAlignment(8, LaplacianKernel(), GaussianKernel())
    assert (abs(wide(student, teacher) - want) > 1e-3) == (limit < 6)
    with pytest.raises(ValueError, match=r"the same limit, got \[1\.0, 6\.0\]"):
        KernelAlignment(8, LaplacianKernel(limit=1.0), GaussianKernel())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_at_the_largest_limit_are_summed(layout):
    """Both layouts: torch's products and the C++ kernels."""
    student, teacher = (torch.randn(16, 8, 12, 12).to(memory_format=layout) for _ in range(2))
    student.requires_grad_()
    alignment = KernelAlignment(8, LaplacianKernel(limit=30.0), GaussianKernel(limit=30.0))
    for kernel in (alignment.student_kernel, alignment.teacher_kernel):
        kernel.initial_sigma.fill_(0.05)  # exponents of some hundred
    distance = alignment(student, teacher)
    assert 0 < distance.item() < 3
    distance.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() > 0
    assert torch.isfinite(alignment.student_kernel.log_scale.grad)


def test_the_largest_limit_is_that_of_the_largest_chunk():
    """Squares of kernel values, a chunk of them at the bound, have a sum in float32."""
    num_values = max(CHUNK_ELEMENTS.values())

    def total(limit):
        return num_values * torch.tensor(2 * limit).exp()

    assert total(MAX_LIMIT) < torch.finfo(torch.float32).max / 1000
    assert torch.isinf(total(MAX_LIMIT + 6))


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("shrunk", ["student_map", "student_kernel", "teacher_kernel"])
def test_shrinking_one_side_does_not_help(kernel, shrunk):
    student, teacher = unrelated_features()
    kernels = (LaplacianKernel(), GaussianKernel()) if kernel else (None, None)
    alignment = KernelAlignment(8, *kernels)
    start = alignment(student, teacher).item()
    with torch.no_grad():
        if shrunk == "student_map":
            alignment.student_map.mul_(1e-3)
        elif kernel:
            for value in (-50.0, 50.0):
                getattr(alignment, shrunk).log_scale.fill_(value)
                assert alignment(student, teacher).item() == pytest.approx(2, abs=0.1)
    assert start == pytest.approx(2, abs=0.1)
    assert alignment(student, teacher).item() > 1.8
