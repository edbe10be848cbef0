"""Sums and gradient for any layout, dtype and device, by torch's matrix products over chunks.

All elementwise work happens on chunks that fit into a cache; nothing of the size of an output is
held beside the result.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from torchadder.ops.pkkd.sides import LOG2_E, Sides

CHUNK_ELEMENTS = {"cpu": 2**17, "other": 2**25}
"""Elements of a chunk of one side: 0.5 MiB in float32 on a CPU, 128 MiB elsewhere."""


def sums(sides: Sides) -> tuple[Tensor, Tensor]:
    """As `torchadder.ops.pkkd.sums`."""
    student = _Side(sides.student, sides.student_centre, sides.student_rate, sides.limit)
    teacher = _Side(sides.teacher, sides.teacher_centre, sides.teacher_rate, sides.limit)
    # One channel with a long tail must not cost the others their digits.
    channels, wide = sides.student.shape[1], sum_type(sides.student.device)
    sum_k, sum_l = (student.centre.new_zeros(channels, dtype=wide) for _ in range(2))
    kk, ll, kl = (sum_k.new_zeros(channels, channels) for _ in range(3))
    for part in _chunks(sides.student):
        k, l = student.values(part)[1], teacher.values(part)[1]
        sum_k = sum_k + k.sum((0, 2))
        sum_l = sum_l + l.sum((0, 2))
        kk = kk + _outer(k, k)
        ll = ll + _outer(l, l)
        kl = kl + _outer(k, l)
    return torch.stack([sum_k, sum_l]), torch.stack([kk, ll, kl])


def gradient(
    sides: Sides, matrix: Tensor, offset: Tensor, shift: Tensor, wants_teacher: bool
) -> tuple[Tensor, Tensor]:
    """As `torchadder.ops.pkkd.gradient`."""
    student = _Side(sides.student, sides.student_centre, sides.student_rate, sides.limit)
    teacher = _Side(sides.teacher, sides.teacher_centre, sides.teacher_rate, sides.limit)
    channels = sides.student.shape[1]
    of_k, of_l = matrix.split(channels)
    offset_k, offset_l = offset.unsqueeze(1).split(channels)
    result = torch.empty_like(sides.student, dtype=matrix.dtype)
    rate_sum_k, rate_sum_l = matrix.new_zeros(()), matrix.new_zeros(())
    for part in _chunks(sides.student):
        exponents_k, k = student.values(part)
        exponents_l, l = teacher.values(part)
        grad_k = _affine(offset_k, (of_k[:, :channels], k), (of_k[:, channels:], l))
        if student.rate is not None:
            grad_k = student.through_kernel(grad_k, k)
            rate_sum_k = rate_sum_k + student.against(grad_k, exponents_k)
        result[part].copy_(grad_k.sub_(shift.unsqueeze(1)))
        if wants_teacher:
            grad_l = _affine(offset_l, (of_l[:, channels:], l), (of_l[:, :channels], k))
            grad_l = teacher.through_kernel(grad_l, l)
            rate_sum_l = rate_sum_l + teacher.against(grad_l, exponents_l)
    return result, torch.stack([rate_sum_k, rate_sum_l])


class _Side:
    """One layer's output, shape (B, C, P), on its way to kernel values, a chunk at a time."""

    def __init__(self, output: Tensor, centre: Tensor, rate: Tensor | None, limit: float) -> None:
        self.output = output
        self.centre = centre
        self.rate = rate
        self.limit = limit * LOG2_E

    def values(self, part: _Part) -> tuple[Tensor, Tensor]:
        """Binary exponents before the clamp and kernel values less 1; both are `d` for no kernel.

        On a CPU exp2 takes a third of the time of exp and an eighth of that of expm1, whose further
        digits the sums would not keep.
        """
        centred = self.output[part] - self.centre
        if self.rate is None:
            return centred, centred
        exponents = centred.mul_(self.rate * LOG2_E)
        return exponents, exponents.clamp(-self.limit, self.limit).exp2_().sub_(1)

    def through_kernel(self, grad: Tensor, values: Tensor) -> Tensor:
        """The gradient before the kernel: times `k * rate`, with the clamped k."""
        assert self.rate is not None
        return grad.mul_(torch.addcmul(self.rate, values, self.rate))

    def against(self, grad: Tensor, exponents: Tensor) -> Tensor:
        """Sum of gradient times exponent; where the value is clamped it depends on no rate."""
        inside = exponents - F.hardshrink(exponents, self.limit)
        return inside.mul_(grad).sum()


_Part = tuple[slice, slice, slice]


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


def sum_type(device: torch.device) -> torch.dtype:
    """The type in which the sums of chunks are added up."""
    return torch.float32 if device.type == "mps" else torch.float64


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
