"""The adder layers of bytes on a GPU, bit for bit; or, without one, in Triton's interpreter.

`test_int8_triton.py` runs these tests under `TRITON_INTERPRET=1` in a process of its own; there
the "GPU" is the CPU. Elsewhere they wait for a GPU.
"""

import os

import pytest
import torch

from int8_problems import PROBLEMS, operands, plain_sums, random_requantisation
from torchadder.ops import int8

# The interpreter takes half a minute for what is long.
SHORT = [problem for problem in PROBLEMS if problem[0][1] < 512]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]

ops = torch.ops.torchadder
DEVICE, CHOSEN = ("cpu", SHORT) if INTERPRETED else ("cuda", PROBLEMS)


def moved(values):
    return [value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in values]


@pytest.mark.parametrize("zero_point", [0, 131])
@pytest.mark.parametrize("problem", CHOSEN, ids=str)
def test_sums_are_exact(problem, zero_point):
    x, w, window = operands(problem)
    packed = int8.pack(w, window[2], window[3])
    got = ops.adder2d_int8(*moved((x, packed)), w.shape, zero_point, *window)
    assert got.dtype == torch.int32
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got.cpu().long(), plain_sums(x, w, zero_point, *window))


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("problem", CHOSEN, ids=str)
def test_requantised_bytes_are_exact(problem, with_residual):
    x, w, window = operands(problem)
    how, want = random_requantisation(plain_sums(x, w, 7, *window), with_residual)
    packed = int8.pack(w, window[2], window[3])
    got = ops.adder2d_int8_requantised(*moved((x, packed)), w.shape, 7, *window, *moved(how))
    assert got.dtype == torch.uint8
    assert torch.equal(got.cpu().long(), want)


def test_images_in_another_layout_and_unaligned():
    x, w, window = operands(PROBLEMS[0])
    packed = int8.pack(w)
    want = plain_sums(x, w, 5, *window)
    memory = torch.zeros(x.numel() + 3, dtype=torch.uint8, device=DEVICE)
    N, C, H, W = x.shape
    unaligned = memory[3:].view(N, H, W, C).permute(0, 3, 1, 2)
    unaligned.copy_(x)
    for images in (x.contiguous().to(DEVICE), unaligned):
        got = ops.adder2d_int8(images, packed.to(DEVICE), w.shape, 5, *window)
        assert torch.equal(got.cpu().long(), want)


def test_the_longest_differences():
    depth = 264 if INTERPRETED else 2**20
    x = torch.zeros(1, depth, 1, 1, dtype=torch.uint8)
    w = torch.full((3, depth, 1, 1), 255, dtype=torch.uint8)
    window = ((1, 1), (0, 0), (1, 1), 1)
    got = ops.adder2d_int8(*moved((x, int8.pack(w))), w.shape, 0, *window)
    assert (got == -255 * depth).all()
