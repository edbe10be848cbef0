"""How hard each term of a distillation loss pulls at the student's weights.

`AdaptiveLR` gives the gradient of an adder layer a fixed norm, so a term with a larger gradient
does not make the step larger: it leaves less of it to the others.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.distiller import Distiller
from torchadder.distill.taps import fits_pattern
from torchadder.nn import AdderModule

LABELS = "ce"
"""The term that the others are compared with."""

_WITH_WEIGHTS = (AdderModule, nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class Pull:
    """The gradient of one term with respect to the weights W of one layer of the student.

    Attributes:
        layer: Name of the layer.
        term: Name of the term, `LABELS` for the cross-entropy with the labels.
        norm: `|g_t|`, the 2-norm of `g_t = dL_t/dW`, the term's weight included.
        ratio: `|g_t| / |g_labels|`; infinite where the labels have no gradient.
        cosine: `<g_t, g_labels> / (|g_t| |g_labels|)`, 0 where one of them is 0.
    """

    layer: str
    term: str
    norm: float
    ratio: float
    cosine: float


def term_gradients(
    distiller: Distiller, images: Tensor, labels: Tensor, layers: Sequence[str] | None = None
) -> list[Pull]:
    """Gradients of the terms of the student's loss, layer by layer.

    Copies of both nets run as in training, once, and the terms have their full weight, without a
    ramp. Nothing is changed.

    Args:
        distiller: The loss, with both nets.
        images: A batch as it is trained on, (N, C, H, W).
        labels: Its labels, as of the distiller's `forward`.
        layers: Names or patterns of layers with weights; None takes all of them: adder layers,
            convolutions and linear layers.

    Returns:
        For each layer, in the student's order, the labels and then the other terms.

    Raises:
        ValueError: no term reads a teacher, a name or pattern fits no layer with trained weights,
            or the outputs of the nets do not fit together.
    """
    if distiller.teacher is None or not distiller.needs_teacher:
        raise ValueError(f"{type(distiller).__name__} has no term that reads a teacher")
    distiller.check_agreement(images[:1])
    distiller = copy.deepcopy(distiller).train()
    weights = _weights(distiller.student)
    names = list(weights) if layers is None else _choose(list(weights), layers)
    with torch.no_grad():
        teacher = distiller.run_teacher(images)
    student = distiller.run_student(images)
    of_labels = F.cross_entropy(student.logits.float(), labels)
    terms = {LABELS: (1.0, of_labels)} | distiller.distillation_terms(student, teacher)
    gradients = {
        name: _gradients(weight * term, [weights[layer] for layer in names])
        for name, (weight, term) in terms.items()
    }
    return [
        _pull(layer, term, gradients[term][index], gradients[LABELS][index])
        for index, layer in enumerate(names)
        for term in terms
    ]


def _weights(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trained weights of layers by the layers' names; several where they are normalised."""
    found = {
        name: [p for p in layer.parameters() if p.requires_grad and p.dim() > 1]
        for name, layer in net.named_modules()
        if isinstance(layer, _WITH_WEIGHTS)
    }
    return {name: weights for name, weights in found.items() if weights}


def _choose(known: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Those of the names that one of the patterns fits, in their order."""
    for pattern in patterns:
        if not any(fits_pattern(name, pattern) for name in known):
            raise ValueError(
                f"no layer of the student with trained weights fits {pattern!r}; there are "
                f"{', '.join(known)}"
            )
    return [name for name in known if any(fits_pattern(name, each) for each in patterns)]


def _gradients(term: Tensor, weights: Sequence[Sequence[nn.Parameter]]) -> list[Tensor]:
    """Gradients of a term, one flat vector for each layer."""
    flat = [weight for of_layer in weights for weight in of_layer]
    found: Any = torch.autograd.grad(
        term, flat, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    remaining = iter(found)
    return [torch.cat([next(remaining).flatten() for _ in of_layer]) for of_layer in weights]


def _pull(layer: str, term: str, gradient: Tensor, of_labels: Tensor) -> Pull:
    norm, reference = float(gradient.double().norm()), float(of_labels.double().norm())
    product = float(gradient.double() @ of_labels.double())
    return Pull(
        layer=layer,
        term=term,
        norm=norm,
        ratio=norm / reference if reference else float("inf"),
        cosine=product / (norm * reference) if norm and reference else 0.0,
    )
