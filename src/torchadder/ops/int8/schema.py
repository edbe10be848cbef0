"""Declares ``torchadder::adder2d_int8``, ``conv2d_int8`` and their requantised forms.

For inference only: bytes have no gradients. Filters come packed
(:mod:`torchadder.ops.int8.packing`) with their shape beside them, so that a layer holds them once.
The two kinds of layer share everything but the dtype of the filters, so each function below is
registered for both.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from torchadder.ops import gpu
from torchadder.ops.geometry import Geometry, make_geometry, output_size
from torchadder.ops.int8 import cpu, packing, reference

FILTER_DTYPES = {"adder2d": torch.uint8, "conv2d": torch.int8}
MAX_TERMS = {"adder2d": 2**23, "conv2d": 2**16}
"""Terms of one sum that fit 32 bits."""

_WINDOW = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
_OPERANDS = f"Tensor input, Tensor packed, SymInt[4] kernel, SymInt zero_point, {_WINDOW}"
_REQUANTISATION = (
    "Tensor multiplier, Tensor offset, SymInt shift, SymInt low, SymInt high, Tensor? residual, "
    "SymInt residual_multiplier"
)

Ints = Sequence[int]
Shape = tuple[int, int, int, int]


def pack(weight: Tensor, dilation: Ints = (1, 1), groups: int = 1) -> Tensor:
    """Filters in the order in which the operators want them.

    Args:
        weight: uint8 for an adder layer, int8 for a convolution; shape (O, C / groups, R, S).
        dilation: of the layer, (vertical, horizontal).
        groups: of the layer.

    Returns:
        The same bytes, and zeros, in one dimension.

    Raises:
        TypeError: another dtype.
        ValueError: another number of dimensions, an empty filter, or O not divisible by groups.
    """
    if weight.dtype not in FILTER_DTYPES.values():
        raise TypeError(f"weight must be uint8 or int8, got {weight.dtype}")
    if weight.dim() != 4 or weight.numel() == 0:
        raise ValueError(f"weight must have shape (O, C, R, S), got {tuple(weight.shape)}")
    geometry = make_geometry((1, 1), (0, 0), dilation, groups)
    if weight.shape[0] % groups:
        raise ValueError(
            f"weight.shape[0] (={weight.shape[0]}) must be divisible by groups (={groups})"
        )
    return packing.pack(weight, geometry.dilation[1], groups)


def _check(
    kind: str, input: Tensor, packed: Tensor, kernel: Ints, zero_point: int, geometry: Geometry
) -> Shape:
    """Checks the operands and returns the shape of the result."""
    for name, tensor, rank, dtype in (
        ("input", input, 4, torch.uint8),
        ("packed", packed, 1, FILTER_DTYPES[kind]),
    ):
        if tensor.dtype != dtype:
            wanted = str(dtype).removeprefix("torch.")
            raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")
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
    if depth * R * S > MAX_TERMS[kind]:
        raise ValueError(
            f"a sum of {depth * R * S} terms; at most {MAX_TERMS[kind]} fit 32 bits for certain"
        )
    wanted_size = packing.packed_size((O, depth, R, S), dw, groups)
    if packed.shape[0] != wanted_size:
        raise ValueError(
            f"packed must hold {wanted_size} bytes for a kernel of {tuple(kernel)}, got "
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
    device: torch.device,
    multiplier: Tensor,
    offset: Tensor,
    shift: int,
    low: int,
    high: int,
    residual: Tensor | None,
    residual_multiplier: int,
) -> None:
    for name, tensor in (("multiplier", multiplier), ("offset", offset), ("residual", residual)):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} must be on {device}, got {tensor.device}")
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
    if not -(2**31) <= residual_multiplier < 2**31:
        raise ValueError(
            f"residual_multiplier must be within -2^31 .. 2^31 - 1, got {residual_multiplier}"
        )
    if residual is None:
        return
    if residual.dtype != torch.uint8:
        raise TypeError(f"residual must be uint8, got {residual.dtype}")
    if tuple(residual.shape) != tuple(size):
        raise ValueError(f"residual must have shape {tuple(size)}, got {tuple(residual.shape)}")


def _gpu_kernels(kind: str, input: Tensor, kernel: Shape, groups: int) -> ModuleType | None:
    """The module ``int8_launch`` where Triton serves: adder layers that are not depthwise."""
    if kind != "adder2d" or (groups > 1 and kernel[1] == 1) or gpu.kernels(input) is None:
        return None
    from torchadder.ops.triton import int8_launch

    return int8_launch


def _layer(
    kind: str,
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
    size = _check(kind, input, packed, kernel, zero_point, geometry)
    shape: Shape = tuple(kernel)  # type: ignore[assignment]

    def by_reference() -> Tensor:
        weight = packing.unpack(packed, shape, geometry.dilation[1], groups)
        return reference.layer(kind, input, weight, zero_point, geometry)

    if kernels := _gpu_kernels(kind, input, shape, groups):
        operands = (input, packed, shape, zero_point, geometry, size, None)
        return gpu.run(kernels.adder2d_int8, by_reference, *operands)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return by_reference()
    return cpu.layer(handle, kind, input, packed, shape, zero_point, geometry, size)


def _requantised_layer(
    kind: str,
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
    size = _check(kind, input, packed, kernel, zero_point, geometry)
    how = (multiplier, offset, shift, low, high, residual, residual_multiplier)
    _check_requantisation(size, input.device, *how)
    shape: Shape = tuple(kernel)  # type: ignore[assignment]

    def by_reference() -> Tensor:
        weight = packing.unpack(packed, shape, geometry.dilation[1], groups)
        sums = reference.layer(kind, input, weight, zero_point, geometry)
        return reference.requantise(sums, *how)

    if kernels := _gpu_kernels(kind, input, shape, groups):
        operands = (input, packed, shape, zero_point, geometry, size, how)
        return gpu.run(kernels.adder2d_int8, by_reference, *operands)
    handle = cpu.library() if input.device.type == "cpu" else None
    if handle is None:
        return by_reference()
    return cpu.requantised_layer(
        handle, kind, input, packed, shape, zero_point, geometry, *how, size
    )


def _fake_layer(
    kind: str,
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
    size = _check(kind, input, packed, kernel, zero_point, geometry)
    return input.new_empty(size, dtype=torch.int32).to(memory_format=torch.channels_last)


def _fake_requantised_layer(
    kind: str,
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
    size = _check(kind, input, packed, kernel, zero_point, geometry)
    how = (multiplier, offset, shift, low, high, residual, residual_multiplier)
    _check_requantisation(size, input.device, *how)
    return input.new_empty(size).to(memory_format=torch.channels_last)


_library = torch.library.Library("torchadder", "FRAGMENT")
for _kind in FILTER_DTYPES:
    for _name, _arguments, _compute, _fake in (
        (f"{_kind}_int8", _OPERANDS, _layer, _fake_layer),
        (
            f"{_kind}_int8_requantised",
            f"{_OPERANDS}, {_REQUANTISATION}",
            _requantised_layer,
            _fake_requantised_layer,
        ),
    ):
        _library.define(f"{_name}({_arguments}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(_name, functools.partial(_compute, _kind), "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"torchadder::{_name}", functools.partial(_fake, _kind), lib=_library
        )
