"""Declares ``torchadder::pkkd_sums`` and ``pkkd_gradient``, and says where they serve.

They are operators so that a compiled step holds them as one node each; elsewhere the reference is
called, whose steps a compiler can join with what stands around them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from torchadder.ops.declaration import register
from torchadder.ops.pkkd import cpu, reference
from torchadder.ops.pkkd.sides import Sides

MAX_LIMIT = 30.0
"""Of exponents, so that the squares of a chunk's kernel values have a sum in float32: there are up
to e^17.4 of them (`reference.CHUNK_ELEMENTS`), and float32 ends at e^88.7."""

MAX_CHANNELS = 128
"""Wider layers gain less (results/bench_pkkd.json), and their partial sums take 50 MB and more."""


def sums(sides: Sides) -> tuple[Tensor, Tensor]:
    """Sums over samples and positions of k and l, (2, C), and of k k^T, l l^T, k l^T, (3, C, C).

    Float64 where the device has it: the sums of chunks are added in that type.
    """
    if _kernels_serve(sides):
        return torch.ops.torchadder.pkkd_sums(*sides)
    return reference.sums(sides)


def gradient(
    sides: Sides, matrix: Tensor, offset: Tensor, shift: Tensor, wants_teacher: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of the student's output, and what those of the rates are made of.

    Args:
        sides: as of the sums.
        matrix: symmetric, (2 C, 2 C): ``offset + matrix [k, l]`` are the gradients of k and l.
        offset: (2 C).
        shift: (C).
        wants_teacher: whether the gradient of the teacher's rate is wanted; it has one then.

    Returns:
        ``rate (k + 1) dL/dk - shift``, or ``dL/dk - shift`` without a kernel, (B, C, P), laid out
        like the student's output, and the sums of ``rate (k + 1) dL/dk (y - centre) rate log2(e)``
        where the clamp is not reached, of the student and of the teacher: shape (2), 0 if not
        wanted.
    """
    if _kernels_serve(sides):
        return torch.ops.torchadder.pkkd_gradient(*sides, matrix, offset, shift, wants_teacher)
    return reference.gradient(sides, matrix, offset, shift, wants_teacher)


def _kernels_serve(sides: Sides) -> bool:
    """Whether both outputs are float32 on a CPU, each position a contiguous row of few channels."""
    return (
        0 < sides.student.shape[1] <= MAX_CHANNELS
        and sides.limit <= MAX_LIMIT
        and sides.student.shape == sides.teacher.shape
        and all(
            output.device.type == "cpu"
            and output.dtype == torch.float32
            and output.shape[0] == 1
            and output.stride(1) == 1
            for output in (sides.student, sides.teacher)
        )
    )


def _library(sides: Sides) -> ctypes.CDLL | None:
    """The library, or None for operands that it cannot read: an operator can be called with any."""
    return cpu.library() if _kernels_serve(sides) else None


def _sums(*operands: Any) -> tuple[Tensor, Tensor]:
    sides = Sides(*operands)
    handle = _library(sides)
    return reference.sums(sides) if handle is None else cpu.sums(handle, sides)


def _fake_sums(*operands: Any) -> tuple[Tensor, Tensor]:
    output = Sides(*operands).student
    channels = output.shape[1]
    dtype = reference.sum_type(output.device)
    return (
        output.new_empty(2, channels, dtype=dtype),
        output.new_empty(3, channels, channels, dtype=dtype),
    )


def _gradient(*operands: Any) -> tuple[Tensor, Tensor]:
    *of_sides, matrix, offset, shift, wants_teacher = operands
    sides = Sides(*of_sides)
    handle = _library(sides)
    if handle is None:
        return reference.gradient(sides, matrix, offset, shift, wants_teacher)
    return cpu.gradient(handle, sides, matrix, offset, shift, wants_teacher)


def _fake_gradient(*operands: Any) -> tuple[Tensor, Tensor]:
    output, matrix = operands[0], operands[7]
    return torch.empty_like(output), matrix.new_empty(2)


_SIDES = (
    "Tensor student, Tensor teacher, Tensor student_centre, Tensor teacher_centre, "
    "Tensor? student_rate, Tensor? teacher_rate, float limit"
)
register("pkkd_sums", f"({_SIDES}) -> (Tensor, Tensor)", _sums, _fake_sums)
register(
    "pkkd_gradient",
    f"({_SIDES}, Tensor matrix, Tensor offset, Tensor shift, bool wants_teacher) "
    "-> (Tensor, Tensor)",
    _gradient,
    _fake_gradient,
)
