"""The weight gradient ``sum (x - w) g`` as one convolution weight gradient and one correction.

``sum_{n,p,q} (x - w) g = conv2d's weight gradient of x and g - w * sum_{n,p,q} g``: a padded tap
has x = 0 and still pays ``-w g``, which the right-hand side gives for free, and ``sum g`` is the
gradient of a bias, which the same call returns. Rounding: both terms are sums of products in the
accumulation dtype, so the error is at most ``c eps (sum |x g| + |w| sum |g|)``, which is the bound
of the direct sum wherever x and w are of one size. Works on every device that has a convolution.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from torchadder.ops.geometry import Geometry, accumulation_dtype

_allow_tf32 = False


def allow_tf32_in_weight_gradient(allow: bool) -> None:
    """Let the convolution behind the weight gradient use TF32 on NVIDIA GPUs; off at the start.

    TF32 keeps 10 bits of each factor's mantissa: faster by a multiple, with errors about 1e-3 of
    the terms. torch's own switch for convolutions, which is on by default, does not count here: a
    layer that multiplies nothing in its forward should not lose digits because of it.

    Examples:
        >>> import torchadder as ta
        >>> ta.ops.allow_tf32_in_weight_gradient(False)
    """
    global _allow_tf32
    _allow_tf32 = bool(allow)


@contextlib.contextmanager
def _precision(device: torch.device) -> Iterator[None]:
    """True float32 in the convolutions of cuDNN, unless the user said otherwise."""
    if device.type != "cuda" or torch.version.hip:
        yield
        return
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    conv.fp32_precision = "tf32" if _allow_tf32 else "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before


def convolution_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's gradients of a convolution's input, weight and bias, as far as ``mask`` asks."""
    with _precision(input.device):
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
