"""The weight gradient ``sum (x - w) g`` as one convolution weight gradient and one correction.

``sum_{n,p,q} (x - w) g = conv2d's weight gradient of x and g - w * sum_{n,p,q} g``: a padded tap
has x = 0 and still pays ``-w g``, which the right-hand side gives for free, and ``sum g`` is the
gradient of a bias, which the same call returns. Rounding: both terms are sums of products in the
accumulation dtype, so the error is at most ``c eps (sum |x g| + |w| sum |g|)``. Where x and w lie
closer to each other than to 0 that is more than the bound of the direct sum, ``c eps sum |x - w|
|g|``: at 1000 and 0.001 apart, float32 keeps hardly a digit. Works on every device that has a
convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchadder.ops import precision
from torchadder.ops.geometry import Geometry, accumulation_dtype


def convolution_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's gradients of a convolution's input, weight and bias, as far as ``mask`` asks."""
    with precision.of_convolutions(input.device):
        return torch.ops.aten.convolution_backward(
            grad_output,
            input,
            weight,
            [weight.shape[0]],
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            False,
            [0, 0],
            geometry.groups,
            list(mask),
        )


def adder2d_backward_weight(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """Weight gradient of the rules "clip", "sign" and "l2"."""
    dtype = accumulation_dtype(input.dtype)
    w = weight.to(dtype)
    if input.numel() == 0:  # no image, or images of nothing but padding
        grad_sums = grad_output.sum((0, 2, 3), dtype=dtype)
        return (-grad_sums[:, None, None, None] * w).to(weight.dtype).contiguous()
    _, result, grad_sums = convolution_backward(
        grad_output.to(dtype), input.to(dtype), w, geometry, (False, True, True)
    )
    result.addcmul_(w, grad_sums[:, None, None, None], value=-1)
    return result.to(weight.dtype).contiguous()
