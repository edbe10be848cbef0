"""Binding of the C++ library of ``csrc``: ctypes, raw pointers, no torch headers.

Knows the C interface (``csrc/include/torchadder.h``) and nothing of autograd or layers. Where the
library is missing, or ``TORCHADDER_BACKEND=reference`` is set, :func:`library` returns None and the
callers use the reference.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

from torchadder.ops.geometry import Geometry, accumulation_dtype, memory_format

_ABI_VERSION = 1
_RULES = {"clip": 0, "sign": 1, "l2": 2, "exact": 1}
_DTYPES = {torch.float32: 0, torch.float64: 1}
_LIBRARY_NAMES = {"darwin": "libtorchadder_cpu.dylib"}
_BACKENDS = ("auto", "cpu", "reference", "triton")
_CAPABILITIES = ("avx512", "avx2", "portable")


class _Problem(ctypes.Structure):
    """``struct ta_problem``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "in_channels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("out_channels", "kernel_h", "kernel_w")),
        *((name, ctypes.c_int64) for name in ("out_height", "out_width")),
        *((name, ctypes.c_int64) for name in ("stride_h", "stride_w", "pad_h", "pad_w")),
        *((name, ctypes.c_int64) for name in ("dilation_h", "dilation_w", "groups")),
        ("input_strides", ctypes.c_int64 * 4),
        ("output_strides", ctypes.c_int64 * 4),
        ("result_strides", ctypes.c_int64 * 4),
    )


@functools.cache
def backend() -> str:
    """What the environment variable ``TORCHADDER_BACKEND`` asks for: "auto" unless it is set."""
    choice = os.environ.get("TORCHADDER_BACKEND", "auto")
    if choice not in _BACKENDS:
        raise ValueError(
            f"TORCHADDER_BACKEND must be one of {', '.join(_BACKENDS)}, got {choice!r}"
        )
    return choice


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C++ library, or None where the reference has to serve."""
    choice = backend()
    capability = os.environ.get("TORCHADDER_CPU_CAPABILITY", _CAPABILITIES[0])
    if capability not in _CAPABILITIES:
        raise ValueError(
            f"TORCHADDER_CPU_CAPABILITY must be one of {', '.join(_CAPABILITIES)}, got "
            f"{capability!r}"
        )
    if choice == "reference":
        return None
    name = _LIBRARY_NAMES.get(sys.platform, "libtorchadder_cpu.so")
    path = Path(__file__).parent.parent / name
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        if choice == "cpu":
            raise
        warnings.warn(
            f"torchadder runs on its slow reference implementation: the compiled kernels could "
            f"not be loaded ({error}). Install a C++ compiler and reinstall torchadder.",
            stacklevel=2,
        )
        return None
    if handle.ta_abi_version() != _ABI_VERSION:
        raise ImportError(
            f"{path} has interface version {handle.ta_abi_version()}, this torchadder needs "
            f"{_ABI_VERSION}: reinstall torchadder"
        )
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    problem = ctypes.POINTER(_Problem)
    handle.ta_cpu_capability.restype = ctypes.c_char_p
    handle.ta_adder2d_forward.argtypes = (
        problem, integer, pointer, pointer, pointer, pointer, integer,
    )  # fmt: skip
    handle.ta_adder2d_backward_input.argtypes = (
        problem, integer, integer, pointer, pointer, pointer, pointer, integer,
    )  # fmt: skip
    handle.ta_adder2d_backward_weight_sign.argtypes = (
        problem, integer, pointer, pointer, pointer, pointer, integer,
    )  # fmt: skip
    for peak in (handle.ta_peak_max_add, handle.ta_peak_multiply_add):
        peak.argtypes = (integer, ctypes.c_double)
        peak.restype = ctypes.c_double
    return handle


def cpu_library_info() -> dict[str, str]:
    """Which implementation serves CPU tensors: backend and instruction set.

    Examples:
        >>> import torchadder
        >>> torchadder.ops.cpu_library_info()["backend"] in ("cpu", "reference")
        True
    """
    handle = library()
    if handle is None:
        return {"backend": "reference", "instruction_set": "torch"}
    return {"backend": "cpu", "instruction_set": handle.ta_cpu_capability().decode()}


def peak_pairs_per_second(kind: str, seconds: float = 0.1) -> float:
    """Pairs (one maximum and one addition, or one multiply-add) a second, one thread, in registers.

    Args:
        kind: "max_add" or "multiply_add".
        seconds: how long to measure.
    """
    handle = library()
    if handle is None:
        raise RuntimeError("the compiled kernels are not loaded")
    return getattr(handle, f"ta_peak_{kind}")(0, seconds)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride())


def _result_strides(result: Tensor) -> tuple[int, ...]:
    """Strides with those of length-1 dimensions made canonical, so that layouts are recognised."""
    _, C, H, W = result.shape
    if memory_format(result) == torch.channels_last:
        return (H * W * C, 1, W * C, C)
    return (C * H * W, H * W, W, 1)


def _problem(
    input: Tensor,
    weight: Tensor,
    output: Tensor,
    geometry: Geometry,
    output_strides: tuple[int, ...],
    result_strides: tuple[int, ...],
) -> _Problem:
    (sh, sw), (ph, pw), (dh, dw), groups = geometry
    O, _, R, S = weight.shape
    array = ctypes.c_int64 * 4
    return _Problem(
        *input.shape, O, R, S, *output.shape[2:], sh, sw, ph, pw, dh, dw, groups,
        array(*_strides(input)), array(*output_strides), array(*result_strides),
    )  # fmt: skip


def _check(status: int) -> None:
    if status:
        raise MemoryError("torchadder: not enough memory for the workspace of a CPU kernel")


def adder2d(
    handle: ctypes.CDLL,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
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
            handle.ta_adder2d_forward(
                problem, _DTYPES[dtype], x.data_ptr(), w.data_ptr(),
                None if b is None else b.data_ptr(), y.data_ptr(), torch.get_num_threads(),
            )
        )  # fmt: skip
    return y.to(input.dtype)


def adder2d_backward_input(
    handle: ctypes.CDLL,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: Geometry,
    grad: str,
) -> Tensor:
    """Input gradient of every rule."""
    dtype = accumulation_dtype(input.dtype)
    g, x, w = grad_output.to(dtype), input.to(dtype), weight.to(dtype).contiguous()
    result = torch.empty(input.shape, dtype=dtype, memory_format=memory_format(input))
    if result.numel():
        problem = _problem(x, w, g, geometry, _strides(g), _result_strides(result))
        _check(
            handle.ta_adder2d_backward_input(
                problem, _DTYPES[dtype], _RULES[grad], g.data_ptr(), x.data_ptr(), w.data_ptr(),
                result.data_ptr(), torch.get_num_threads(),
            )
        )  # fmt: skip
    return result.to(input.dtype)


def adder2d_backward_weight_sign(
    handle: ctypes.CDLL, grad_output: Tensor, input: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    """Weight gradient of the rule "exact"."""
    dtype = accumulation_dtype(input.dtype)
    g, x, w = grad_output.to(dtype), input.to(dtype), weight.to(dtype).contiguous()
    result = torch.empty(w.shape, dtype=dtype)
    if g.numel():
        problem = _problem(x, w, g, geometry, _strides(g), _strides(g))
        _check(
            handle.ta_adder2d_backward_weight_sign(
                problem, _DTYPES[dtype], g.data_ptr(), x.data_ptr(), w.data_ptr(),
                result.data_ptr(), torch.get_num_threads(),
            )
        )  # fmt: skip
    else:
        result.zero_()
    return result.to(weight.dtype)
