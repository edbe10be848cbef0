"""Variances and covariances of two layers in kernel space, without holding their kernel values.

The distance of `KernelAlignment` depends on the mapped kernel values u = A k and v = B l of the two
sides only through three numbers per channel, their variances and their covariance, and these only
through the covariance matrices of k and l: `var(u) = diag(A cov(k, k) A^T)`. So what is summed up,
chunk by chunk, are three matrices of the size of a map, and the maps are applied to these instead
of to every position. The backward pass computes the kernel values anew from the layers' outputs:
nothing of the size of an output is kept beside the outputs themselves, which the nets hold anyway,
and all elementwise work happens on chunks that fit into a cache.

What is done with the moments is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LOG2_E = math.log2(math.e)

CHUNK_ELEMENTS = {"cpu": 2**17, "other": 2**25}
"""Elements of a chunk of one side: 0.5 MiB in float32 on a CPU, 128 MiB elsewhere."""


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

    Returns:
        Moments, divided by the number of values and not by one less; float32 for half precision
        outputs. Chunks are summed in that type, the sums of chunks in float64 where there is one.
    """
    student, teacher, both = _KernelCovariances.apply(
        student_output, teacher_output.detach(), student_rate, teacher_rate, limit
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
    `dL/dk = ((G_kk + G_kk^T) (k - mean k) + G_kl (l - mean l)) / count`, and likewise for l.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_output: Tensor,
        teacher_output: Tensor,
        student_rate: Tensor | None,
        teacher_rate: Tensor | None,
        limit: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        student_layout, teacher_layout = _as_matrices(student_output, teacher_output)
        student = _Side(student_layout, student_rate, limit)
        teacher = _Side(teacher_layout, teacher_rate, limit)
        num_channels = student_layout.shape[1]
        # One channel with a long tail must not cost the others their digits.
        wide = _sum_type(student_output.device)
        sum_k, sum_l = (student.mean.new_zeros(num_channels, 1, dtype=wide) for _ in range(2))
        kk, ll, kl = (sum_k.new_zeros(num_channels, num_channels) for _ in range(3))
        for part in _chunks(student_layout):
            k, l = student.values(part)[1], teacher.values(part)[1]
            sum_k = sum_k + _channel_sums(k)
            sum_l = sum_l + _channel_sums(l)
            kk = kk + _outer(k, k)
            ll = ll + _outer(l, l)
            kl = kl + _outer(k, l)
        count = student_output.numel() // num_channels
        mean_k, mean_l = sum_k / count, sum_l / count
        dtype = student.mean.dtype
        ctx.limit = limit
        ctx.save_for_backward(
            student_output,
            teacher_output,
            student_rate,
            teacher_rate,
            student.mean,
            teacher.mean,
            mean_k.to(dtype),
            mean_l.to(dtype),
        )
        return (
            (kk / count - mean_k * mean_k.mT).to(dtype),
            (ll / count - mean_l * mean_l.mT).to(dtype),
            (kl / count - mean_k * mean_l.mT).to(dtype),
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (
            student_output,
            teacher_output,
            student_rate,
            teacher_rate,
            student_centre,
            teacher_centre,
            mean_k,
            mean_l,
        ) = ctx.saved_tensors
        student_layout, teacher_layout = _as_matrices(student_output, teacher_output)
        student = _Side(student_layout, student_rate, ctx.limit, student_centre)
        teacher = _Side(teacher_layout, teacher_rate, ctx.limit, teacher_centre)
        count = student_output.numel() // student_layout.shape[1]
        grad_kk, grad_ll, grad_kl = grad_outputs
        own_k, own_l = ((grad + grad.mT) / count for grad in (grad_kk, grad_ll))
        cross = grad_kl / count
        offset_k = -(own_k @ mean_k + cross @ mean_l)
        offset_l = -(own_l @ mean_l + cross.mT @ mean_k)
        wants_teacher_rate = teacher_rate is not None and ctx.needs_input_grad[3]

        grad_output = torch.empty_like(
            student_output, dtype=mean_k.dtype, memory_format=_memory_format(student_output)
        )
        grad_layout, _ = _as_matrices(grad_output, teacher_output)
        grad_rate_s, grad_rate_t = mean_k.new_zeros(()), mean_k.new_zeros(())
        grad_sum = torch.zeros_like(mean_k)
        for part in _chunks(student_layout):
            exponents_k, k = student.values(part)
            exponents_l, l = teacher.values(part)
            grad_k = _affine(offset_k, (own_k, k), (cross, l))
            grad_k = student.through_kernel(grad_k, k)
            grad_layout[part].copy_(grad_k)
            if student_rate is not None:
                grad_sum = grad_sum + _channel_sums(grad_k)
                grad_rate_s = grad_rate_s + student.against_rate(grad_k, exponents_k)
            if wants_teacher_rate:
                grad_l = _affine(offset_l, (own_l, l), (cross.mT, k))
                grad_l = teacher.through_kernel(grad_l, l)
                grad_rate_t = grad_rate_t + teacher.against_rate(grad_l, exponents_l)
        if student_rate is not None:
            # The derivative of taking off the mean; without a kernel the sum is zero already.
            grad_layout -= grad_sum / count
        return (
            grad_output.to(student_output.dtype),
            None,
            grad_rate_s if student_rate is not None else None,
            grad_rate_t if wants_teacher_rate else None,
            None,
        )


class _Side:
    """One layer's output, shape (B, C, P), on its way to kernel values, a chunk at a time."""

    def __init__(
        self, output: Tensor, rate: Tensor | None, limit: float, mean: Tensor | None = None
    ) -> None:
        self.output = output
        self.rate = rate
        self.limit = limit * LOG2_E
        dtype = torch.promote_types(output.dtype, torch.float32)
        self.mean = output.mean((0, 2), dtype=dtype).unsqueeze(1) if mean is None else mean

    def values(self, part: _Part) -> tuple[Tensor, Tensor]:
        """Binary exponents before the clamp and kernel values less 1; both are `d` for no kernel.

        On a CPU exp2 takes a third of the time of exp and an eighth of that of expm1, whose further
        digits the sums would not keep.
        """
        centred = self.output[part] - self.mean
        if self.rate is None:
            return centred, centred
        exponents = centred.mul_(self.rate * LOG2_E)
        return exponents, exponents.clamp(-self.limit, self.limit).exp2_().sub_(1)

    def through_kernel(self, grad: Tensor, values: Tensor) -> Tensor:
        """The gradient before the kernel: times `k * rate`, with the clamped k."""
        if self.rate is None:
            return grad
        return grad.mul_(torch.addcmul(self.rate, values, self.rate))

    def against_rate(self, grad: Tensor, exponents: Tensor) -> Tensor:
        """Gradient of the rate, given that of the outputs: clamped values do not depend on it."""
        assert self.rate is not None
        inside = exponents - F.hardshrink(exponents, self.limit)
        return inside.mul_(grad).sum() / (LOG2_E * self.rate.square())


_Part = tuple[slice, slice, slice]


def _as_matrices(output: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two outputs (N, C, ...) as views (B, C, P), alike: B samples of P positions.

    Where both keep the channels of a pixel together, all pixels are positions of one sample.
    """
    formats = {_memory_format(output), _memory_format(other)}
    if formats == {torch.channels_last}:
        return _pixels(output), _pixels(other)
    return output.flatten(2), other.flatten(2)


def _pixels(output: Tensor) -> Tensor:
    """(N, C, H, W) to (1, C, N H W)."""
    return output.movedim(1, -1).flatten(0, -2).mT.unsqueeze(0)


def _memory_format(output: Tensor) -> torch.memory_format:
    is_last = output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _chunks(output: Tensor) -> Iterator[_Part]:
    """Parts of an output (B, C, P): of its samples, or of the positions of the only one."""
    num_samples, num_channels, num_positions = output.shape
    size = CHUNK_ELEMENTS.get(output.device.type, CHUNK_ELEMENTS["other"])
    everything = slice(None)
    if num_samples == 1:
        step = max(1, size // max(1, num_channels))
        for start in range(0, num_positions, step):
            yield everything, everything, slice(start, start + step)
        return
    step = max(1, size // max(1, num_channels * num_positions))
    for start in range(0, num_samples, step):
        yield slice(start, start + step), everything, everything


def _sum_type(device: torch.device) -> torch.dtype:
    """The type in which the sums of chunks are added up."""
    return torch.float32 if device.type == "mps" else torch.float64


def _channel_sums(values: Tensor) -> Tensor:
    """(B, C, P) to (C, 1)."""
    return values.sum((0, 2)).unsqueeze(1)


def _outer(left_BCP: Tensor, right_BDP: Tensor) -> Tensor:
    """Sum over samples and positions of the products of all pairs of channels, shape (C, D)."""
    if left_BCP.shape[0] == 1 or left_BCP.shape[2] >= left_BCP.shape[1]:
        return torch.bmm(left_BCP, right_BDP.mT).sum(0)
    # One matrix per sample would be larger than the chunk.
    return torch.einsum("bcp,bdp->cd", left_BCP, right_BDP)


def _affine(offset: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """`offset + sum matrix values` of values (B, C, P), the matrices (C, C), the offset (C, 1)."""
    (first, values), *others = terms
    if _is_transposed(values):
        total = torch.addmm(offset.mT, values[0].mT, first.mT)
        for matrix, values in others:
            total.addmm_(values[0].mT, matrix.mT)
        return total.mT.unsqueeze(0)
    total = torch.baddbmm(offset, first.expand(len(values), -1, -1), values)
    for matrix, values in others:
        total.baddbmm_(matrix.expand(len(values), -1, -1), values)
    return total


def _is_transposed(values: Tensor) -> bool:
    """Whether values (1, C, P) lie in memory as (P, C)."""
    return values.shape[0] == 1 and values.stride(1) == 1
