"""Attention transfer: where a net looks, as the spatial map of its activations' energy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.features import FeatureDistiller


def attention_map(activations: Tensor) -> Tensor:
    """Energy of the activations by position, of unit length for each sample.

    `q[n,p] = F[n,p] / |F[n,.]|_2`, `F[n,p] = sum_c a[n,c,p]^2` (arXiv 1612.03928, eq. 1 and section
    3.1, `F_sum^2`).

    Args:
        activations: a, shape (N, C, ...).

    Returns:
        Tensor (N, P) with P the number of positions; float32 for half precision activations.

    Examples:
        >>> attention_map(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
        tensor([[0.7071, 0.7071]])
    """
    activations = activations.to(torch.promote_types(activations.dtype, torch.float32))
    return F.normalize(activations.square().sum(1).flatten(1), dim=1)


class AT(FeatureDistiller):
    """Attention transfer (Zagoruyko and Komodakis, arXiv 1612.03928, eq. 2).

    `L_AT = sum_j mean_{n,p} (q_S^j[n,p] - q_T^j[n,p])^2`, q from `attention_map`. The equation has
    the norm of the difference with weight beta / 2; squares, their mean and beta = 1000 are the
    form in common use, which scales beta with the size of map and batch (our reading of section
    4.1). The nets may differ in width, their maps must have the same size.

    Args:
        student: the net that learns, images to logits (N, K).
        teacher: the net it learns from, with layers of the same names.
        alpha: weight of the soft labels, see `KD`.
        beta: weight of `L_AT`.
        temperature: temperature of the soft labels.
        taps: names or patterns of the layers; None for those of `find_stages`.
        progressive: whether the teacher is trained, too.

    Raises:
        ValueError: see `FeatureDistiller`; on a call, maps of different sizes or none.
    """

    part = "at"
    agreement = "positions"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float = 0.0,
        beta: float = 1000.0,
        temperature: float = 1.0,
        taps: Sequence[str] | None = None,
        progressive: bool = False,
    ) -> None:
        super().__init__(
            student,
            teacher,
            alpha=alpha,
            beta=beta,
            temperature=temperature,
            taps=taps,
            progressive=progressive,
        )

    def distance(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Return `L_AT`."""
        self._check_maps(student, teacher)
        losses = [
            F.mse_loss(attention_map(student[name]), attention_map(teacher[name]))
            for name in self.taps
        ]
        return torch.stack(losses).sum()
