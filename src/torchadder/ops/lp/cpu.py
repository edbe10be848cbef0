"""Binding of the lp kernels of ``csrc``, by the rules of :mod:`torchadder.ops.cpu`."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from torchadder.ops import cpu
from torchadder.ops.cpu import _DTYPES, _check, _Problem, _problem, _result_strides, _strides
from torchadder.ops.geometry import Geometry, accumulation_dtype, memory_format


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C++ library with the lp kernels declared, or None where the reference has to serve."""
    handle = cpu.library()
    if handle is None:
        return None
    if not hasattr(handle, "ta_adder2d_lp_forward"):
        raise ImportError("the compiled kernels are older than this torchadder: reinstall it")
    problem, integer = ctypes.POINTER(_Problem), ctypes.c_int
    pointer, real = ctypes.c_void_p, ctypes.c_double
    handle.ta_adder2d_lp_forward.argtypes = (
        problem, integer, real, pointer, pointer, pointer, pointer, integer,
    )  # fmt: skip
    handle.ta_adder2d_lp_backward_input.argtypes = (
        problem, integer, real, integer, pointer, pointer, pointer, pointer, integer,
    )  # fmt: skip
    handle.ta_adder2d_lp_backward_weight.argtypes = (
        problem, integer, real, pointer, pointer, pointer, pointer, integer,
    )  # fmt: skip
    return handle


def adder2d_lp(
    handle: ctypes.CDLL,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    p: float,
    size: tuple[int, int, int, int],
) -> Tensor:
    """Forward; ``size`` is the checked shape of the output."""
    dtype = accumulation_dtype(input.dtype)
    x, w = input.to(dtype), weight.to(dtype).contiguous()
    b = None if bias is None else bias.to(dtype).contiguous()
    y = torch.empty(size, dtype=dtype, memory_format=memory_format(input))
    if y.numel():
        strides = _result_strides(y)
        problem = _problem(x, w, y, geometry, strides, strides)
        _check(
            handle.ta_adder2d_lp_forward(
                problem, _DTYPES[dtype], p, x.data_ptr(), w.data_ptr(),
                None if b is None else b.data_ptr(), y.data_ptr(), torch.get_num_threads(),
            )
        )  # fmt: skip
    return y.to(input.dtype)


def adder2d_lp_backward_input(
    handle: ctypes.CDLL,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    p: float,
    clip: bool,
) -> Tensor:
    """Input gradient."""
    dtype = accumulation_dtype(input.dtype)
    g, x, w = grad_output.to(dtype), input.to(dtype), weight.to(dtype).contiguous()
    result = torch.empty(input.shape, dtype=dtype, memory_format=memory_format(input))
    if result.numel():
        problem = _problem(x, w, g, geometry, _strides(g), _result_strides(result))
        _check(
            handle.ta_adder2d_lp_backward_input(
                problem, _DTYPES[dtype], p, clip, g.data_ptr(), x.data_ptr(), w.data_ptr(),
                result.data_ptr(), torch.get_num_threads(),
            )
        )  # fmt: skip
    return result.to(input.dtype)


def adder2d_lp_backward_weight(
    handle: ctypes.CDLL,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    p: float,
) -> Tensor:
    """Weight gradient."""
    dtype = accumulation_dtype(input.dtype)
    g, x, w = grad_output.to(dtype), input.to(dtype), weight.to(dtype).contiguous()
    if g.numel() == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    result = torch.empty(w.shape, dtype=dtype)
    problem = _problem(x, w, g, geometry, _strides(g), _strides(g))
    _check(
        handle.ta_adder2d_lp_backward_weight(
            problem, _DTYPES[dtype], p, g.data_ptr(), x.data_ptr(), w.data_ptr(),
            result.data_ptr(), torch.get_num_threads(),
        )
    )  # fmt: skip
    return result.to(weight.dtype)
