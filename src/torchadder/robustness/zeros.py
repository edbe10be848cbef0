"""How much of an input gradient is exactly zero: a sign of masking by saturation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchadder.robustness.target import Target, share


@dataclass(frozen=True)
class ZeroGradients:
    """Exact zeros in the input gradients of images.

    Attributes:
        images: Share of the images whose gradient is zero in every pixel, 0..1.
        pixels: Share of all pixels whose gradient is zero, 0..1.
    """

    images: float
    pixels: float


@torch.inference_mode(False)
def zero_gradients(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int | None = None
) -> ZeroGradients:
    """Count exact zeros in the gradient of the cross-entropy at the images themselves.

    Args:
        model: Logits (N, classes) of images in [0, 1]; in evaluation mode, left as it is.
        images: (N, ...), float32 or float64, in [0, 1].
        labels: Class indices, int64 (N).
        batch_size: Images a pass; None: all at once.

    Raises:
        ValueError: As of `fgsm`.
        TypeError: As of `fgsm`.
    """
    target = Target(model, images, labels, batch_size, everything=True)
    zero = (target.gradient(target.images, target.rows) == 0).flatten(1)
    return ZeroGradients(share(zero.all(1)), share(zero))
