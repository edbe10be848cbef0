"""Variances and covariances of two layers in kernel space, without holding their kernel values.

The distance of `KernelAlignment` depends on the mapped kernel values u = A k and v = B l of the two
sides only through three numbers per channel, their variances and their covariance, and these only
through the covariance matrices of k and l: `var(u) = diag(A cov(k, k) A^T)`. So what is summed up,
chunk by chunk, are three matrices of the size of a map, and the maps are applied to these instead
of to every position. The backward pass computes the kernel values anew from the layers' outputs:
nothing of the size of an output is kept beside the outputs themselves, which the nets hold anyway.

How sums are taken is known to `torchadder.ops.pkkd`; what the moments are for is not known here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchadder.ops import pkkd
from torchadder.processes import sum_without_gradient


class Moments(NamedTuple):
    """Moments of two mapped sides over samples and positions, each of shape (C).

    Attributes:
        student: variances of u.
        teacher: variances of v.
        both: covariances of u and v.
    """

    student: Tensor
    teacher: Tensor
    both: Tensor


def kernel_moments(
    student_output: Tensor,
    teacher_output: Tensor,
    student_rate: Tensor | None,
    teacher_rate: Tensor | None,
    student_map: Tensor | None,
    teacher_map: Tensor | None,
    limit: float,
    *,
    over_processes: bool = False,
) -> Moments:
    """Variances and covariances of `u = A k(y - mean_c y)` of the one and v of the other side.

    `k(d) = exp(clamp(d * rate, -limit, limit))` with the gradients of `exponential_kernel`, or the
    identity without a rate. What is summed up is `k - 1`, which has the same moments and loses no
    digits in the sums where the kernel is nearly flat.

    Args:
        student_output: y, shape (N, C, ...).
        teacher_output: likewise, taken as a constant.
        student_rate: `1 / (2 sigma^2)`, a scalar; None for no kernel.
        teacher_rate: likewise; it may want a gradient.
        student_map: A, shape (C, C); None for the identity.
        teacher_map: likewise, a constant.
        limit: bound of the exponent.
        over_processes: whether samples are those of all processes; each gives its own, and gets
            the moments of all and the gradient of its own. The rates must be the same in all.

    Returns:
        Moments, divided by the number of values and not by one less; float32 for half precision
        outputs. Chunks are summed in that type, the sums of chunks in float64 where there is one.

    Raises:
        ValueError: outputs of different shapes.
    """
    if student_output.shape != teacher_output.shape:
        raise ValueError(
            "student_output and teacher_output must have the same shape, got "
            f"{tuple(student_output.shape)} and {tuple(teacher_output.shape)}"
        )
    student, teacher, both = _KernelCovariances.apply(
        student_output,
        teacher_output.detach(),
        student_rate,
        teacher_rate,
        limit,
        over_processes,
    )  # type: ignore[misc]
    return Moments(
        _mapped(student, student_map, student_map).clamp(min=0),
        _mapped(teacher, teacher_map, teacher_map).clamp(min=0),
        _mapped(both, student_map, teacher_map),
    )


def _mapped(covariances: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """The diagonal of `left covariances right^T`; both maps are given, or none."""
    if left is None or right is None:
        return covariances.diagonal()
    return (left @ covariances * right).sum(1)


class _KernelCovariances(torch.autograd.Function):
    """The matrices cov(k, k), cov(l, l) and cov(k, l) of the kernel values, each of shape (C, C).

    Backward, with count values per channel and G the gradient of a matrix:
    `dL/dk = ((G_kk + G_kk^T) (k - mean k) + G_kl (l - mean l)) / count`, and likewise for l. Of
    several processes L is the sum of their losses, so G is the sum of what each has.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_output: Tensor,
        teacher_output: Tensor,
        student_rate: Tensor | None,
        teacher_rate: Tensor | None,
        limit: float,
        over_processes: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        student, teacher = _as_matrices(student_output, teacher_output)
        count: int | Tensor = student_output.numel() // student.shape[1]
        centres = _centre(student), _centre(teacher)
        if over_processes:
            count, centres = _over_processes(count, *centres)
        sums, products = pkkd.sums(
            pkkd.Sides(student, teacher, *centres, student_rate, teacher_rate, limit)
        )
        if over_processes:
            # One message: both have rows of the length of a channel.
            joined = sum_without_gradient(torch.cat([sums, products.flatten(0, 1)]))
            sums, products = joined[:2], joined[2:].view_as(products)
        means = sums / count
        mean_k, mean_l = means.unbind()
        of_means = [mean_k.outer(mean_k), mean_l.outer(mean_l), mean_k.outer(mean_l)]
        dtype = centres[0].dtype
        kk, ll, kl = (products / count - torch.stack(of_means)).to(dtype).unbind()
        ctx.limit, ctx.count, ctx.over_processes = limit, count, over_processes
        ctx.save_for_backward(
            student_output,
            teacher_output,
            student_rate,
            teacher_rate,
            *centres,
            means.to(dtype),
            kk,
            kl,
        )
        return kk, ll, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (
            student_output,
            teacher_output,
            student_rate,
            teacher_rate,
            student_centre,
            teacher_centre,
            means,
            kk,
            kl,
        ) = ctx.saved_tensors
        student, teacher = _as_matrices(student_output, teacher_output)
        count = ctx.count
        grads = torch.stack(grad_outputs)
        grad_kk, grad_ll, grad_kl = sum_without_gradient(grads) if ctx.over_processes else grads
        own_k, own_l = ((grad + grad.mT) / count for grad in (grad_kk, grad_ll))
        cross = grad_kl / count
        matrix = torch.cat([torch.cat([own_k, cross], 1), torch.cat([cross.mT, own_l], 1)])
        wants_teacher_rate = teacher_rate is not None and ctx.needs_input_grad[3]
        shift = torch.zeros_like(means[0])
        if student_rate is not None:
            # The derivative of taking off the mean of y: the mean of rate (k + 1) dL/dk, in which
            # dL/dk has mean 0. Without a kernel there is nothing to take off.
            shift = student_rate * (own_k * kk + cross * kl).sum(1)
        grad_output, rate_sums = pkkd.gradient(
            pkkd.Sides(
                student,
                teacher,
                student_centre,
                teacher_centre,
                student_rate,
                teacher_rate,
                ctx.limit,
            ),
            matrix,
            -(matrix * means.flatten()).sum(1),  # autocast leaves this in its type
            shift,
            wants_teacher_rate,
        )
        grad_student_rate, grad_teacher_rate = (
            None if rate is None else total / (pkkd.LOG2_E * rate.square())
            for rate, total in zip((student_rate, teacher_rate), rate_sums, strict=True)
        )
        return (
            _as_output(grad_output, student_output),
            None,
            grad_student_rate,
            grad_teacher_rate if wants_teacher_rate else None,
            None,
            None,
        )


