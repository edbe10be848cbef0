"""Attacks on one model that are tried on another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchadder.robustness.attacks import ATTACKS
from torchadder.robustness.target import AttackResult, Target, check_mode


@torch.inference_mode(False)
def transfer(
    source: nn.Module,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: str = "mifgsm",
    batch_size: int | None = None,
    **options: Any,
) -> AttackResult:
    """Attack a model with images made for another one.

    No gradient of `model` is used, so gradients of it that are masked do not hinder the attack. The
    default is MI-FGSM, made for transfer (arXiv 1710.06081). All images are attacked on `source`,
    also those that it gets wrong.

    Args:
        source: Model that the images are made for.
        model: Model that they are tried on.
        images: (N, ...), float32 or float64, in [0, 1].
        labels: Class indices, int64 (N).
        attack: A name of `ATTACKS`.
        batch_size: Images a pass; None: all at once.
        **options: Further arguments of the attack.

    Returns:
        The images and what `model` says about them. `num_calls` counts calls of `model`, and
        `zero_gradient` speaks of `source`.

    Raises:
        ValueError: If the source is in training mode or has another number of classes, the attack
            is unknown, or as of the attack.
        TypeError: As of the attack.
    """
    if attack not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {attack!r}")
    target = Target(model, images, labels, batch_size)
    check_source("source", source, model, images)
    made = ATTACKS[attack](
        source, images, labels, batch_size=batch_size, everything=True, **options
    )
    outcome = target.result(made.images.to(target.device)[target.rows])
    return AttackResult(
        images=outcome.images,
        success=outcome.success,
        wrong_before=outcome.wrong_before,
        zero_gradient=made.zero_gradient,
        num_calls=outcome.num_calls,
    )


def check_source(argument: str, source: nn.Module, model: nn.Module, images: Tensor) -> None:
    """Raise ValueError unless images made for `source` can be tried on `model`."""
    check_mode(argument, source)
    counts = [_num_classes(net, images[:2]) for net in (source, model)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{argument} must have the {counts[1]} classes of the model, got {counts[0]} classes"
        )


def _num_classes(model: nn.Module, images: Tensor) -> int:
    parameter = next(model.parameters(), images)
    with torch.no_grad():
        return model(images.to(parameter.device)).shape[1]
