"""The two outputs that are compared, and what turns them into kernel values."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

LOG2_E = math.log2(math.e)


class Sides(NamedTuple):
    """The outputs of a student's and a teacher's layer, B samples of C channels and P positions.

    Of the student ``k = exp(clamp((y - centre) * rate, -limit, limit)) - 1``, or ``y - centre``
    without a rate, of the teacher ``l`` likewise.

    Attributes:
        student: y, shape (B, C, P).
        teacher: the same shape, on the same device.
        student_centre: shape (C, 1), of the type of the kernel values, float32 at least.
        teacher_centre: likewise.
        student_rate: a scalar of that type, or None for no kernel.
        teacher_rate: likewise.
        limit: bound of the exponents.
    """

    student: Tensor
    teacher: Tensor
    student_centre: Tensor
    teacher_centre: Tensor
    student_rate: Tensor | None
    teacher_rate: Tensor | None
    limit: float
