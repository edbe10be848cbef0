"""The plain version, as in AdderNet's released code: unfold the images, broadcast, subtract, sum.

Holds every |x - w| of as many images at once as it is told: C*R*S*O*P*Q numbers each. The published
code takes the whole batch; image by image is kinder to caches and several times faster.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadder.functional import _tuple as pair

LARGEST_TEMPORARY = 1 << 29


class UnfoldAdder(torch.autograd.Function):
    """``-sum |x - w|`` with AdderNet's gradients, by broadcasting (O, K, L) tensors."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, input: Tensor, weight: Tensor, stride: Any, padding: Any, images: int
    ) -> Tensor:
        """Shapes: input (N, C, H, W), weight (O, C, R, S); ``images`` are taken at once."""
        ctx.save_for_backward(input, weight)
        ctx.window = {"kernel_size": weight.shape[2:], "stride": stride, "padding": padding}
        ctx.images = max(1, images)
        filters = weight.flatten(1)
        columns = F.unfold(input, **ctx.window)
        rows = [
            -(filters[None, :, :, None] - part[:, None]).abs().sum(2)
            for part in columns.split(ctx.images)
        ]
        (sh, sw), (ph, pw) = stride, padding
        P = (input.shape[2] + 2 * ph - weight.shape[2]) // sh + 1
        Q = (input.shape[3] + 2 * pw - weight.shape[3]) // sw + 1
        return torch.cat(rows).unflatten(2, (P, Q))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:  # type: ignore[override]
        """Weight: ``sum (x - w) g``; input: ``sum clamp(w - x, -1, 1) g``."""
        input, weight = ctx.saved_tensors
        filters = weight.flatten(1)
        columns = F.unfold(input, **ctx.window)
        grad_columns, grad_filters = [], torch.zeros_like(filters)
        gradients = grad_output.flatten(2)[:, :, None]
        parts = zip(columns.split(ctx.images), gradients.split(ctx.images), strict=True)
        for part, gradient in parts:
            difference = part[:, None] - filters[None, :, :, None]
            if ctx.needs_input_grad[1]:
                grad_filters += (difference * gradient).sum((0, 3))
            if ctx.needs_input_grad[0]:
                clipped = difference.clamp_(-1, 1).neg_()
                grad_columns.append((clipped * gradient).sum(1))
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = F.fold(torch.cat(grad_columns), input.shape[2:], **ctx.window)
        return grad_input, grad_filters.view_as(weight), None, None, None


class UnfoldAdder2d(nn.Conv2d):
    """The baseline as a layer, for timing whole models."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        return unfold_adder2d(input, self.weight, self.stride, self.padding)  # type: ignore[arg-type]


def images_that_fit(weight: Tensor, num_positions: int) -> int:
    """As many images as a temporary of LARGEST_TEMPORARY numbers holds, at least one."""
    return max(1, LARGEST_TEMPORARY // (weight.numel() * num_positions))


def unfold_adder2d(
    input: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    images: int | None = None,
) -> Tensor:
    """The baseline as a function.

    Args:
        input: (N, C, H, W).
        weight: (O, C, R, S).
        stride: window step.
        padding: zeros on both sides.
        images: images taken at once; by default the whole batch, as the published code does, as far
            as a temporary of LARGEST_TEMPORARY numbers (2 GiB) holds it.
    """
    steps, pads = pair("stride", stride, 2), pair("padding", padding, 2)
    if images is None:
        P = (input.shape[2] + 2 * pads[0] - weight.shape[2]) // steps[0] + 1
        Q = (input.shape[3] + 2 * pads[1] - weight.shape[3]) // steps[1] + 1
        images = images_that_fit(weight, P * Q)
    return UnfoldAdder.apply(input, weight, steps, pads, images)  # type: ignore[no-any-return]
