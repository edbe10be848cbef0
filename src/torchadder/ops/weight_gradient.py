"""The weight gradient ``sum (x - w) g`` as one convolution weight gradient and one correction.

``sum_{n,p,q} (x - w) g = conv2d's weight gradient of x and g - w * sum_{n,p,q} g``: a padded tap has
x = 0 and still pays ``-w g``, which the right-hand side gives for free. Rounding: both terms are
sums of products in the accumulation dtype, so the error is at most ``c eps (sum |x g| + |w| sum |g|)``
(the sum is taken blockwise by torch), which is the bound of the direct sum wherever x and w are of
one size. Works on every device that has a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchadder.ops.geometry import Geometry, accumulation_dtype


def adder2d_backward_weight(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """Weight gradient of the rules "clip", "sign" and "l2"."""
    dtype = accumulation_dtype(input.dtype)
    w = weight.to(dtype)
    if input.numel() == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    g = grad_output.to(dtype)
    _, result, _ = torch.ops.aten.convolution_backward(
        g,
        input.to(dtype),
        w,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0, 0],
        geometry.groups,
        [False, True, False],
    )
    result = result - w * g.sum((0, 2, 3))[:, None, None, None]
    return result.to(weight.dtype).contiguous()
