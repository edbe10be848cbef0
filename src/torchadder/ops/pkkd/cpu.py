"""Binding of PKKD's kernels of ``csrc``, by the rules of :mod:`torchadder.ops.cpu`."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from torchadder.ops import cpu
from torchadder.ops.cpu import _check
from torchadder.ops.pkkd.sides import Sides


class _Side(ctypes.Structure):
    """``struct ta_pkkd_side``."""

    _fields_ = (
        ("output", ctypes.c_void_p),
        ("centre", ctypes.c_void_p),
        ("rate", ctypes.c_float),
        ("has_kernel", ctypes.c_int),
    )


class _Problem(ctypes.Structure):
    """``struct ta_pkkd_problem``."""

    _fields_ = (
        ("positions", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("student", _Side),
        ("teacher", _Side),
        ("limit", ctypes.c_float),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C++ library with PKKD's kernels declared, or None where the reference has to serve."""
    handle = cpu.library()
    if handle is None:
        return None
    if not hasattr(handle, "ta_pkkd_sums"):
        raise ImportError("the compiled kernels are older than this torchadder: reinstall it")
    problem, integer, pointer = ctypes.POINTER(_Problem), ctypes.c_int, ctypes.c_void_p
    handle.ta_pkkd_sums.argtypes = (problem, pointer, integer)
    handle.ta_pkkd_gradient.argtypes = (
        problem, pointer, pointer, pointer, integer, pointer, pointer, integer,
    )  # fmt: skip
    return handle


class _Operands:
    """A problem and the tensors it points to."""

    def __init__(self, sides: Sides) -> None:
        _, channels, positions = sides.student.shape
        self._kept: list[Tensor] = []
        self.problem = _Problem(
            positions,
            channels,
            self._side(sides.student, sides.student_centre, sides.student_rate),
            self._side(sides.teacher, sides.teacher_centre, sides.teacher_rate),
            sides.limit,
        )

    def _side(self, output: Tensor, centre: Tensor, rate: Tensor | None) -> _Side:
        rows, centre = output[0].mT.contiguous(), centre.to(torch.float32).contiguous()
        self._kept += [rows, centre]
        value = 0.0 if rate is None else float(rate)
        return _Side(rows.data_ptr(), centre.data_ptr(), value, rate is not None)


def sums(handle: ctypes.CDLL, sides: Sides) -> tuple[Tensor, Tensor]:
    """As `torchadder.ops.pkkd.sums`; float32, one sample."""
    channels = sides.student.shape[1]
    operands = _Operands(sides)
    result = torch.empty((2 + 3 * channels) * channels, dtype=torch.float64)
    _check(handle.ta_pkkd_sums(operands.problem, result.data_ptr(), torch.get_num_threads()))
    sums, products = result.split([2 * channels, 3 * channels * channels])
    # Copies: results of an operator share no memory.
    return sums.view(2, channels).clone(), products.view(3, channels, channels).clone()


def gradient(
    handle: ctypes.CDLL,
    sides: Sides,
    matrix: Tensor,
    offset: Tensor,
    shift: Tensor,
    wants_teacher: bool,
) -> tuple[Tensor, Tensor]:
    """As `torchadder.ops.pkkd.gradient`; float32, one sample."""
    _, channels, positions = sides.student.shape
    operands = _Operands(sides)
    matrix, offset, shift = (
        values.to(torch.float32).contiguous() for values in (matrix, offset, shift)
    )
    result = torch.empty(positions, channels, dtype=torch.float32)
    rate_sums = torch.empty(2, dtype=torch.float64)
    _check(
        handle.ta_pkkd_gradient(
            operands.problem, matrix.data_ptr(), offset.data_ptr(), shift.data_ptr(),
            wants_teacher, result.data_ptr(), rate_sums.data_ptr(), torch.get_num_threads(),
        )
    )  # fmt: skip
    return result.mT.unsqueeze(0), rate_sums.to(matrix.dtype)
