"""Statistics over the batch of all processes, on any device that `torch.distributed` reaches.

torch's own `SyncBatchNorm` refuses tensors on the CPU, so data-parallel training could not be
checked against training by one process without a GPU. The layer here computes the same, from plain
tensor operations and differentiable sums over the processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchadder.processes import (
    BatchStatistics,
    in_process_group,
    mean_over_processes,
    sum_over_processes,
)


class AllReduceBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of the images of all processes together.

    `y = weight * (x - mean_c) / sqrt(var_c + eps) + bias` with, over the N samples and positions of
    all processes, `mean_c = sum x / N` and `var_c = sum (x - mean_c)^2 / N`. The shares of the
    processes may differ in size. Two sums over the processes, one after the other, keep the
    variance free of cancellation. In evaluation mode, and without a process group, it is the
    layer it stands for. Statistics of half precision inputs are taken in float32.

    Arguments, state and the update of the running statistics are those of `torch.nn.BatchNorm2d`.

    Shape:
        (N, C) or (N, C, ...) to the same.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input must have shape (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, see the class."""
        if not (self.training and in_process_group()):
            return super().forward(input)
        self._check_input_dim(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        over_samples = [0, *range(2, input.dim())]
        per_channel = [1, -1] + [1] * (input.dim() - 2)
        if values.numel() <= values.shape[1] and dist.get_world_size() == 1:
            raise ValueError("batch norm wants more than 1 value per channel")
        mean, count = mean_over_processes(values)
        centred = values - mean.view(per_channel)
        variance = sum_over_processes(centred.square().sum(over_samples)) / count
        output = centred * torch.rsqrt(variance + self.eps).view(per_channel)
        if self.affine:
            output = output * self.weight.view(per_channel) + self.bias.view(per_channel)
        if self.running_mean is not None:
            self._update(mean.detach(), (variance * (count / (count - 1))).detach())
        return output.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # torch's meaning: the average over all batches so far
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), momentum)


class SynchronizedBatchNorm(LayerSync):
    """Lightning plugin that synchronises all statistics of batches while a model is trained.

    Batch norms become torch's `SyncBatchNorm` on a GPU, elsewhere `AllReduceBatchNorm`; parameters
    and buffers stay the same tensors under the same names. Other modules that look at a batch as a
    whole, `BatchStatistics`, are told to look at that of all processes.

    Args:
        on_gpu: Whether the model is trained on GPUs.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self.layer_class = nn.SyncBatchNorm if on_gpu else AllReduceBatchNorm
        self._replaced: list[tuple[_BatchNorm, _BatchNorm]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Replaces the batch norms of a model in place."""
        self._replaced = _replace(model, self._synchronized)
        _synchronise_others(model, True)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Puts the plain layers back, with the state of those that stood for them."""
        plain = {id(new): old for new, old in self._replaced}
        _replace(model, lambda layer: _with_state_of(layer, plain.get(id(layer))))
        _synchronise_others(model, False)
        return model

    def _synchronized(self, layer: _BatchNorm) -> _BatchNorm:
        new = self.layer_class(
            layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
        )
        return _with_state_of(layer, new)


def _synchronise_others(model: nn.Module, synchronised: bool) -> None:
    """Says to all modules with statistics of their own whose batch they are to look at."""
    for module in model.modules():
        if isinstance(module, BatchStatistics):
            module.synchronised = synchronised


def _replace(model: nn.Module, change: Any) -> list[tuple[_BatchNorm, _BatchNorm]]:
    """Replaces batch norms by what `change` makes of them; returns the pairs (new, old)."""
    pairs = []
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, _BatchNorm):
                new = change(layer)
                if new is not layer:
                    setattr(parent, name, new)
                    pairs.append((new, layer))
    return pairs


def _with_state_of(layer: _BatchNorm, target: _BatchNorm | None) -> _BatchNorm:
    """`target` holding the very tensors of `layer`; `layer` itself if there is no target."""
    if target is None:
        return layer
    for name, parameter in layer.named_parameters(recurse=False):
        setattr(target, name, parameter)
    for name, buffer in layer.named_buffers(recurse=False):
        setattr(target, name, buffer)
    target.training = layer.training
    return target
