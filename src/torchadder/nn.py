"""Adder layers: arguments and attributes of their ``torch.nn`` twins, plus the gradient rule.

Layers hold parameters and call :mod:`torchadder.functional`; they know nothing of kernels. They are
not subclasses of ``nn.Conv2d``: code that treats convolutions specially (initialisers, quantisers,
op counters) must not take them for multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from torchadder import functional as AF
from torchadder.ops.geometry import check_rule

__all__ = ["Adder1d", "Adder2d", "AdderLinear", "AdderModule", "AdderTranspose2d"]


class AdderModule(nn.Module):
    """Base of every adder layer, so that ``isinstance`` finds them all.

    Attributes:
        weight: the filters, initialised from the normal distribution N(0, 1) as AdderNet does.
        bias: one offset an output, initialised with 0, or None.
        grad: name of the gradient rule, see :mod:`torchadder.functional`.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None  # type: ignore[assignment]
    grad: str

    def reset_parameters(self) -> None:
        """Draw the weights from N(0, 1) without fan scaling, as AdderNet does; zero the bias."""
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """The arguments of the torch twin, then the gradient rule."""
        return f"{super().extra_repr()}, grad={self.grad}"


def _window(name: str, value: int | Sequence[int], length: int) -> tuple[int, ...]:
    values = AF._tuple(name, value, length)
    if min(values) < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return values


def _check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    for name, count in (("in_channels", in_channels), ("out_channels", out_channels)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
        if count % groups:
            raise ValueError(f"{name} (={count}) must be divisible by groups (={groups})")


class _AdderNd(AdderModule, _ConvNd):
    """What Adder1d and Adder2d share: parsing, padding modes, the call."""

    num_spatial: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        grad: str = "clip",
    ) -> None:
        check_rule(grad)
        _check_channels(in_channels, out_channels, groups)
        length = self.num_spatial
        _ConvNd.__init__(
            self,
            in_channels,
            out_channels,
            _window("kernel_size", kernel_size, length),
            _window("stride", stride, length),
            padding if isinstance(padding, str) else AF._tuple("padding", padding, length),
            _window("dilation", dilation, length),
            False,
            (0,) * length,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        self.grad = grad

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, see the class."""
        padding = self.padding
        if self.padding_mode != "zeros":
            pads = self._reversed_padding_repeated_twice
            input = nn.functional.pad(input, pads, mode=self.padding_mode)
            padding = 0
        return self._operator(input, padding)

    def _operator(self, input: Tensor, padding: Any) -> Tensor:
        raise NotImplementedError


class Adder2d(_AdderNd):
    """Adder layer over images, the twin of ``nn.Conv2d``.

    ``output[n,o,p,q] = bias[o] - sum_{c,r,s} |x[n,c,p*sh+r*dh-ph,q*sw+s*dw-pw] - w[o,c,r,s]|``
    (AdderNet, arXiv 1912.13200, Eq. 2). Outputs are never positive without a bias, so put a
    normalisation behind it.

    Args:
        in_channels: C, channels of the input.
        out_channels: O, number of filters.
        kernel_size: (R, S), or one int for both.
        stride: window step.
        padding: on both sides, an int, a pair, "same" or "valid".
        dilation: spacing of the taps.
        groups: channel groups.
        bias: whether to add a learnable offset an output.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: device of the parameters.
        dtype: dtype of the parameters.
        grad: gradient rule, "clip", "sign", "l2" or "exact", see :mod:`torchadder.functional`.

    Shape:
        (N, C, H, W) or (C, H, W) to (N, O, P, Q) or (O, P, Q), sizes as ``nn.Conv2d``.

    Raises:
        ValueError: channels not divisible by groups, an unknown rule or padding mode.

    Examples:
        >>> import torch, torchadder as ta
        >>> layer = ta.nn.Adder2d(3, 8, kernel_size=3, padding=1, bias=False)
        >>> layer(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 8, 32, 32])
    """

    num_spatial = 2

    def _operator(self, input: Tensor, padding: Any) -> Tensor:
        return AF.adder2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            grad=self.grad,
        )


class Adder1d(_AdderNd):
    """Adder layer over sequences, the twin of ``nn.Conv1d``; arguments as :class:`Adder2d`.

    Shape:
        (N, C, L) or (C, L) to (N, O, M) or (O, M), sizes as ``nn.Conv1d``.
    """

    num_spatial = 1

    def _operator(self, input: Tensor, padding: Any) -> Tensor:
        return AF.adder1d(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            grad=self.grad,
        )


class AdderTranspose2d(AdderModule, _ConvTransposeNd):
    """Transposed adder layer, the twin of ``nn.ConvTranspose2d``.

    See :func:`torchadder.functional.adder_transpose2d` for what the spread zeros contribute.

    Args:
        in_channels: C, channels of the input.
        out_channels: O, channels of the output.
        kernel_size: (R, S), or one int for both.
        stride: upsampling factor.
        padding: pixels cut from each side of the full output.
        output_padding: rows and columns added at the bottom and the right.
        groups: channel groups.
        bias: whether to add a learnable offset an output.
        dilation: spacing of the taps.
        padding_mode: only "zeros", as in torch.
        device: device of the parameters.
        dtype: dtype of the parameters.
        grad: gradient rule, see :mod:`torchadder.functional`.

    Shape:
        (N, C, H, W) to (N, O, P, Q), sizes as ``nn.ConvTranspose2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        grad: str = "clip",
    ) -> None:
        check_rule(grad)
        _check_channels(in_channels, out_channels, groups)
        _ConvTransposeNd.__init__(
            self,
            in_channels,
            out_channels,
            _window("kernel_size", kernel_size, 2),
            _window("stride", stride, 2),
            AF._tuple("padding", padding, 2),
            _window("dilation", dilation, 2),
            True,
            AF._tuple("output_padding", output_padding, 2),
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        self.grad = grad

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer; ``output_size`` (P, Q) picks the output padding, as in torch."""
        output_padding = self._output_padding(
            input,
            output_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )
        return AF.adder_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
            grad=self.grad,
        )


class AdderLinear(AdderModule):
    """Fully connected adder layer, the twin of ``nn.Linear``.

    ``output[..., o] = bias[o] - sum_k |x[..., k] - w[o, k]|``.

    Args:
        in_features: K, size of each input row.
        out_features: O, size of each output row.
        bias: whether to add a learnable offset an output.
        device: device of the parameters.
        dtype: dtype of the parameters.
        grad: gradient rule, see :mod:`torchadder.functional`.

    Shape:
        (..., K) to (..., O).

    Examples:
        >>> import torch, torchadder as ta
        >>> ta.nn.AdderLinear(16, 4)(torch.randn(2, 5, 16)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        grad: str = "clip",
    ) -> None:
        super().__init__()
        check_rule(grad)
        if in_features < 1 or out_features < 1:
            raise ValueError(
                f"in_features and out_features must be at least 1, got {in_features} and "
                f"{out_features}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.grad = grad
        options = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty((out_features, in_features), **options))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, **options))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, see the class."""
        return AF.adder_linear(input, self.weight, self.bias, grad=self.grad)

    def extra_repr(self) -> str:
        """The arguments of ``nn.Linear``, then the gradient rule."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, grad={self.grad}"
        )
