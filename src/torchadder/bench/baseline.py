"""The plain version that papers' demo code uses: unfold the image, broadcast, subtract, sum.

Holds every |x - w| of an image at once, C*R*S*O*P*Q numbers, image by image so that it fits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadder.functional import _tuple as pair


class UnfoldAdder(torch.autograd.Function):
    """``-sum |x - w|`` with AdderNet's gradients, by broadcasting (O, K, L) tensors."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, input: Tensor, weight: Tensor, stride: Any, padding: Any
    ) -> Tensor:
        """Shapes: input (N, C, H, W), weight (O, C, R, S)."""
        ctx.save_for_backward(input, weight)
        ctx.window = {"kernel_size": weight.shape[2:], "stride": stride, "padding": padding}
        filters = weight.flatten(1)
        columns = F.unfold(input, **ctx.window)
        rows = [-(filters[:, :, None] - image[None]).abs().sum(1) for image in columns]
        (sh, sw), (ph, pw) = stride, padding
        P = (input.shape[2] + 2 * ph - weight.shape[2]) // sh + 1
        Q = (input.shape[3] + 2 * pw - weight.shape[3]) // sw + 1
        return torch.stack(rows).unflatten(2, (P, Q))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:  # type: ignore[override]
        """Weight: ``sum (x - w) g``; input: ``sum clamp(w - x, -1, 1) g``."""
        input, weight = ctx.saved_tensors
        filters = weight.flatten(1)
        columns = F.unfold(input, **ctx.window)
        grad_columns, grad_filters = [], torch.zeros_like(filters)
        for image, gradient in zip(columns, grad_output.flatten(2), strict=True):
            difference = image[None] - filters[:, :, None]
            if ctx.needs_input_grad[1]:
                grad_filters += (difference * gradient[:, None]).sum(2)
            if ctx.needs_input_grad[0]:
                clipped = difference.clamp_(-1, 1).neg_()
                grad_columns.append((clipped * gradient[:, None]).sum(0))
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = F.fold(torch.stack(grad_columns), input.shape[2:], **ctx.window)
        return grad_input, grad_filters.view_as(weight), None, None


class UnfoldAdder2d(nn.Conv2d):
    """The baseline as a layer, for timing whole models."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        return UnfoldAdder.apply(input, self.weight, self.stride, self.padding)  # type: ignore[no-any-return]


def unfold_adder2d(input: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The baseline as a function."""
    return UnfoldAdder.apply(input, weight, pair("stride", stride, 2), pair("padding", padding, 2))  # type: ignore[no-any-return]
