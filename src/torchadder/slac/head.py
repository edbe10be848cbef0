"""The classifier of SLAC: a skewed multivariate Laplace density for every class."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Elements of Sigma that are worked on at a time: bounds the memory to this many for each sample.
CHUNK_ELEMENTS = 1 << 16


class SlacHead(nn.Module):
    """Features (N, D) to log densities (N, K) of a skewed multivariate Laplace mixture.

    .. code-block:: text

        log f_k(x) = - log|Sigma_k| / 2 - log alpha_k - alpha_k m_k(x)
                     + (x - mu_k)' Sigma_k^-1 gamma_k  [- log_normaliser]
        m_k(x)^2   = (x - mu_k)' Sigma_k^-1 (x - mu_k)
        alpha_k^2  = 1 + gamma_k' Sigma_k^-1 gamma_k

    (SLAC, NeurIPS 2021, Eq. 3; Eq. 4 prints alpha_k and |Sigma_k| without their logarithms.) The
    normaliser is the same for all classes, see :attr:`log_normaliser`, so the outputs leave it out;
    with equal class probabilities their softmax is the posterior of the classes.

    Sigma_k is diagonal and stored as its logarithm, which keeps it positive and lets weight decay
    pull it to 1: our choice, the paper stores Sigma. Initial values are the paper's: mu drawn by
    Xavier's rule (uniform), Sigma = 1, gamma = 0. Distances are summed from differences, never as
    ``x^2 - 2 x mu + mu^2``, and in the dtype of the parameters under autocast too. At x = mu, where
    m has a kink, its gradient is taken as 0.

    Args:
        num_features: D.
        num_classes: K.

    Attributes:
        mu: locations (K, D).
        log_sigma: logarithms of the diagonals of Sigma (K, D).
        gamma: skews (K, D).

    Raises:
        ValueError: a count is below 1.

    Examples:
        >>> import torch
        >>> SlacHead(84, 10)(torch.randn(5, 84)).shape
        torch.Size([5, 10])
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        if num_features < 1 or num_classes < 1:
            raise ValueError(
                f"num_features and num_classes must be at least 1, got {num_features} and "
                f"{num_classes}"
            )
        self.num_features = num_features
        self.num_classes = num_classes
        shape = (num_classes, num_features)
        self.mu = nn.Parameter(torch.empty(shape))
        self.log_sigma = nn.Parameter(torch.empty(shape))
        self.gamma = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw mu by Xavier's rule, set Sigma to 1 and gamma to 0."""
        nn.init.xavier_uniform_(self.mu)
        nn.init.zeros_(self.log_sigma)
        nn.init.zeros_(self.gamma)

    @property
    def log_normaliser(self) -> float:
        """Logarithm of the integral of ``exp(forward(x))[k]`` over x, the same for every k.

        ``D log 2 + (D - 1)/2 log pi + log Gamma((D + 1)/2)``: in u = Sigma^(-1/2) (x - mu) and
        g = Sigma^(-1/2) gamma the integral of ``exp(-alpha |u| + g'u)`` is proportional to
        ``alpha / (alpha^2 - |g|^2)^((D+1)/2)``, and ``alpha^2 - |g|^2 = 1``.
        """
        D = self.num_features
        return D * math.log(2) + (D - 1) / 2 * math.log(math.pi) + math.lgamma((D + 1) / 2)

    def forward(self, features: Tensor) -> Tensor:
        """Log densities, up to :attr:`log_normaliser`, of ``features`` (N, D): (N, K).

        Raises:
            ValueError: ``features`` is not (N, D).
        """
        if features.dim() != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"features must have shape (N, {self.num_features}), got {tuple(features.shape)}"
            )
        classes = max(1, CHUNK_ELEMENTS // self.num_features)
        with full_precision(features):
            x = features.to(self.mu.dtype)
            if classes >= self.num_classes or not torch.is_grad_enabled():
                return _log_densities(x, self.mu, self.log_sigma, self.gamma)
            parameters = zip(
                *(p.split(classes) for p in (self.mu, self.log_sigma, self.gamma)), strict=True
            )
            # The backward computes a chunk's differences again instead of keeping all of them.
            parts = [
                checkpoint(_log_densities, x, *each, use_reentrant=False) for each in parameters
            ]
            return torch.cat(parts, dim=1)

    def extra_repr(self) -> str:
        """The two sizes."""
        return f"num_features={self.num_features}, num_classes={self.num_classes}"


def _log_densities(x_ND: Tensor, mu_KD: Tensor, log_sigma_KD: Tensor, gamma_KD: Tensor) -> Tensor:
    inverse_KD = torch.exp(-log_sigma_KD)
    alpha_K = (1 + (gamma_KD.square() * inverse_KD).sum(1)).sqrt()
    difference_KND = x_ND - mu_KD[:, None]
    squares_KN = torch.bmm(difference_KND.square(), inverse_KD[:, :, None]).squeeze(2)
    skew_KN = torch.bmm(difference_KND, (gamma_KD * inverse_KD)[:, :, None]).squeeze(2)
    scale_K = log_sigma_KD.sum(1) / 2 + alpha_K.log()
    return (skew_KN - alpha_K[:, None] * root(squares_KN) - scale_K[:, None]).t()


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A `with` block without autocast on the device of ``tensor``."""
    device_type = tensor.device.type
    if not torch.amp.is_autocast_available(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def root(squares: Tensor) -> Tensor:
    """Square root of numbers >= 0 whose gradient at 0 is 0."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)
