"""Variances and covariances of two layers in kernel space, without holding their kernel values.

The distance of `KernelAlignment` depends on the mapped kernel values u and v of the two sides only
through three numbers per channel: their variances and their covariance. These are summed up chunk
by chunk over the samples, and the backward pass computes the kernel values anew from the layers'
outputs. So nothing of the size of an output is kept beside the outputs themselves, which the nets
hold anyway, and all elementwise work happens on chunks that fit into a cache.

What is done with the moments is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ELEMENTS = {"cpu": 2**18, "other": 2**25}
"""Elements of a chunk of one side: 1 MiB in float32 on a CPU, 128 MiB elsewhere."""


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
    identity without a rate. What is summed up is `k - 1`, which has the same moments and no loss of
    digits where the kernel is nearly flat.

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
        outputs, summed up in float32 for those and else in the outputs' own type.
    """
    moments = _KernelMoments.apply(
        student_output,
        teacher_output.detach(),
        student_rate,
        teacher_rate,
        student_map,
        teacher_map,
        limit,
    )
    return Moments(*moments)  # type: ignore[misc]


class _KernelMoments(torch.autograd.Function):
    """`kernel_moments` with its backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        student_output: Tensor,
        teacher_output: Tensor,
        student_rate: Tensor | None,
        teacher_rate: Tensor | None,
        student_map: Tensor | None,
        teacher_map: Tensor | None,
        limit: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        student = _Side(student_output, student_rate, student_map, limit)
        teacher = _Side(teacher_output, teacher_rate, teacher_map, limit)
        zero = student.mean.new_zeros(student_output.shape[1])
        sums = [zero] * 5
        for part in _chunks(student_output):
            u, v = (side.map(side.values(part)[1]) for side in (student, teacher))
            terms = (u, v, u * u, v * v, u * v)
            sums = [total + term.sum((0, 2)) for total, term in zip(sums, terms, strict=True)]
        count = student_output.numel() // student_output.shape[1]
        mean_u, mean_v, square_u, square_v, product = (total / count for total in sums)
        ctx.limit = limit
        ctx.save_for_backward(
            student_output,
            teacher_output,
            student_rate,
            teacher_rate,
            student_map,
            teacher_map,
            student.mean,
            teacher.mean,
            mean_u,
            mean_v,
        )
        return (
            (square_u - mean_u * mean_u).clamp(min=0),
            (square_v - mean_v * mean_v).clamp(min=0),
            product - mean_u * mean_v,
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (
            student_output,
            teacher_output,
            student_rate,
            teacher_rate,
            student_map,
            teacher_map,
            student_centre,
            teacher_centre,
            mean_u,
            mean_v,
        ) = ctx.saved_tensors
        student = _Side(student_output, student_rate, student_map, ctx.limit, student_centre)
        teacher = _Side(teacher_output, teacher_rate, teacher_map, ctx.limit, teacher_centre)
        count = student_output.numel() // student_output.shape[1]
        # d var(u) / du = 2 (u - mean u) / count and d cov / du = (v - mean v) / count.
        own_u, own_v, other = (
            _by_channel(grad * (factor / count))
            for grad, factor in zip(grad_outputs, (2, 2, 1), strict=True)
        )
        offset_u = -own_u * _by_channel(mean_u) - other * _by_channel(mean_v)
        offset_v = -own_v * _by_channel(mean_v) - other * _by_channel(mean_u)
        grad_output = torch.empty(
            student_output.shape, dtype=student.mean.dtype, device=student_output.device
        )
        grad_map = None if student_map is None else torch.zeros_like(student_map)
        grad_rate_s, grad_rate_t = mean_u.new_zeros(()), mean_u.new_zeros(())
        for part in _chunks(student_output):
            exponents_s, values_s = student.values(part)
            exponents_t, values_t = teacher.values(part)
            u, v = student.map(values_s), teacher.map(values_t)
            grad_u = torch.addcmul(torch.addcmul(offset_u, own_u, u), other, v)
            if grad_map is not None:
                grad_map = grad_map + _outer(grad_u, values_s)
            grad_s = student.through_kernel(student.unmap(grad_u), values_s)
            grad_output[part].flatten(2).copy_(grad_s)
            if student_rate is not None:
                grad_rate_s = grad_rate_s + student.against_rate(grad_s, exponents_s)
            if teacher_rate is not None and ctx.needs_input_grad[3]:
                grad_v = torch.addcmul(torch.addcmul(offset_v, own_v, v), other, u)
                grad_t = teacher.through_kernel(teacher.unmap(grad_v), values_t)
                grad_rate_t = grad_rate_t + teacher.against_rate(grad_t, exponents_t)
        if student_rate is not None:
            # The derivative of taking off the mean; without a kernel the sum is zero already.
            grad_output -= grad_output.mean(_over_samples(grad_output), keepdim=True)
        return (
            grad_output.to(student_output.dtype),
            None,
            grad_rate_s if student_rate is not None else None,
            grad_rate_t if teacher_rate is not None else None,
            grad_map,
            None,
            None,
        )


class _Side:
    """One layer's output on its way to mapped kernel values, a chunk of samples at a time."""

    def __init__(
        self,
        output: Tensor,
        rate: Tensor | None,
        linear_map: Tensor | None,
        limit: float,
        mean: Tensor | None = None,
    ) -> None:
        self.output = output
        self.rate = rate
        self.linear_map = linear_map
        self.limit = limit
        dtype = torch.promote_types(output.dtype, torch.float32)
        self.mean = output.mean(_over_samples(output), dtype=dtype) if mean is None else mean

    def values(self, part: slice) -> tuple[Tensor, Tensor]:
        """Exponents before the clamp and kernel values less 1; without a kernel both are `d`."""
        centred = self.output[part].flatten(2) - _by_channel(self.mean)
        if self.rate is None:
            return centred, centred
        exponents = centred * self.rate
        return exponents, torch.expm1(exponents.clamp(-self.limit, self.limit))

    def map(self, values: Tensor) -> Tensor:
        """The linear map, applied to every position."""
        if self.linear_map is None:
            return values
        return torch.bmm(self.linear_map.expand(len(values), -1, -1), values)

    def unmap(self, grad: Tensor) -> Tensor:
        """The gradient before the map."""
        if self.linear_map is None:
            return grad
        return torch.bmm(self.linear_map.mT.expand(len(grad), -1, -1), grad)

    def through_kernel(self, grad: Tensor, values: Tensor) -> Tensor:
        """The gradient before the kernel: times `k * rate`, with the clamped k."""
        if self.rate is None:
            return grad
        return grad * torch.addcmul(self.rate, values, self.rate)

    def against_rate(self, grad: Tensor, exponents: Tensor) -> Tensor:
        """Gradient of the rate, given that of the outputs: clamped values do not depend on it."""
        assert self.rate is not None
        inside = exponents - F.hardshrink(exponents, self.limit)
        return torch.dot(grad.flatten(), inside.flatten()) / self.rate.square()


def _outer(grad_NOP: Tensor, values_NCP: Tensor) -> Tensor:
    """Sum over samples and positions of the products of all pairs of channels, shape (O, C)."""
    if values_NCP.shape[2] >= values_NCP.shape[1]:
        return torch.bmm(grad_NOP, values_NCP.mT).sum(0)
    # One matrix per sample would be larger than the chunk.
    return torch.einsum("nop,ncp->oc", grad_NOP, values_NCP)


def _chunks(output: Tensor) -> Iterator[slice]:
    """Slices of samples."""
    size = CHUNK_ELEMENTS.get(output.device.type, CHUNK_ELEMENTS["other"])
    step = max(1, size // max(1, output[0].numel()))
    for start in range(0, len(output), step):
        yield slice(start, start + step)


def _by_channel(values: Tensor) -> Tensor:
    """(C) to (C, 1)."""
    return values.unsqueeze(1)


def _over_samples(output: Tensor) -> list[int]:
    return [0, *range(2, output.dim())]
