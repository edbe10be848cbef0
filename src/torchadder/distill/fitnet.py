"""FitNets: hints, that is the squared distance of activations behind a regressor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.distiller import NetOutput
from torchadder.distill.features import FeatureDistiller
from torchadder.distill.taps import check_equal_channels, find_widths, module_key, num_channels


class FitNet(FeatureDistiller):
    """Hints (Romero et al., arXiv 1412.6550, eq. 3), or plain L2 between features.

    `L_hint = 1/2 sum_j mean_{n,c,p} (r_j(a_S^j)[n,c,p] - a_T^j[n,c,p])^2` with r_j a trained 1x1
    convolution from the student's width to the teacher's. The paper trains the lower half of the
    net with one hint before anything else; here the hint is a term beside the labels for the whole
    training, with the mean in place of the sum so that beta does not depend on the size of the
    maps (our reading; beta has no printed value). With `linear_map=False` there is no regressor,
    and the nets must have equal widths.

    The regressors are the loss's own parameters, see `own_parameters`. Their widths are those that
    the layers state or, for parts of a net, those of a run without data, see `find_widths`. Where
    that run fails, they are guessed from the layers of the part, and the first batch shows whether
    the guess holds.

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
            call, maps of different sizes, or of other widths than those of the regressor.
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
            sides = [(net, find_widths(net, self.taps)) for net in (student, teacher)]
            for name in self.taps:
                ours, theirs = (
                    known[name] if name in known else num_channels(net, name)
                    for net, known in sides
                )
                self.regressors[module_key(name)] = nn.Linear(ours, theirs)
            self.regressors.to(next(student.parameters()).device)
        elif self.taps:
            check_equal_channels(student, teacher, self.taps, "FitNet with linear_map=False")

    def distance(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """Return `L_hint`."""
        losses = []
        for name in self.taps:
            hint = teacher[name]
            features = student[name].to(torch.promote_types(hint.dtype, torch.float32))
            if self.regressors:
                regressor: Any = self.regressors[module_key(name)]
                # In the type of the features, whatever that of the regressor.
                weight, bias = (p.to(features.dtype) for p in (regressor.weight, regressor.bias))
                features = F.linear(features.movedim(1, -1), weight, bias).movedim(-1, 1)
            losses.append(F.mse_loss(features, hint.to(features.dtype)) / 2)
        return torch.stack(losses).sum()

    def _check_taps(self, student: NetOutput, teacher: NetOutput) -> None:
        super()._check_taps(student, teacher)
        for name in self.taps:
            shapes = [tuple(net.taps[name].shape) for net in (student, teacher)]
            got = [shape[1:2] for shape in shapes]
            sides = f"{shapes[0]} in the student, {shapes[1]} in the teacher"
            if not self.regressors:
                if got[0] != got[1]:
                    raise ValueError(
                        f"FitNet with linear_map=False needs maps (N, C, ...) of equal widths, got "
                        f"from layer {name!r} {sides}; use linear_map=True"
                    )
                continue
            regressor = self.regressors[module_key(name)]
            if got != [(regressor.in_features,), (regressor.out_features,)]:
                raise ValueError(
                    f"the width of layer {name!r} could not be known without images: FitNet's "
                    f"regressor maps {regressor.in_features} to {regressor.out_features} channels, "
                    f"got {sides}; name with taps= a convolution or a normalisation beside or in it"
                )
