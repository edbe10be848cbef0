"""What a module does, before it is costed: the rows that counting by running and integer nets give.

Requantisation and memory traffic are rows of their own, so that they can be left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

REQUANTISE = "requantise"
MEMORY = "memory"


@dataclass(frozen=True)
class Operations:
    """Operations of one kind inside one module.

    Attributes:
        name: path of the module.
        op: kind of operator; `REQUANTISE` and `MEMORY` for the rows that are optional.
        output_shape: shape of the first call's output.
        dtype: number format of the operands; what is requantised was made of these.
        num_mul: multiplications.
        num_add: additions.
        num_moved: numbers of that format that are read and written; rows of `MEMORY` only.
        weight_bytes: size of weights that are no parameters of the module.
        calls: how often the operator was called.
    """

    name: str
    op: str
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    num_mul: int = 0
    num_add: int = 0
    num_moved: int = 0
    weight_bytes: int = 0
    calls: int = 1


def requantise(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    num_outputs: int,
    num_residuals: int = 0,
    calls: int = 1,
) -> Operations:
    """The row of sums that become bytes: `clamp((sum * m + offset + r * rm) >> shift, low, high)`.

    A result takes 1 multiplication and 3 additions (the offset and the two comparisons of the
    clamp), a residual 1 and 1 more, all in int32; the shift is free.

    Args:
        name: path of the module.
        shape: shape of the first call's output.
        dtype: number format of what was summed.
        num_outputs: results.
        num_residuals: results that a residual is added to.
        calls: how often.
    """
    return Operations(
        name, REQUANTISE, shape, dtype,
        num_mul=num_outputs + num_residuals, num_add=3 * num_outputs + num_residuals, calls=calls,
    )  # fmt: skip
