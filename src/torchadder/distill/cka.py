"""How alike two nets represent the same images, layer by layer: centred kernel alignment (CKA).

A measure for the log, not a loss: it is blind to rotations and scales of the features and takes
layers of any width and size, so it also compares what no distance between outputs can.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.distill.taps import get_layer

MIN_SAMPLES = 4
"""The estimator divides by n - 3."""


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Linear CKA of two sets of features of the same samples.

    `CKA = H(K, L) / sqrt(H(K, K) H(L, L))`, `K = X X^T`, `L = Y Y^T` (Kornblith et al., arXiv
    1905.00414, eq. 2 and 3) with the unbiased estimator of HSIC

    `H(K, L) = (tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1) / (n (n-3))`

    of matrices with their diagonals set to zero (Nguyen et al., arXiv 2010.15327, eq. 3), so that
    the value does not grow with the ratio of features to samples. 1 for features that are equal up
    to rotation, scale and offset; about 0, and sometimes below, for unrelated ones; 0 where one
    side is constant.

    Args:
        first: X, shape (N, ...), any number of features.
        second: Y, likewise.

    Returns:
        Scalar, in float32 or better.

    Raises:
        ValueError: fewer than 4 samples, or different numbers of them.

    Examples:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [5.0, 1.0], [1.0, 7.0], [4.0, 2.0]])
        >>> linear_cka(x, 3 * x.flip(1) - 1)
        tensor(1.0000)
    """
    if len(first) != len(second) or len(first) < MIN_SAMPLES:
        raise ValueError(
            f"CKA needs the same samples on both sides, at least {MIN_SAMPLES}, got {len(first)} "
            f"and {len(second)}"
        )
    return _cka(_gram(first), _gram(second))


@torch.no_grad()
def layer_alignment(
    student: nn.Module, teacher: nn.Module, names: Sequence[str], images: Tensor
) -> dict[str, Tensor]:
    """`linear_cka` of the outputs of the named layers of two nets, by name, each a scalar.

    Layers are left out that do not run in one of the nets as it is, an auxiliary head in evaluation
    mode for instance, or do not give a tensor with a row for each image.

    Args:
        student: one net; its mode is left as it is.
        teacher: the other one, with layers of the same names.
        names: the layers.
        images: at least 4 images. Of each layer only a matrix of N x N numbers is kept.

    Raises:
        ValueError: too few images.
    """
    if len(images) < MIN_SAMPLES:
        raise ValueError(f"CKA needs at least {MIN_SAMPLES} images, got {len(images)}")
    ours, theirs = _grams(student, names, images), _grams(teacher, names, images)
    return {
        name: _cka(ours[name], theirs[name]) for name in names if name in ours and name in theirs
    }


def _grams(net: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Gram matrices of the outputs of the named layers."""
    found: dict[str, Tensor] = {}

    def hook_for(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim and len(output) == len(images):
                found[name] = _gram(output)

        return hook

    with contextlib.ExitStack() as hooks:
        for name in names:
            handle = get_layer(net, name).register_forward_hook(hook_for(name))
            hooks.callback(handle.remove)
        # A net compiled before would not run the hooks.
        hooks.enter_context(torch.compiler.set_stance("force_eager"))
        net(images)
    return found


def _gram(features: Tensor) -> Tensor:
    """Products of all pairs of samples, diagonal zero, in float32 or better under autocast, too.

    The features are centred first: the estimator does not notice, the rounding does.
    """
    rows = features.flatten(1).to(torch.promote_types(features.dtype, torch.float32))
    rows = rows - rows.mean(0)
    with torch.autocast(rows.device.type, enabled=False):
        return (rows @ rows.T).fill_diagonal_(0)


def _cka(first: Tensor, second: Tensor) -> Tensor:
    with torch.autocast(first.device.type, enabled=False):
        joint = _hsic(first, second)
        scale = _hsic(first, first) * _hsic(second, second)
    return torch.where(scale > 0, joint * scale.clamp(min=0).rsqrt(), torch.zeros_like(scale))


def _hsic(first: Tensor, second: Tensor) -> Tensor:
    """The unbiased estimator, up to the factor `1 / (n (n - 3))`."""
    count = len(first)
    by_sample = first.sum(0), second.sum(0)
    products = by_sample[0].sum() * by_sample[1].sum() / ((count - 1) * (count - 2))
    return (first * second).sum() + products - 2 / (count - 2) * (by_sample[0] @ by_sample[1])
