"""The loss of SLAC: classification, likelihood, and angles of the skews."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchadder.slac.head import SlacHead, full_precision

# Skews shorter than this have no angle to speak of: the cosine fades to 0 there. Without it, the
# gradient of the angle would grow like 1 / |gamma| around the initial gamma = 0.
SHORTEST_SKEW = 1e-2


@dataclass(frozen=True)
class SlacLoss:
    """The loss and its parts, scalars; the parts are detached and not weighted.

    Attributes:
        loss: ``classification + nll_weight * likelihood + ac_weight * angles``.
        classification: L_c, the cross-entropy of the classes' posterior.
        likelihood: L_nll, the mean negative log-likelihood, up to the head's `log_normaliser`.
        angles: L_ac.
    """

    loss: Tensor
    classification: Tensor
    likelihood: Tensor
    angles: Tensor


def slac_loss(
    log_densities: Tensor,
    labels: Tensor,
    head: SlacHead,
    *,
    nll_weight: float = 0.01,
    ac_weight: float = 0.1,
) -> SlacLoss:
    """SLAC's loss ``L_c + nll_weight L_nll + ac_weight L_ac`` of a batch.

    .. code-block:: text

        L_c   = - mean_n log [ f_y(x_n) / sum_k f_k(x_n) ]
        L_nll = - mean_n log [ f_y(x_n) / K ]
        L_ac  = angle_term(head)

    (SLAC, NeurIPS 2021; lambda = 0.01 and beta = 0.1 are its values.) Gradients are autograd's; the
    paper's own (Eq. 10) has a sign wrong.

    Args:
        log_densities: (N, K), output of ``head``.
        labels: class indices (N).
        head: the head, for its parameters.
        nll_weight: the paper's lambda.
        ac_weight: the paper's beta.
    """
    classification = F.cross_entropy(log_densities, labels)
    likelihood = F.nll_loss(log_densities, labels) + math.log(head.num_classes)
    angles = angle_term(head)
    return SlacLoss(
        loss=classification + nll_weight * likelihood + ac_weight * angles,
        classification=classification.detach(),
        likelihood=likelihood.detach(),
        angles=angles.detach(),
    )


def angle_term(head: SlacHead) -> Tensor:
    """How far the angles between skews are from what the distances of the classes ask for.

    ``L_ac = mean_{m,n} [cos(gamma_m, gamma_n) - (d_m - 2 D(m,n)) / d_m]^2`` with
    ``d_m = max_n D(m,n)``: skews of a class and itself should be parallel, those of the two classes
    farthest apart opposite. The cosine is ``gamma_m'gamma_n`` over the product of the lengths
    ``sqrt(|gamma|^2 + SHORTEST_SKEW^2)``, our reading: the paper does not say what the angle of
    gamma = 0 is, from where it starts.
    """
    distances = class_distances(head)
    farthest = distances.amax(1, keepdim=True).clamp_min(torch.finfo(distances.dtype).tiny)
    lengths = (head.gamma.square().sum(1) + SHORTEST_SKEW**2).sqrt()
    directions = head.gamma / lengths[:, None]
    with full_precision(head.gamma):
        cosines = directions @ directions.t()
    return (cosines - 1 + 2 * distances / farthest).square().mean()


def class_distances(head: SlacHead) -> Tensor:
    """``D(m,n) = (mu_m - mu_n)' Sigma_n^-1 (mu_m - mu_n)``, (K, K), not symmetric."""
    with full_precision(head.mu):
        inverse = torch.exp(-head.log_sigma)
        weighted = head.mu * inverse
        own = (head.mu * weighted).sum(1)
        products = head.mu.square() @ inverse.t() - 2 * head.mu @ weighted.t() + own
        off_diagonal = 1 - torch.eye(head.num_classes, dtype=products.dtype, device=products.device)
        return products.clamp_min(0) * off_diagonal
