"""The adder operator as functions: arguments of their ``torch.nn.functional`` twins, plus ``grad``.

Checks and normalises arguments, then calls the registered operator ``torchadder::adder2d``; the
1-d, linear and transposed forms are views of it.

Gradient rules, ``grad=`` (x input, w weight, g the gradient that arrives from above):

========= ============================ =============================== ============================
rule      gradient of the input        gradient of the weight          source
========= ============================ =============================== ============================
``clip``  ``sum clamp(w-x, -1, 1) g``  ``sum (x-w) g``                 AdderNet, arXiv 1912.13200,
                                                                       Eq. 5-6
``sign``  ``sum sign(w-x) g``          ``sum (x-w) g``                 Adder detectors, arXiv
                                                                       2112.13608, section 3.1
``l2``    ``sum (w-x) g``              ``sum (x-w) g``                 gradient of ``-sum(x-w)^2/2``
``exact`` ``sum sign(w-x) g``          ``sum sign(x-w) g``             true derivative almost
                                                                       everywhere; ``sign(0) = 0``
========= ============================ =============================== ============================

All are linear in g: AdderNet's per-layer normalisation lives in
:class:`torchadder.optim.AdaptiveLR`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

import torchadder.ops  # noqa: F401 - registers torch.ops.torchadder
from torchadder.ops.geometry import check_rule

__all__ = ["adder1d", "adder2d", "adder_linear", "adder_transpose1d", "adder_transpose2d"]


def _tuple(name: str, value: int | Sequence[int], length: int) -> tuple[int, ...]:
    """An int or ``length`` ints as a tuple of ``length`` ints."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int or {length} ints, got {value!r}")
    if isinstance(value, int | torch.SymInt):
        return (value,) * length  # type: ignore[return-value]
    try:
        values = tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be an int or {length} ints, got {value!r}") from None
    if len(values) == 1:
        values *= length
    if len(values) != length:
        raise ValueError(f"{name} must be an int or {length} ints, got {value!r}")
    if any(isinstance(v, bool) or not isinstance(v, int | torch.SymInt) for v in values):
        raise TypeError(f"{name} must be an int or {length} ints, got {value!r}")
    return values


