"""p = 2 by convolutions: ``sum (x - w)^2 = sum x^2 - 2 sum x w + sum w^2``.

The sum of x^2 over a patch is a convolution of the channel sums of x^2 with ones, one for all
filters of a group. Rounding: the terms are as large as ``(|x| + |w|)^2``, so the error is at most
``c eps sum (|x| + |w|)^2``; where x and w nearly agree in every tap that is more than the distance
itself, which is therefore kept at or above 0. An infinite operand gives NaN. The input gradient
``sum 2 (w - x) g`` is the gradient of a convolution minus x times the sums of g over the outputs
that see a pixel. Works on every device that has a convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadder.ops import precision, weight_gradient
from torchadder.ops.geometry import Geometry, accumulation_dtype, memory_format, output_shape


def _ones(weight: Tensor, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """One filter of ones a group, over one channel a group."""
    return weight.new_ones((geometry.groups, 1, *weight.shape[2:]), dtype=dtype)


def _group_sums(tensor: Tensor, groups: int) -> Tensor:
    """Sums over the channels of each group: (N, C, H, W) to (N, groups, H, W)."""
    return tensor.unflatten(1, (groups, -1)).sum(2)


def adder2d(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """``y = bias - sum (x - w)^2``."""
    N, O, P, Q = output_shape(input, weight, bias, geometry)
    dtype = accumulation_dtype(input.dtype)
    x, w = input.to(dtype), weight.to(dtype)
    if x.numel() == 0:  # no image, or images of nothing but padding
        distance = w.square().sum((1, 2, 3))[:, None, None].expand(N, O, P, Q)
    else:
        ones = _ones(weight, geometry, dtype)
        with precision.of_convolutions(x.device):
            x_squares = F.conv2d(_group_sums(x.square(), geometry.groups), ones, None, *geometry)
            products = F.conv2d(x, w, None, *geometry)
        w_squares = w.square().sum((1, 2, 3)).unflatten(0, (geometry.groups, -1))
        cross = products.unflatten(1, (geometry.groups, -1))
        sums = x_squares.unsqueeze(2) + w_squares[..., None, None]
        distance = (sums - 2 * cross).clamp_min_(0).flatten(1, 2)
    output = -distance if bias is None else bias.to(dtype)[:, None, None] - distance
    return output.to(input.dtype).contiguous(memory_format=memory_format(input))


def _convolution_input_gradient(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    mask = (True, False, False)
    return weight_gradient.convolution_backward(grad_output, input, weight, geometry, mask)[0]


def adder2d_backward_input(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """``grad_input = sum over taps and outputs of 2 (w - x) * grad_output``."""
    if input.numel() == 0 or grad_output.numel() == 0:
        return torch.zeros_like(input, memory_format=memory_format(input))
    dtype = accumulation_dtype(input.dtype)
    g, x, w = grad_output.to(dtype), input.to(dtype), weight.to(dtype)
    ones = _ones(weight, geometry, dtype)
    g_sums = _group_sums(g, geometry.groups)
    seen = _convolution_input_gradient(g_sums, x[:, : geometry.groups], ones, geometry)
    products = _convolution_input_gradient(g, x, w, geometry)
    x_parts = x.unflatten(1, (geometry.groups, -1))
    parts = products.unflatten(1, (geometry.groups, -1)) - x_parts * seen.unsqueeze(2)
    result = 2 * parts.flatten(1, 2)
    return result.to(input.dtype).contiguous(memory_format=memory_format(input))


def adder2d_backward_weight(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """``grad_weight = sum over images and positions of 2 (x - w) * grad_output``."""
    return 2 * weight_gradient.adder2d_backward_weight(grad_output, input, weight, geometry)
