"""Sums over processes, in a group of one."""

import math

import pytest
import torch
import torch.distributed as dist

from torchadder import models
from torchadder.distill import SP
from torchadder.processes import mean_over_processes


@pytest.fixture
def group_of_one(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_numbers_of_values_are_exact(group_of_one, dtype, wanted):
    """4,112 = 4,096 + 16 is no bfloat16, and 257 * 257 is beyond float16."""
    for shape in ((257, 2, 4, 4), (257, 2, 257)):
        mean, count = mean_over_processes(torch.ones(shape, dtype=dtype))
        assert count.item() == math.prod(shape) / 2
        assert mean.tolist() == [1, 1]
        assert mean.dtype == count.dtype == wanted


def test_sp_exchanges_the_number_of_images_once_a_batch(group_of_one, monkeypatch):
    exchanged = []
    all_reduce = dist.all_reduce

    def counted(tensor, *args, **kwargs):
        exchanged.append(tensor.dtype)
        return all_reduce(tensor, *args, **kwargs)

    nets = [models.lenet5_bn(conv=kind) for kind in ("adder", "conv")]
    sp = SP(*nets, progressive=True)
    sp.synchronised = True
    monkeypatch.setattr(dist, "all_reduce", counted)
    sp(torch.randn(4, 1, 28, 28), torch.arange(4))
    assert len(sp.taps) == 3
    assert exchanged == [torch.long]
