"""What an integer program does, counted step by step.

A tap of an adder layer is 2 additions, one of a convolution 1 multiplication and 1 addition, in
bytes as the papers count them. Requantisation and memory traffic come as rows of their own. Every
step reads its values and filters once and writes its value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from math import prod

import torch

from torchadder.energy.operations import MEMORY, Operations, requantise
from torchadder.quantize import program as p

_DTYPES = {"uint8": torch.uint8, "int32": torch.int32, "float32": torch.float32}


def program_operations(
    program: p.Program, batch: int = 1, *, include_elementwise: bool = False
) -> Iterator[Operations]:
    """The rows of a program.

    Args:
        program: The integer net.
        batch: Number of images.
        include_elementwise: Whether to count pooling, too, an addition or comparison for each
            pixel of a window but one, and group norms, which are float32.
    """
    rows: dict[tuple[str, str], Operations] = {}
    for row in _rows(program, batch, include_elementwise):
        # Uses of one layer are one row with several calls, as in the float net.
        key = (row.name, row.op)
        rows[key] = _together(rows[key], row) if key in rows else row
    yield from rows.values()


def _together(one: Operations, two: Operations) -> Operations:
    return dataclasses.replace(
        one,
        num_mul=one.num_mul + two.num_mul,
        num_add=one.num_add + two.num_add,
        num_moved=one.num_moved + two.num_moved,
        calls=one.calls + two.calls,
    )


def _rows(program: p.Program, batch: int, include_elementwise: bool) -> Iterator[Operations]:
    """A row for every step and kind of operation."""
    for step in program.steps:
        name = getattr(step, "shared", None) or step.name
        value = program.values[step.output]
        shape = (batch, *value.shape)
        num_outputs = prod(shape)
        weight_bytes = filter_bytes = 0
        if isinstance(step, p.Layer | p.FloatLayer):
            taps = num_outputs * prod(step.weight.shape[1:])
            # A layer that is used several times is read each time and held once.
            filter_bytes = step.weight.numel() * step.weight.element_size()
            weight_bytes = filter_bytes if step.shared is None else 0
            products = isinstance(step, p.FloatLayer) or step.kind == "conv"
            dtype = torch.float32 if isinstance(step, p.FloatLayer) else torch.uint8
            yield Operations(
                name, "conv2d" if products else "adder2d", shape, dtype,
                num_mul=taps if products else 0, num_add=taps if products else 2 * taps,
                weight_bytes=weight_bytes,
            )  # fmt: skip
        elif isinstance(step, p.MaxPool | p.AvgPool) and include_elementwise:
            num_add = num_outputs * (prod(step.kernel) - 1)
            yield Operations(name, step.op, shape, torch.uint8, num_add=num_add)
        elif isinstance(step, p.GroupNorm) and include_elementwise:
            # In float, as `torchadder.energy.formulas` counts it there.
            yield Operations(
                name, step.op, shape, torch.float32,
                num_mul=2 * num_outputs, num_add=4 * num_outputs,
            )  # fmt: skip
        if isinstance(step, p.Layer | p.Add | p.Affine | p.AvgPool):
            adds = isinstance(step, p.Add) or (isinstance(step, p.Layer) and bool(step.residual))
            residuals = num_outputs if adds else 0
            yield requantise(name, shape, torch.uint8, num_outputs, residuals)
        if not isinstance(step, p.Flatten):
            read = sum(_bytes(program.values[source], batch) for source in step.inputs)
            moved = read + filter_bytes + _bytes(value, batch)
            yield Operations(name, MEMORY, shape, torch.uint8, num_moved=moved)


def _bytes(value: p.Value, batch: int) -> int:
    return batch * prod(value.shape) * _DTYPES[value.dtype].itemsize
