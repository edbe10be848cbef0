"""Whether the Triton kernels serve a tensor, without importing Triton before a tensor needs them.

``TORCHADDER_BACKEND=reference`` turns them off. ``TORCHADDER_BACKEND=triton`` sends CPU tensors to
them, too, which works under ``TRITON_INTERPRET=1`` and is how they are tested without a GPU. Where
Triton or support for the chip is missing, the reference serves, with one warning. A kernel that
does not compile is an error, unless ``TORCHADDER_TRITON_FALLBACK=1`` allows the reference then.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchadder.ops.cpu import backend

_LEAST_CAPABILITY = (7, 0)


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        from torchadder.ops.triton import launch
    except ImportError as error:
        _warn(f"Triton could not be imported ({error})")
        return None
    return launch


@functools.cache
def _supports(index: int) -> bool:
    """Whether Triton has code for this GPU."""
    if torch.version.hip:
        return True
    capability = torch.cuda.get_device_capability(index)
    if capability < _LEAST_CAPABILITY:
        name = torch.cuda.get_device_name(index)
        _warn(f"{name} has compute capability {capability[0]}.{capability[1]}, Triton needs 7.0")
        return False
    return True


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"torchadder runs on its slow reference implementation on this GPU: {reason}.", stacklevel=2
    )


def kernels(input: Tensor) -> ModuleType | None:
    """The module ``launch`` where the Triton kernels serve this tensor, else None."""
    choice = backend()
    if input.dtype == torch.float64 or choice == "reference":
        return None
    if choice == "triton":
        return _kernels()
    if input.device.type != "cuda" or choice == "cpu" or not _supports(input.device.index or 0):
        return None
    return _kernels()


def run(kernel: Callable[..., Tensor], fallback: Callable[[], Tensor], *operands: Any) -> Tensor:
    """Call ``kernel(*operands)``; if it cannot be compiled, the fallback where that is allowed.

    Raises:
        RuntimeError: The kernel cannot be compiled or launched.
    """
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import TritonError

    try:
        return kernel(*operands)
    except (CompilationError, TritonError) as error:
        reason = " ".join(str(error).split())[:300]
        if os.environ.get("TORCHADDER_TRITON_FALLBACK", "0") == "1":
            _warn(f"a Triton kernel does not compile ({reason})")
            return fallback()
        raise RuntimeError(
            f"torchadder: the Triton kernel {kernel.__name__} failed on this GPU: {reason}; "
            "TORCHADDER_TRITON_FALLBACK=1 lets the slow reference serve instead"
        ) from error
