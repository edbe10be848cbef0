"""FSP matrices ("A Gift from Knowledge Distillation"): how maps change from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.features import FeatureDistiller
from torchadder.distill.taps import check_equal_channels

_POOL: dict[int, Any] = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}
"""By the number of dimensions of the positions."""


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Flow of the solution procedure between two layers of a net.

    `G[n,i,j] = 1 / (H W) sum_p a[n,i,p] b[n,j,p]` (Yim et al., CVPR 2017, eq. 1). Where the maps
    differ in size, the larger ones are max pooled to the size of the smaller, as in the paper.

    Args:
        first: a, shape (N, C, H, W), or with one or three dimensions of positions.
        second: b, shape (N, D, H', W') likewise.

    Returns:
        Tensor (N, C, D), float32 for half precision maps.

    Examples:
        >>> fsp_matrix(torch.ones(1, 1, 2, 2), torch.full((1, 2, 2, 2), 3.0))
        tensor([[[3., 3.]]])
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    size = tuple(min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
    a_NCP, b_NDP = (
        (maps if maps.shape[2:] == size else _POOL[len(size)](maps, size)).to(dtype).flatten(2)
        for maps in (first, second)
    )
    return a_NCP @ b_NDP.mT / a_NCP.shape[2]


class FSP(FeatureDistiller):
    """FSP matrices, "Gift-KD" (Yim, Joo, Bae and Kim, CVPR 2017, eq. 2).

    `L_FSP = sum_i mean_{n,c,d} (G_S^i[n,c,d] - G_T^i[n,c,d])^2`, G from `fsp_matrix` of the i-th
    and the (i+1)-th tapped layer. Our reading in two points: the paper first trains with this loss
    alone and then with the labels alone, here both are added up as for all methods; and where the
    equation has the sum over a matrix, the mean keeps the meaning of beta, which has no printed
    value, for layers of any width. The nets must have equal widths.

    Args:
        student: the net that learns, images to logits (N, K).
        teacher: the net it learns from, with layers of the same names and widths.
        alpha: weight of the soft labels, see `KD`.
        beta: weight of `L_FSP`.
        temperature: temperature of the soft labels.
        taps: names or patterns of the layers, in their order; None for those of `find_stages`.
        progressive: whether the teacher is trained, too.

    Raises:
        ValueError: see `FeatureDistiller`; layers of different widths, fewer than two layers; on
            a call, layers without maps.
    """

    part = "fsp"
    agreement = "channels"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float = 0.0,
        beta: float = 5.0,
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
        if self.beta > 0:
            check_equal_channels(student, teacher, self.taps, "FSP")
            if len(self.taps) < 2:
                raise ValueError(f"FSP needs at least two layers, got taps {list(self.taps)}")

    def distance(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Return `L_FSP`."""
        self._check_maps(student, teacher)
        losses = []
        for first, second in pairwise(self.taps):
            difference = fsp_matrix(student[first], student[second]) - fsp_matrix(
                teacher[first], teacher[second]
            )
            losses.append(difference.square().mean())
        return torch.stack(losses).sum()
