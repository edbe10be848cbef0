"""The inputs of a layer as it sums over them: one row a position, one column a tap."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.nn import Adder1d, Adder2d, AdderLinear

WINDOWED = (nn.Conv1d, nn.Conv2d, Adder1d, Adder2d)
DENSE = (nn.Linear, AdderLinear)


def sample_patches(
    layer: nn.Module, inputs: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Rows of inputs that a layer's filters are compared with, at random positions.

    Padding counts: a padded tap is a zero, as in the layer.

    Args:
        layer: One of `WINDOWED` or `DENSE`.
        inputs: Its input, (N, C, H, W), (N, C, L), or (..., K) of a dense layer.
        count: About how many rows to take, as many of each sample.
        generator: Chooses the positions, on the CPU.

    Returns:
        Shape (M, groups, K), K the taps of a filter.
    """
    if isinstance(layer, DENSE):
        rows = inputs.flatten(0, -2)
        if len(rows) > count:
            rows = rows[torch.randperm(len(rows), generator=generator)[:count].to(rows.device)]
        return rows[:, None, :]
    assert isinstance(layer, WINDOWED)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if isinstance(layer, nn.Conv1d | Adder1d):
        padded = padded.unsqueeze(2)
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
    share = -(-count // len(inputs))
    found = []
    for sample in padded:  # one at a time: all patches of a batch would not fit
        columns = F.unfold(sample[None], kernel, dilation, 0, stride)[0]
        chosen = torch.randperm(columns.shape[1], generator=generator)[:share]
        found.append(columns[:, chosen.to(columns.device)].T)
    return torch.cat(found).unflatten(1, (layer.groups, -1))
