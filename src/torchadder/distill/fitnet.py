"""FitNets: hints, that is the squared distance of activations behind a regressor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.features import FeatureDistiller
from torchadder.distill.taps import check_equal_channels, module_key, num_channels


class FitNet(FeatureDistiller):
    """Hints (Romero et al., arXiv 1412.6550, eq. 3), or plain L2 between features.

    `L_hint = 1/2 sum_j mean_{n,c,p} (r_j(a_S^j)[n,c,p] - a_T^j[n,c,p])^2` with r_j a trained 1x1
    convolution from the student's width to the teacher's. The paper trains the lower half of the
    net with one hint before anything else; here the hint is a term beside the labels for the whole
    training, with the mean in place of the sum so that beta does not depend on the size of the
    maps (our reading; beta has no printed value). With `linear_map=False` there is no regressor,
    and the nets must have equal widths.

    The regressors are the loss's own parameters, see `own_parameters`.

    Args:
        student: the net that learns, images to logits (N, K).
        teacher: the net it learns from, with layers of the same names.
        alpha: weight of the soft labels, see `KD`.
        beta: weight of `L_hint`.
        temperature: temperature of the soft labels.
        taps: names or patterns of the layers; None for those of `find_stages`.
        linear_map: whether there are regressors.
        progressive: whether the teacher is trained, too.

    Raises:
        ValueError: see `FeatureDistiller`; without regressors, layers of different widths; on a
            call, maps of different sizes.
    """

    part = "hint"
    agreement = "positions"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float = 0.0,
        beta: float = 5.0,
        temperature: float = 1.0,
        taps: Sequence[str] | None = None,
        linear_map: bool = True,
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
        self.regressors = nn.ModuleDict()
        if linear_map:
            for name in self.taps:
                widths = (num_channels(student, name), num_channels(teacher, name))
                self.regressors[module_key(name)] = nn.Linear(*widths)
        elif self.taps:
            check_equal_channels(student, teacher, self.taps, "FitNet with linear_map=False")

    def distance(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Return `L_hint`."""
        losses = []
        for name in self.taps:
            hint = teacher[name]
            features = student[name].to(torch.promote_types(hint.dtype, torch.float32))
            if self.regressors:
                regressor = self.regressors[module_key(name)]
                features = regressor(features.movedim(1, -1)).movedim(-1, 1)
            losses.append(F.mse_loss(features, hint.to(features.dtype)) / 2)
        return torch.stack(losses).sum()