def _batched(input: Tensor, name: str, rank: int) -> tuple[Tensor, bool]:
    """``input`` with a batch dimension, and whether it had to be added."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(input).__name__}")
    if input.dim() not in (rank - 1, rank):
        raise ValueError(
            f"{name} must have {rank} dimensions, or {rank - 1} without a batch, got "
            f"{input.dim()} (shape {tuple(input.shape)})"
        )
    unbatched = input.dim() == rank - 1
    return (input.unsqueeze(0) if unbatched else input), unbatched


def _check_weight(weight: Tensor, rank: int) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if weight.dim() != rank:
        raise ValueError(
            f"weight must have {rank} dimensions, got {weight.dim()} (shape {tuple(weight.shape)})"
        )
    if weight.numel() == 0:
        raise ValueError(f"weight must not be empty, got shape {tuple(weight.shape)}")


def _check_bias_and_groups(bias: Tensor | None, groups: int) -> None:
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"bias must be a torch.Tensor or None, got {type(bias).__name__}")
    if isinstance(groups, bool) or not isinstance(groups, int | torch.SymInt):
        raise TypeError(f"groups must be an int, got {groups!r}")


def _refuse_tangents(*operands: Tensor | None) -> None:
    """A registered operator without a forward-mode rule would give zeros, silently."""
    for operand in operands:
        if isinstance(operand, Tensor) and forward_ad.unpack_dual(operand).tangent is not None:
            raise RuntimeError(
                "adder2d has no forward-mode derivative: its gradient rules are surrogates; use "
                "backward()"
            )


def _resolve_padding(
    input: Tensor,
    padding: str | int | Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, tuple[int, ...]]:
    """Turn "same" and "valid" into numbers; an odd total gets its extra zero at the end."""
    length = len(kernel)
    if not isinstance(padding, str):
        return input, _tuple("padding", padding, length)
    if padding == "valid":
        return input, (0,) * length
    if padding != "same":
        raise ValueError(f"padding must be 'same', 'valid' or ints, got {padding!r}")
    if any(step != 1 for step in stride):
        raise ValueError(f"padding='same' needs stride 1, got stride {tuple(stride)}")
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if any(t % 2 for t in total):
        extra = chain.from_iterable((0, t % 2) for t in reversed(total))
        input = F.pad(input, tuple(extra))
    return input, tuple(t // 2 for t in total)


def adder2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    grad: str = "clip",
) -> Tensor:
    r"""Negative L1 distance between every image patch and every filter.

    .. code-block:: text

        output[n,o,p,q] = bias[o] - sum_{c,r,s} |input[n, c, p*sh + r*dh - ph, q*sw + s*dw - pw]
                                                - weight[o,c,r,s]|

    (AdderNet, arXiv 1912.13200, Eq. 2). A padded tap has input 0 and contributes ``-|w|``. Sums are
    taken in float32 (float64 for float64 operands). Under autocast the operator runs in float32.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float64, bfloat16 or float16, any memory format.
        weight: (O, C / groups, R, S), same dtype and device.
        bias: (O,), or None.
        stride: window step, an int or (vertical, horizontal).
        padding: zeros on both sides, an int, (vertical, horizontal), "same" or "valid".
        dilation: spacing of the taps, an int or (vertical, horizontal).
        groups: channel groups; C and O must be divisible by it.
        grad: gradient rule, "clip", "sign", "l2" or "exact" (see the module's table).

    Returns:
        (N, O, P, Q), or (O, P, Q) for an input without a batch, with
        ``P = (H + 2*ph - dh*(R - 1) - 1) // sh + 1`` and Q likewise, in the dtype of ``input``.

    Raises:
        ValueError: a rank, a channel count, a device, a window or the rule does not fit.
        TypeError: a dtype is not a floating one of those above, or the dtypes differ.

    Examples:
        >>> import torch, torchadder as ta
        >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> w = torch.tensor([[[[0.0, 2.0], [5.0, 4.0]]]])
        >>> ta.functional.adder2d(x, w).item()
        -3.0
    """
    check_rule(grad)
    _refuse_tangents(input, weight, bias)
    batch, unbatched = _batched(input, "input", 4)
    _check_weight(weight, 4)
    _check_bias_and_groups(bias, groups)
    stride = _tuple("stride", stride, 2)
    dilation = _tuple("dilation", dilation, 2)
    batch, pads = _resolve_padding(batch, padding, weight.shape[2:], stride, dilation)
    output = torch.ops.torchadder.adder2d(batch, weight, bias, stride, pads, dilation, groups, grad)
    return output.squeeze(0) if unbatched else output


def adder1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    grad: str = "clip",
) -> Tensor:
    """Negative L1 distance between every stretch of a sequence and every filter.

    :func:`adder2d` on an image of height 1.

    Args:
        input: (N, C, L) or (C, L).
        weight: (O, C / groups, S).
        bias: (O,), or None.
        stride: window step.
        padding: zeros on both sides, "same" or "valid".
        dilation: spacing of the taps.
        groups: channel groups.
        grad: gradient rule, see :func:`adder2d`.

    Returns:
        (N, O, M) or (O, M), ``M = (L + 2*padding - dilation*(S - 1) - 1) // stride + 1``.

    Raises:
        ValueError: as :func:`adder2d`.
        TypeError: as :func:`adder2d`.
    """
    batch, unbatched = _batched(input, "input", 3)
    _check_weight(weight, 3)
    step = _tuple("stride", stride, 1)
    spacing = _tuple("dilation", dilation, 1)
    batch, pads = _resolve_padding(batch, padding, weight.shape[2:], step, spacing)
    output = adder2d(
        batch.unsqueeze(2),
        weight.unsqueeze(2),
        bias,
        (1, *step),
        (0, *pads),
        (1, *spacing),
        groups,
        grad=grad,
    ).squeeze(2)
    return output.squeeze(0) if unbatched else output


def adder_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, grad: str = "clip"
) -> Tensor:
    """Negative L1 distance between every row and every weight vector.

    ``output[..., o] = bias[o] - sum_k |input[..., k] - weight[o, k]|``: :func:`adder2d` with a
    1 x 1 window.

    Args:
        input: (..., K).
        weight: (O, K).
        bias: (O,), or None.
        grad: gradient rule, see :func:`adder2d`.

    Returns:
        (..., O).

    Raises:
        ValueError: as :func:`adder2d`.
        TypeError: as :func:`adder2d`.

    Examples:
        >>> import torch, torchadder as ta
        >>> ta.functional.adder_linear(torch.tensor([1.0, -1.0]), torch.tensor([[0.0, 2.0]])).item()
        -4.0
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a torch.Tensor, got {type(input).__name__}")
    _check_weight(weight, 2)
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"input must have weight.shape[1] = {weight.shape[1]} features in its last dimension, "
            f"got shape {tuple(input.shape)}"
        )
    rows = input.reshape(-1, weight.shape[1])
    output = adder2d(rows[:, :, None, None], weight[:, :, None, None], bias, grad=grad)
    return output.reshape(*input.shape[:-1], weight.shape[0])


