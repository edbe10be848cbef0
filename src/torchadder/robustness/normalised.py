"""The normalisation of the images as the first layer of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """A model of images in [0, 1] made from one of normalised images.

    ``model((images - mean[c]) / std[c])``. The difference is taken in the images' own dtype and
    then cast to that of the model's first parameter, so that a half-precision model sees float32
    images whose perturbations were not rounded.

    Args:
        model: The model, shared and not copied.
        mean: Mean of each channel, pixels in 0..1.
        std: Standard deviation of each channel, above 0.

    Shape:
        (N, C, H, W) to whatever the model returns.

    Raises:
        ValueError: mean and std differ in length, or an std is not positive; called with images of
            another number of channels.

    Examples:
        >>> import torch
        >>> model = Normalised(torch.nn.Flatten(), mean=[0.5], std=[0.25])
        >>> model(torch.ones(1, 1, 1, 2))
        tensor([[2., 2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"mean and std must have one value a channel, got {mean} and {std}")
        if not all(value > 0 for value in std):
            raise ValueError(f"std must be positive, got {std}")
        self.model = model
        first = next(model.parameters(), torch.empty(0))
        for name, values in (("mean", mean), ("std", std)):
            # Not float64, which not every device has.
            column = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).to(first.device)
            self.register_buffer(name, column, persistent=False)
        self.training = model.training  # not train(), which would change the model's parts

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        if images.shape[-3:-2] != self.mean.shape[:1]:
            raise ValueError(
                f"images must have shape (N, {len(self.mean)}, H, W), a channel for each mean, got "
                f"{tuple(images.shape)}"
            )
        normal = (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)
        first = next(self.model.parameters(), normal)
        return self.model(normal.to(first.dtype))
