"""Shapes of a sliding window and the checks that run before any kernel.

Knows sizes, dtypes and devices; knows nothing of how a kernel computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GRAD_RULES = ("clip", "sign", "l2", "exact")
"""Gradient rules of the adder operator, see :func:`torchadder.functional.adder2d`."""

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Geometry(NamedTuple):
    """The window of a 2-d adder layer: pairs are (vertical, horizontal)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Window positions: ``(size + 2 padding - dilation (kernel - 1) - 1) // stride + 1``."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which sums are taken: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_rule(grad: str) -> None:
    """Raise ValueError unless ``grad`` names a gradient rule."""
    if grad not in GRAD_RULES:
        raise ValueError(f"grad must be one of {', '.join(GRAD_RULES)}, got {grad!r}")


def make_geometry(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Geometry:
    """Check the window's numbers and return them as a :class:`Geometry`."""
    for name, pair, least in (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(pair) != 2:
            raise ValueError(f"{name} must hold 2 numbers, got {tuple(pair)}")
        if pair[0] < least or pair[1] < least:
            raise ValueError(f"{name} must be at least {least}, got {tuple(pair)}")
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    return Geometry(
        (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]), groups
    )


def check_operands(input: Tensor, **others: Tensor | None) -> None:
    """Check dtypes, devices and ranks of operands of ``adder2d``, by their names."""
    for name, tensor in {"input": input, **others}.items():
        if tensor is None:
            continue
        rank = 1 if name == "bias" else 4
        if tensor.dim() != rank:
            raise ValueError(
                f"{name} must have {rank} dimensions, got {tensor.dim()} (shape "
                f"{tuple(tensor.shape)})"
            )
        if tensor.dtype not in FLOAT_DTYPES:
            wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
            raise TypeError(f"{name} must be one of {wanted}, got {tensor.dtype}")
        if tensor.dtype != input.dtype:
            raise TypeError(
                f"{name} must have the dtype of input ({input.dtype}), got {tensor.dtype}"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"{name} must be on the device of input ({input.device}), got {tensor.device}"
            )


def output_shape(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> tuple[int, int, int, int]:
    """Check how the operands fit together and return the shape (N, O, P, Q) of the output."""
    check_operands(input, weight=weight, bias=bias)
    N, C, H, W = input.shape
    O, C_group, R, S = weight.shape
    groups = geometry.groups
    if O % groups:
        raise ValueError(f"weight.shape[0] (={O}) must be divisible by groups (={groups})")
    if C % groups:
        raise ValueError(f"input.shape[1] (={C}) must be divisible by groups (={groups})")
    if C_group * groups != C:
        raise ValueError(
            f"input must have weight.shape[1] * groups = {C_group} * {groups} = "
            f"{C_group * groups} channels, got {C}"
        )
    if O == 0 or C == 0 or R == 0 or S == 0:
        raise ValueError(f"weight must not be empty, got shape {tuple(weight.shape)}")
    if bias is not None and bias.shape[0] != O:
        raise ValueError(f"bias must have weight.shape[0] = {O} elements, got {bias.shape[0]}")
    (sh, sw), (ph, pw), (dh, dw), _ = geometry
    P, Q = output_size(H, R, sh, ph, dh), output_size(W, S, sw, pw, dw)
    if P < 1 or Q < 1:
        raise ValueError(
            f"input of {H} x {W} with padding {(ph, pw)} is smaller than the window: kernel "
            f"{(R, S)} with dilation {(dh, dw)} needs at least "
            f"{dh * (R - 1) + 1} x {dw * (S - 1) + 1}"
        )
    return N, O, P, Q


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Memory format that results follow: channels_last only where the tensor is nothing else."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
