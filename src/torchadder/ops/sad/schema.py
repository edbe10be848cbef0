"""Declares ``torchadder::sad_conv2d`` and ``sad_conv2d_requantised``, as ``ops/schema.py`` does.

For inference only: bytes have no gradients. Filters come packed
(:mod:`torchadder.ops.sad.packing`) with their shape beside them, so that a layer holds them once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchadder.ops.geometry import Geometry, make_geometry, output_size
from torchadder.ops.sad import cpu, packing, reference

MAX_TAPS = 2**23
"""Pairs of one sum: more would not fit 32 bits."""

_WINDOW = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
_OPERANDS = f"Tensor input, Tensor packed, SymInt[4] kernel, SymInt zero_point, {_WINDOW}"
_REQUANTISATION = (
    "Tensor multiplier, Tensor offset, SymInt shift, SymInt low, SymInt high, Tensor? residual, "
    "SymInt residual_multiplier"
)

_library = torch.library.Library("torchadder", "FRAGMENT")
for _name, _arguments in (
    ("sad_conv2d", _OPERANDS),
    ("sad_conv2d_requantised", f"{_OPERANDS}, {_REQUANTISATION}"),
):
    _library.define(f"{_name}({_arguments}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))

Ints = Sequence[int]
Shape = tuple[int, int, int, int]


def pack(weight: Tensor, dilation: Ints = (1, 1), groups: int = 1) -> Tensor:
    """Filters in the order in which the operators want them.

    Args:
        weight: uint8, shape (O, C / groups, R, S).
        dilation: of the layer, (vertical, horizontal).
        groups: of the layer.

    Returns:
        uint8, one dimension.

    Raises:
        TypeError: another dtype.
        ValueError: another number of dimensions, an empty filter, or O not divisible by groups.
    """
    if weight.dtype != torch.uint8:
        raise TypeError(f"weight must be uint8, got {weight.dtype}")
    if weight.dim() != 4 or weight.numel() == 0:
        raise ValueError(f"weight must have shape (O, C, R, S), got {tuple(weight.shape)}")
    geometry = make_geometry((1, 1), (0, 0), dilation, groups)
    if weight.shape[0] % groups:
        raise ValueError(
            f"weight.shape[0] (={weight.shape[0]}) must be divisible by groups (={groups})"
        )
    return packing.pack(weight, geometry.dilation[1], groups)


def _check(
    input: Tensor, packed: Tensor, kernel: Ints, zero_point: int, geometry: Geometry
) -> Shape:
    """Checks the operands and returns the shape of the result."""
    for name, tensor, rank in (("input", input, 4), ("packed", packed, 1)):
        if tensor.dtype != torch.uint8:
            raise TypeError(f"{name} must be uint8, got {tensor.dtype}")
        if tensor.dim() != rank:
            raise ValueError(f"{name} must have {rank} dimensions, got {tuple(tensor.shape)}")
        if tensor.device != input.device:
            raise ValueError(f"{name} must be on {input.device}, got {tensor.device}")
    if len(kernel) != 4 or min(kernel) < 1:
        raise ValueError(f"kernel must be (O, C / groups, R, S), got {tuple(kernel)}")
    O, depth, R, S = kernel
    (sh, sw), (ph, pw), (dh, dw), groups = geometry
    if O % groups or input.shape[1] != depth * groups:
        raise ValueError(
            f"input must have {depth} * {groups} channels and kernel[0] be divisible by groups, "
            f"got {input.shape[1]} channels and {O} filters"
        )
    if depth * R * S > MAX_TAPS:
        raise ValueError(f"a sum of {depth * R * S} differences; at most {MAX_TAPS} fit 32 bits")
    wanted = packing.packed_size((O, depth, R, S), dw, groups)
    if packed.shape[0] != wanted:
        raise ValueError(
            f"packed must hold {wanted} bytes for a kernel of {tuple(kernel)}, got "
            f"{packed.shape[0]}"
        )
    if not 0 <= zero_point <= 255:
        raise ValueError(f"zero_point must be within 0 .. 255, got {zero_point}")
    P = output_size(input.shape[2], R, sh, ph, dh)
    Q = output_size(input.shape[3], S, sw, pw, dw)
    if P < 1 or Q < 1:
        raise ValueError(
            f"input of {input.shape[2]} x {input.shape[3]} with padding {(ph, pw)} is smaller than "
            f"the window: kernel {(R, S)} with dilation {(dh, dw)}"
        )
    return input.shape[0], O, P, Q


def _check_requantisation(
    size: Shape,
    multiplier: Tensor,
    offset: Tensor,
    shift: int,
    low: int,
    high: int,
    residual: Tensor | None,
) -> None:
    for name, tensor, dtype in (
        ("multiplier", multiplier, torch.int32),
        ("offset", offset, torch.int64),
    ):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tuple(tensor.shape) != (size[1],):
            raise ValueError(f"{name} must have shape ({size[1]},), got {tuple(tensor.shape)}")
    if not 0 <= shift <= 62:
        raise ValueError(f"shift must be within 0 .. 62, got {shift}")
    if not 0 <= low <= high <= 255:
        raise ValueError(f"low <= high must be within 0 .. 255, got {low} and {high}")
    if residual is None:
        return
    if residual.dtype != torch.uint8:
        raise TypeError(f"residual must be uint8, got {residual.dtype}")
    if tuple(residual.shape) != tuple(size):
        raise ValueError(f"residual must have shape {tuple(size)}, got {tuple(residual.shape)}")


@torch.library.impl(_library, "sad_conv2d", "CompositeExplicitAutograd")
def _sad_conv2d(
    input: Tensor,
    packed: Tensor,
    kernel: Ints,
    zero_point: int,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    geometry = make_geometry(stride, padding, dilation, groups)
    size = _check(input, packed, kernel, zero_point, geometry)
    shape: Shape = tuple(kernel)  # type: ignore[assignment]
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        weight = packing.unpack(packed, shape, geometry.dilation[1], groups)
        return reference.sad_conv2d(input, weight, zero_point, geometry)
    return cpu.sad_conv2d(handle, input, packed, shape, zero_point, geometry, size)


@torch.library.impl(_library, "sad_conv2d_requantised", "CompositeExplicitAutograd")
def _sad_conv2d_requantised(
    input: Tensor,
    packed: Tensor,
    kernel: Ints,
    zero_point: int,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    multiplier: Tensor,
    offset: Tensor,
    shift: int,
    low: int,
    high: int,
    residual: Tensor | None,
    residual_multiplier: int,
) -> Tensor:
    geometry = make_geometry(stride, padding, dilation, groups)
    size = _check(input, packed, kernel, zero_point, geometry)
    _check_requantisation(size, multiplier, offset, shift, low, high, residual)
    shape: Shape = tuple(kernel)  # type: ignore[assignment]
    how = (multiplier, offset, shift, low, high, residual, residual_multiplier)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        weight = packing.unpack(packed, shape, geometry.dilation[1], groups)
        sums = reference.sad_conv2d(input, weight, zero_point, geometry)
        return reference.requantise(sums, *how)
    return cpu.sad_conv2d_requantised(
        handle, input, packed, shape, zero_point, geometry, *how, size
    )


@torch.library.register_fake("torchadder::sad_conv2d", lib=_library)
def _sad_conv2d_fake(
    input: Tensor,
    packed: Tensor,
    kernel: Ints,
    zero_point: int,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    size = _check(
        input, packed, kernel, zero_point, make_geometry(stride, padding, dilation, groups)
    )
    return input.new_empty(size, dtype=torch.int32).to(memory_format=torch.channels_last)


@torch.library.register_fake("torchadder::sad_conv2d_requantised", lib=_library)
def _sad_conv2d_requantised_fake(
    input: Tensor,
    packed: Tensor,
    kernel: Ints,
    zero_point: int,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    multiplier: Tensor,
    offset: Tensor,
    shift: int,
    low: int,
    high: int,
    residual: Tensor | None,
    residual_multiplier: int,
) -> Tensor:
    size = _check(
        input, packed, kernel, zero_point, make_geometry(stride, padding, dilation, groups)
    )
    _check_requantisation(size, multiplier, offset, shift, low, high, residual)
    return input.new_empty(size).to(memory_format=torch.channels_last)
