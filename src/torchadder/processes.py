"""Sums and rows over all processes of a run, through which gradients flow, and plain objects.

Every process must call these functions, and their backward passes, in the same order; without a
process group torch raises a ValueError. Who starts the processes is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

T = TypeVar("T")


def in_process_group() -> bool:
    """Whether this process belongs to a process group, be it alone in it."""
    return dist.is_available() and dist.is_initialized()


def objects_of_processes(own: T) -> list[T]:
    """An object of each process, of the lowest rank first; without a process group this one's."""
    if not in_process_group():
        return [own]
    objects: list[T] = [own] * dist.get_world_size()
    dist.all_gather_object(objects, own)
    return objects


class BatchStatistics:
    """Base of modules, other than batch norms, whose result is no mean over the samples of a batch.

    Attributes:
        synchronised: Whether the batch is that of all processes; otherwise it is this process's
            share. `torchadder.training.sync_batchnorm` sets it.
        training: That of `torch.nn.Module`.
    """

    synchronised: bool = False
    training: bool

    def spans_processes(self) -> bool:
        """Whether statistics are to be taken over all processes now."""
        return self.synchronised and self.training and in_process_group()


class _SumOverProcesses(torch.autograd.Function):
    """`y_r = sum over q of x_q` on every process r; so `dx_q = sum over r of dy_r`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_without_gradient(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_without_gradient(gradients[0])


class _RowsOfProcesses(torch.autograd.Function):
    """`y_r = (x_0, x_1, ...)` on every process r; so `dx_q` is the sum of its rows of dy_r."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        start = sum(lengths[: dist.get_rank()])
        ctx.own = slice(start, start + len(rows))
        # Shares may differ by an image, and what is gathered may not.
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        shares = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(shares, padded)
        return torch.cat([share[:length] for share, length in zip(shares, lengths, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return sum_without_gradient(gradients[0])[ctx.own], None


def lengths_of_processes(rows: Tensor) -> list[int]:
    """The number of rows of each process; the same for all of them in a compiled step."""
    if torch.compiler.is_compiling():
        return [len(rows)] * dist.get_world_size()
    lengths = torch.zeros(dist.get_world_size(), dtype=torch.long, device=rows.device)
    lengths[dist.get_rank()] = len(rows)
    dist.all_reduce(lengths)
    return lengths.tolist()


def sum_without_gradient(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes as a constant."""
    total = values.detach().contiguous().clone()
    dist.all_reduce(total)
    return total


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, differentiable once."""
    result = _SumOverProcesses.apply(values)
    assert isinstance(result, Tensor)
    return result


def rows_of_processes(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    """The rows of all processes, of the lowest rank first, differentiable once.

    Args:
        rows: shape (n, ...); n may differ from process to process.
        lengths: the n of each process, of `lengths_of_processes`.
    """
    result = _RowsOfProcesses.apply(rows, lengths)
    assert isinstance(result, Tensor)
    return result


def mean_over_processes(values: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each channel over the samples and positions of all processes.

    Args:
        values: shape (N, C, ...); N may differ from process to process.

    Returns:
        The means, shape (C), differentiable once, and the number of values of a channel, a scalar;
        float32 for half precision, in which numbers of values are not exact.
    """
    over_samples = [0, *range(2, values.dim())]
    dtype = torch.promote_types(values.dtype, torch.float32)
    count = values.new_tensor([values.numel() / max(1, values.shape[1])], dtype=dtype)
    totals = sum_over_processes(torch.cat([values.sum(over_samples, dtype=dtype), count]))
    count = totals[-1].detach()
    return totals[:-1] / count, count
