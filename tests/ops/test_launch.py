"""What the GPU kernels are handed and what they refuse, which needs no GPU."""

import pytest
import torch

pytest.importorskip("triton")

from int8_problems import PROBLEMS, operands
from torchadder.ops import int8
from torchadder.ops.geometry import Geometry, make_geometry
from torchadder.ops.triton import int8_launch, launch


def test_bytes_start_at_an_address_fit_for_steps():
    x, w, window = operands(PROBLEMS[0])
    packed = int8.pack(w)
    unaligned = torch.zeros(packed.numel() + 3, dtype=torch.uint8)[3:].copy_(packed)
    assert unaligned.data_ptr() % 8 == 3
    for given in (packed, unaligned, torch.stack([packed, packed], 1).flatten()[::2]):
        _, got, _ = int8_launch._in_steps(x, given, tuple(w.shape), make_geometry(*window))
        assert got.data_ptr() % 8 == 0
        assert got.is_contiguous()
        assert torch.equal(got, packed)


def test_grids_beyond_the_limits_name_what_makes_them_so():
    assert launch._grid(2**31 - 1, 2**16 - 1, "groups") == (2**31 - 1, 2**16 - 1)
    with pytest.raises(ValueError, match=r"a grid of 2147483648 programs, .*: split the batch"):
        launch._grid(2**31)
    geometry = Geometry((256, 256), (0, 0), (1, 1), 1)
    x, w, g = torch.zeros(1, 2, 256, 256), torch.zeros(3, 2, 1, 1), torch.zeros(1, 3, 1, 1)
    why = r"stride .256, 256. and 1 groups make 65536 grids .* at most 65535: TORCHADDER_BACKEND="
    with pytest.raises(ValueError, match=why):
        launch.adder2d_backward_input(g, x, w, geometry, "clip")
