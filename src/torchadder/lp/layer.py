"""The lp operator as a function and as a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchadder import functional as AF
from torchadder.nn import _AdderNd
from torchadder.ops.lp import check_exponent


def adder2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    p: float = 2.0,
    clip: bool = False,
) -> Tensor:
    """Negative p-th power of the lp distance between every image patch and every filter.

    .. code-block:: text

        output[n,o,p,q] = bias[o] - sum_{c,r,s} |input[n, c, ...] - weight[o,c,r,s]|^p
        gradient of the weight: p |x-w|^(p-1) sign(x-w)
        gradient of the input:  p |x-w|^(p-1) sign(w-x), within [-1, 1] if ``clip``

    Our reading of arXiv 2105.14202. Both gradients are the true ones unless ``clip`` is set, also
    at p = 1, where :func:`torchadder.functional.adder2d` has AdderNet's instead. At p = 2 the sum
    is taken by convolutions, whose rounding error is that of numbers of size ``(|x| + |w|)^2``. The
    exponent is rounded to the dtype in which sums are taken.

    Args:
        input: (N, C, H, W) or (C, H, W); dtypes as :func:`torchadder.functional.adder2d`.
        weight: (O, C / groups, R, S), same dtype and device.
        bias: (O,), or None.
        stride: window step, an int or (vertical, horizontal).
        padding: zeros on both sides, an int, (vertical, horizontal), "same" or "valid".
        dilation: spacing of the taps.
        groups: channel groups.
        p: the exponent, 1 .. 2.
        clip: whether the input gradient of each pair is kept within [-1, 1].

    Returns:
        (N, O, P, Q) or (O, P, Q), sizes as :func:`torchadder.functional.adder2d`.

    Raises:
        ValueError: p lies outside 1 .. 2, or as :func:`torchadder.functional.adder2d`.
        TypeError: as :func:`torchadder.functional.adder2d`.

    Examples:
        >>> import torch, torchadder as ta
        >>> x = torch.tensor([[[[1.0, 4.0]]]])
        >>> ta.lp.adder2d(x, torch.zeros(1, 1, 1, 2), p=2.0).item()
        -17.0
    """
    check_exponent(p)
    AF._refuse_tangents(input, weight, bias)
    batch, unbatched = AF._batched(input, "input", 4)
    AF._check_weight(weight, 4)
    AF._check_bias_and_groups(bias, groups)
    steps = AF._tuple("stride", stride, 2)
    spacing = AF._tuple("dilation", dilation, 2)
    batch, pads = AF._resolve_padding(batch, padding, weight.shape[2:], steps, spacing)
    operator = torch.ops.torchadder.adder2d_lp
    output = operator(batch, weight, bias, steps, pads, spacing, groups, p, clip)
    return output.squeeze(0) if unbatched else output


class LpAdder2d(_AdderNd):
    """Adder layer with ``|x - w|^p`` instead of ``|x - w|``; at p = 1 it is ``ta.nn.Adder2d``.

    Not a subclass of ``Adder2d``: what is made for adder layers (integer inference, export) must
    not take it for one. :func:`torchadder.lp.set_exponent_` changes p in whole nets, and turns the
    layers into plain ``Adder2d`` layers at p = 1.

    Args:
        *args: as ``ta.nn.Adder2d``.
        p: the exponent, 1 .. 2.
        clip: whether the input gradient is kept within [-1, 1] while p > 1.
        **kwargs: as ``ta.nn.Adder2d``; ``grad`` is the gradient rule at p = 1.

    Raises:
        ValueError: p lies outside 1 .. 2, or as ``ta.nn.Adder2d``.

    Examples:
        >>> import torch, torchadder as ta
        >>> layer = ta.lp.LpAdder2d(3, 8, kernel_size=3, padding=1, bias=False, p=1.5)
        >>> layer(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 8, 32, 32])
    """

    num_spatial = 2
    p: float
    clip: bool

    def __init__(self, *args: Any, p: float = 2.0, clip: bool = False, **kwargs: Any) -> None:
        check_exponent(p)
        super().__init__(*args, **kwargs)
        self.p = p
        self.clip = clip

    def _operator(self, input: Tensor, padding: Any) -> Tensor:
        window = (self.stride, padding, self.dilation, self.groups)
        if self.p == 1:
            return AF.adder2d(input, self.weight, self.bias, *window, grad=self.grad)
        return adder2d(input, self.weight, self.bias, *window, p=self.p, clip=self.clip)

    def extra_repr(self) -> str:
        """The arguments of ``Adder2d``, then exponent and clipping."""
        return f"{super().extra_repr()}, p={self.p:g}, clip={self.clip}"
