"""Which parameters of a model with normalised weights the optimizer's weight decay acts on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from torchadder.awn.layers import normalised_layers, weight_norm


def parameter_groups(
    model: nn.Module, groups: Sequence[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups in which scales with ``decay=False`` have no weight decay.

    Args:
        model: the model.
        groups: the optimizer's groups, with "params" as lists; by default one of all parameters
            that are trained.

    Returns:
        The groups without those scales, and behind each that had some a copy of its options with
        ``weight_decay=0`` for them. Without such scales, the groups as they are.

    Examples:
        >>> import torch, torchadder as ta
        >>> net = ta.models.lenet5_bn()
        >>> _ = ta.awn.apply_(net, ta.awn.AwnConfig(decay=False))
        >>> optimizer = torch.optim.SGD(ta.awn.parameter_groups(net), lr=0.1, weight_decay=5e-4)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.0005, 0.0]
    """
    if groups is None:
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    undecayed = set()
    for layer in normalised_layers(model).values():
        norm = weight_norm(layer)
        if norm is not None and not norm.config.decay:
            undecayed.add(id(norm.scale))
    result: list[dict[str, Any]] = []
    for group in groups:
        scales = [p for p in group["params"] if id(p) in undecayed]
        rest = [p for p in group["params"] if id(p) not in undecayed]
        if not scales:
            result.append(group)
            continue
        result += [{**group, "params": rest}] if rest else []
        result.append({**group, "params": scales, "weight_decay": 0.0})
    return result
