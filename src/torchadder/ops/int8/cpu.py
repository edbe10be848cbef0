"""Binding of the integer kernels of ``csrc``, by the rules of :mod:`torchadder.ops.cpu`."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from torchadder.ops import cpu
from torchadder.ops.cpu import _check
from torchadder.ops.geometry import Geometry

Shape = tuple[int, int, int, int]

_KINDS = {"adder2d": 0, "conv2d": 1}


class _Problem(ctypes.Structure):
    """``struct ta_int8_problem``."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            "batch", "in_channels", "height", "width", "out_channels", "kernel_h", "kernel_w",
            "out_height", "out_width", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h",
            "dilation_w", "groups",
        )
    )  # fmt: skip


class _Requantisation(ctypes.Structure):
    """``struct ta_requantisation``."""

    _fields_ = (
        ("multiplier", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("shift", ctypes.c_int32),
        ("low", ctypes.c_int32),
        ("high", ctypes.c_int32),
        ("residual", ctypes.c_void_p),
        ("residual_multiplier", ctypes.c_int32),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C++ library with the integer kernels declared, or None where the reference serves."""
    handle = cpu.library()
    if handle is None:
        return None
    if not hasattr(handle, "ta_int8_max_pool2d"):
        raise ImportError("the compiled kernels are older than this torchadder: reinstall it")
    problem, pointer = ctypes.POINTER(_Problem), ctypes.c_void_p
    byte, integer = ctypes.c_uint8, ctypes.c_int
    handle.ta_int8_conv2d.argtypes = (
        problem, integer, pointer, pointer, byte, pointer, integer,
    )  # fmt: skip
    handle.ta_int8_conv2d_requantised.argtypes = (
        problem, integer, pointer, pointer, byte, ctypes.POINTER(_Requantisation), pointer, integer,
    )  # fmt: skip
    handle.ta_int8_max_pool2d.argtypes = (problem, pointer, pointer, integer)
    return handle


def layer(
    handle: ctypes.CDLL,
    kind: str,
    input: Tensor,
    packed: Tensor,
    kernel: Shape,
    zero_point: int,
    geometry: Geometry,
    size: Shape,
) -> Tensor:
    """Sums, int32; ``kernel`` is the shape of the filters, ``size`` that of the result."""
    x, packed = input.contiguous(memory_format=torch.channels_last), packed.contiguous()
    y = torch.empty(size, dtype=torch.int32, memory_format=torch.channels_last)
    if y.numel():
        problem = _problem(x.shape, kernel, size, geometry)
        _check(
            handle.ta_int8_conv2d(
                problem, _KINDS[kind], x.data_ptr(), packed.data_ptr(), zero_point, y.data_ptr(),
                torch.get_num_threads(),
            )
        )  # fmt: skip
    return y


def requantised_layer(
    handle: ctypes.CDLL,
    kind: str,
    input: Tensor,
    packed: Tensor,
    kernel: Shape,
    zero_point: int,
    geometry: Geometry,
    multiplier: Tensor,
    offset: Tensor,
    shift: int,
    low: int,
    high: int,
    residual: Tensor | None,
    residual_multiplier: int,
    size: Shape,
) -> Tensor:
    """Bytes; arguments as of :func:`layer` and :func:`reference.requantise`."""
    x, packed = input.contiguous(memory_format=torch.channels_last), packed.contiguous()
    y = torch.empty(size, dtype=torch.uint8, memory_format=torch.channels_last)
    if y.numel():
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        multiplier, offset = multiplier.contiguous(), offset.contiguous()
        how = _Requantisation(
            multiplier.data_ptr(), offset.data_ptr(), shift, low, high,
            None if residual is None else residual.data_ptr(), residual_multiplier,
        )  # fmt: skip
        problem = _problem(x.shape, kernel, size, geometry)
        _check(
            handle.ta_int8_conv2d_requantised(
                problem, _KINDS[kind], x.data_ptr(), packed.data_ptr(), zero_point, how,
                y.data_ptr(), torch.get_num_threads(),
            )
        )  # fmt: skip
    return y


def max_pool(
    handle: ctypes.CDLL, input: Tensor, kernel: tuple[int, int], geometry: Geometry, size: Shape
) -> Tensor:
    """Largest bytes of windows."""
    x = input.contiguous(memory_format=torch.channels_last)
    y = torch.empty(size, dtype=torch.uint8, memory_format=torch.channels_last)
    if y.numel():
        C = x.shape[1]
        problem = _problem(x.shape, (C, 1, *kernel), size, geometry._replace(groups=C))
        threads = torch.get_num_threads()
        _check(handle.ta_int8_max_pool2d(problem, x.data_ptr(), y.data_ptr(), threads))
    return y


def _problem(
    input: Sequence[int], kernel: Shape, output: Sequence[int], geometry: Geometry
) -> _Problem:
    (sh, sw), (ph, pw), (dh, dw), groups = geometry
    O, _, R, S = kernel
    return _Problem(*input, O, R, S, *output[2:], sh, sw, ph, pw, dh, dw, groups)