def _as_matrices(output: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two outputs (N, C, ...) as views (B, C, P), alike: B samples of P positions.

    Where both keep the channels of a pixel together, all pixels are positions of one sample.
    """
    formats = {_memory_format(output), _memory_format(other)}
    if formats == {torch.channels_last}:
        return _pixels(output), _pixels(other)
    return output.flatten(2), other.flatten(2)


def _as_output(matrices: Tensor, output: Tensor) -> Tensor:
    """Back from (B, C, P) to the shape and type of an output, laid out like it."""
    matrices = matrices.to(output.dtype)
    if len(matrices) == len(output):
        return matrices.view(output.shape)
    pixels = matrices[0].mT.unflatten(0, (len(output), *output.shape[2:]))
    return pixels.movedim(-1, 1)


def _pixels(output: Tensor) -> Tensor:
    """(N, C, H, W) to (1, C, N H W)."""
    return output.movedim(1, -1).flatten(0, -2).mT.unsqueeze(0)


def _memory_format(output: Tensor) -> torch.memory_format:
    is_last = output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _centre(output: Tensor) -> Tensor:
    """The mean of each channel, shape (C, 1), in float32 at least."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    return output.mean((0, 2), dtype=dtype).unsqueeze(1)


def _over_processes(
    count: int, student_centre: Tensor, teacher_centre: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The number of values of a channel in all processes, and their means on both sides."""
    ones = torch.ones_like(student_centre)
    weighted = torch.stack([student_centre, teacher_centre, ones]).double() * count
    of_student, of_teacher, number = sum_without_gradient(weighted)
    dtype = student_centre.dtype
    return number[0, 0], ((of_student / number).to(dtype), (of_teacher / number).to(dtype))
