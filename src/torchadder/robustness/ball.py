"""The images an attack may choose from."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Ball:
    """Images in [0, 1] that differ from given ones by at most epsilon in every pixel.

    The bounds are rounded inwards: for every ``y`` within them ``|y - x| <= epsilon`` holds exactly
    as well as in the images' own arithmetic, rounding included.

    Args:
        images: Images (N, ...) in [0, 1], float32 or float64.
        epsilon: Radius in the maximum norm, at least 0.

    Attributes:
        lower: Smallest value of every pixel.
        upper: Largest value of every pixel.

    Raises:
        ValueError: If epsilon is negative or not finite.
    """

    def __init__(self, images: Tensor, epsilon: float) -> None:
        check_epsilon(epsilon)
        self.epsilon = epsilon
        # Once an attack and in float64, which not every device has.
        centre = images.detach().cpu()
        self.lower = _bound(centre, -epsilon).clamp(min=0)
        self.upper = _bound(centre, epsilon).clamp(max=1)

    def project(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """The nearest images within the ball; `rows` are their numbers if they are not all."""
        if self.lower.device != images.device:  # that of the model, where images came from another
            self.lower, self.upper = self.lower.to(images.device), self.upper.to(images.device)
        lower = self.lower if rows is None else self.lower[rows]
        upper = self.upper if rows is None else self.upper[rows]
        return torch.minimum(torch.maximum(images, lower), upper)


def check_epsilon(epsilon: float) -> None:
    """Raise ValueError unless epsilon is a radius."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon must be a number of at least 0, got {epsilon}")


def _bound(centre: Tensor, distance: float) -> Tensor:
    """The values next to `centre + distance` that are not too far away.

    A value that rounding has put too far away is moved by one unit in its own last place, or in the
    last place of the distance where that is more, and by twice as many if it still is.
    """
    bound = (centre.double() + distance).to(centre.dtype)
    reach, unit = abs(distance), torch.finfo(centre.dtype).eps / 2
    while True:
        exact = (bound.double() - centre.double()).abs()
        rounded = (bound - centre).abs().double()
        too_far = (exact > reach) | (rounded > reach)
        if not too_far.any():
            return bound
        nearer = (centre.double() + distance * (1 - unit)).to(centre.dtype)
        stepped = torch.nextafter(bound, centre)
        is_nearer = (nearer - centre).abs() < (stepped - centre).abs()
        bound = torch.where(too_far, torch.where(is_nearer, nearer, stepped), bound)
        unit *= 2