def adder_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    grad: str = "clip",
) -> Tensor:
    """Transposed adder layer: :func:`adder2d` with step 1 over the input spread by ``stride``.

    As a transposed convolution is the convolution of the zero-spread input with the flipped kernel,
    so is this the adder layer of it. The zeros between and around the pixels take part like any
    padding: each contributes ``-|w|``, so that every output pixel sums the same number of terms.

    Args:
        input: (N, C, H, W) or (C, H, W).
        weight: (C, O / groups, R, S), the layout of ``conv_transpose2d``.
        bias: (O,), or None.
        stride: upsampling factor.
        padding: pixels cut from each side of the full output.
        output_padding: rows and columns added at the bottom and the right, less than stride or
            dilation.
        groups: channel groups.
        dilation: spacing of the taps.
        grad: gradient rule, see :func:`adder2d`.

    Returns:
        (N, O, P, Q), ``P = (H - 1)*stride - 2*padding + dilation*(R - 1) + output_padding + 1``.

    Raises:
        ValueError: as :func:`adder2d`; or output_padding is too large.
        TypeError: as :func:`adder2d`.
    """
    batch, unbatched = _batched(input, "input", 4)
    _check_weight(weight, 4)
    _check_bias_and_groups(bias, groups)
    sh, sw = _tuple("stride", stride, 2)
    ph, pw = _tuple("padding", padding, 2)
    oh, ow = _tuple("output_padding", output_padding, 2)
    dh, dw = _tuple("dilation", dilation, 2)
    if min(sh, sw, dh, dw) < 1 or min(ph, pw, oh, ow) < 0:
        raise ValueError(
            f"stride and dilation must be at least 1, padding and output_padding at least 0, got "
            f"stride {(sh, sw)}, dilation {(dh, dw)}, padding {(ph, pw)}, output_padding {(oh, ow)}"
        )
    if oh >= max(sh, dh) or ow >= max(sw, dw):
        raise ValueError(
            f"output_padding {(oh, ow)} must be smaller than stride {(sh, sw)} or dilation "
            f"{(dh, dw)}"
        )
    C, _, R, S = weight.shape
    N, channels, H, W = batch.shape
    if channels != C:
        raise ValueError(f"input must have weight.shape[0] = {C} channels, got {channels}")
    if groups < 1 or C % groups:
        raise ValueError(f"weight.shape[0] (={C}) must be divisible by groups (={groups})")
    P = (H - 1) * sh - 2 * ph + dh * (R - 1) + oh + 1
    Q = (W - 1) * sw - 2 * pw + dw * (S - 1) + ow + 1
    if H < 1 or W < 1:
        raise ValueError(f"input must hold at least one pixel, got {H} x {W}")
    if P < 1 or Q < 1:
        raise ValueError(
            f"output must not be empty, got {P} x {Q} from input of {H} x {W}, kernel {(R, S)}, "
            f"stride {(sh, sw)}, padding {(ph, pw)}"
        )
    spread = batch
    if (sh, sw) != (1, 1):
        spread = batch.new_zeros((N, C, (H - 1) * sh + 1, (W - 1) * sw + 1))
        spread[:, :, ::sh, ::sw] = batch
    top, left = dh * (R - 1) - ph, dw * (S - 1) - pw
    spread = F.pad(spread, (left, left + ow, top, top + oh))
    kernel = weight.unflatten(0, (groups, -1)).transpose(1, 2).reshape(-1, C // groups, R, S)
    output = adder2d(spread, kernel.flip(2, 3), bias, 1, 0, (dh, dw), groups, grad=grad)
    return output.squeeze(0) if unbatched else output


def adder_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    grad: str = "clip",
) -> Tensor:
    """:func:`adder_transpose2d` of a sequence: input (N, C, L) or (C, L), weight (C, O/g, S)."""
    batch, unbatched = _batched(input, "input", 3)
    _check_weight(weight, 3)
    output = adder_transpose2d(
        batch.unsqueeze(2),
        weight.unsqueeze(2),
        bias,
        (1, *_tuple("stride", stride, 1)),
        (0, *_tuple("padding", padding, 1)),
        (0, *_tuple("output_padding", output_padding, 1)),
        groups,
        (1, *_tuple("dilation", dilation, 1)),
        grad=grad,
    ).squeeze(2)
    return output.squeeze(0) if unbatched else output
