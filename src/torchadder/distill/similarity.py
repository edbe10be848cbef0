"""Similarity-preserving distillation: which samples of a batch a net finds alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.features import FeatureDistiller
from torchadder.processes import BatchStatistics, lengths_of_processes, rows_of_processes


def similarity_matrix(activations: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
    """Products of all pairs of samples, each row of unit length.

    `G[i,j] = g[i,j] / |g[i,.]|_2`, `g[i,j] = sum_{c,p} a[i,c,p] a[j,c,p]` (arXiv 1907.09682, eq. 1
    to 3).

    Args:
        activations: a, shape (N, C, ...).
        lengths: number of samples of each process (`lengths_of_processes`), if j is to run over
            those of all processes, of the lowest rank first; i are this process's. None: both are
            this process's.

    Returns:
        Tensor (N, N), float32 for half precision activations; with several processes (N, M), M
        the samples of all of them.

    Examples:
        >>> similarity_matrix(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.6000, 0.8000]])
    """
    rows = activations.to(torch.promote_types(activations.dtype, torch.float32)).flatten(1)
    others = rows if lengths is None else rows_of_processes(rows, lengths)
    return F.normalize(rows @ others.T, dim=1)


class SP(FeatureDistiller, BatchStatistics):
    """Similarity-preserving distillation (Tung and Mori, arXiv 1907.09682, eq. 4).

    `L_SP = 1 / N^2 sum_j |G_S^j - G_T^j|_F^2`, G from `similarity_matrix`; beta is the paper's
    gamma. Only the number of samples has to agree: width and size of the maps are free. Samples
    are those of the process's share of the batch, or, `synchronised`, of the whole batch.

    Args:
        student: the net that learns, images to logits (N, K).
        teacher: the net it learns from, with layers of the same names.
        alpha: weight of the soft labels, see `KD`.
        beta: weight of `L_SP`.
        temperature: temperature of the soft labels.
        taps: names or patterns of the layers; None for those of `find_stages`.
        progressive: whether the teacher is trained, too.

    Raises:
        ValueError: see `FeatureDistiller`.
    """

    part = "sp"
    agreement = "samples"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float = 0.0,
        beta: float = 3000.0,
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
        """Return `L_SP`."""
        lengths = None
        if self.spans_processes():
            lengths = lengths_of_processes(student[self.taps[0]])
        losses = [
            F.mse_loss(
                similarity_matrix(student[name], lengths=lengths),
                similarity_matrix(teacher[name], lengths=lengths),
            )
            for name in self.taps
        ]
        return torch.stack(losses).sum()
