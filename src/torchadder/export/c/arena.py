"""Where every activation of an integer net lies in one block of memory.

A value lives from the step that makes it to the last one that reads it; values that live at the
same time must not overlap, others may. What the steps compute is not known here, but for one thing:
steps that go pixel by pixel may write where they read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torchadder.quantize.program import Add, Affine, Flatten, Layer, Program, Step

_ALIGNMENT = 4


@dataclass(frozen=True)
class Arena:
    """Offsets in bytes.

    Attributes:
        offsets: Where each value begins, by its name; the logits have no place.
        size: Bytes of the block.
        least: Bytes that live at once at the fullest moment: no plan can do with less.
    """

    offsets: dict[str, int]
    size: int
    least: int


@dataclass
class _Block:
    """Values that share one place, and the steps during which one of them lives."""

    values: list[str]
    size: int
    first: int
    last: int


def plan(program: Program, steps: Sequence[Step]) -> Arena:
    """Places the images and what `steps` make: large blocks first, each as low as it fits."""
    blocks = _blocks(program, steps)
    placed: list[tuple[int, _Block]] = []
    for block in sorted(blocks, key=lambda block: (-block.size, block.first)):
        taken = sorted(
            (offset, offset + other.size)
            for offset, other in placed
            if other.first <= block.last and block.first <= other.last
        )
        place = 0
        for begin, end in taken:
            if place + block.size <= begin:
                break
            place = max(place, end)
        placed.append((place, block))
    return Arena(
        offsets={value: offset for offset, block in placed for value in block.values},
        size=max(offset + block.size for offset, block in placed),
        least=max(
            sum(block.size for block in blocks if block.first <= time <= block.last)
            for time in range(-1, len(steps))
        ),
    )


def is_in_order(step: Flatten, program: Program) -> bool:
    """Whether flattening moves nothing: one pixel, or one channel."""
    C, H, W = program.values[step.input].shape
    return C == 1 or H * W == 1


def _blocks(program: Program, steps: Sequence[Step]) -> list[_Block]:
    last_read = {name: time for time, step in enumerate(steps) for name in step.inputs}
    # The images are there before the first step.
    block = _Block([program.input.name], _size(program, program.input.name), -1, -1)
    block_of = {program.input.name: block}
    blocks = [block]
    for time, step in enumerate(steps):
        if program.values[step.output].dtype != "uint8":
            continue
        place = next(
            (
                block_of[name]
                for name in _overwritable(step, program)
                if last_read[name] == time and block_of[name].size == _size(program, step.output)
            ),
            None,
        )
        if place is None:
            place = _Block([], _size(program, step.output), time, time)
            blocks.append(place)
        place.values.append(step.output)
        block_of[step.output] = place
    for name, block in block_of.items():
        block.last = max(block.last, last_read.get(name, block.last))
    return blocks


def _overwritable(step: Step, program: Program) -> tuple[str, ...]:
    """Values that the step reads no more once it writes their pixel."""
    if isinstance(step, Add | Affine):
        return step.inputs
    if isinstance(step, Flatten):
        return step.inputs if is_in_order(step, program) else ()
    if isinstance(step, Layer) and step.residual not in (None, step.input):
        return (step.residual,)
    return ()


def _size(program: Program, value: str) -> int:
    bytes_ = math.prod(program.values[value].shape)
    return -(-bytes_ // _ALIGNMENT) * _ALIGNMENT
