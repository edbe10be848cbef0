"""Which float32 a convolution on a GPU computes in, for the duration of a `with` block.

The switches are those that torch has had since TF32 exists. The newer ones
(`torch.backends.cudnn.conv.fp32_precision`) leave the older ones unreadable while they are set, and
`torch.backends.cudnn.flags` reads them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def strict_float32() -> Iterator[None]:
    """No TF32 in any product; cuDNN tries its algorithms and keeps the fastest."""
    matmul = torch.backends.cuda.matmul
    with _without_deprecation():
        before = matmul.allow_tf32
        matmul.allow_tf32 = False
    try:
        with _cudnn(allow_tf32=False, benchmark=True):
            yield
    finally:
        with _without_deprecation():
            matmul.allow_tf32 = before


@contextmanager
def tf32_convolutions() -> Iterator[None]:
    """TF32 in convolutions, inside of `strict_float32`."""
    with _cudnn(allow_tf32=True, benchmark=True):
        yield


@contextmanager
def default_algorithms() -> Iterator[None]:
    """Algorithms of cuDNN by its heuristic, not by trial, inside of `strict_float32`."""
    with _cudnn(allow_tf32=False, benchmark=False):
        yield


@contextmanager
def _cudnn(*, allow_tf32: bool, benchmark: bool) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    with _without_deprecation():
        flags = cudnn.flags(enabled=cudnn.enabled, benchmark=benchmark, allow_tf32=allow_tf32)
        flags.__enter__()
    try:
        yield
    finally:
        with _without_deprecation():
            flags.__exit__(None, None, None)


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Some versions of torch announce, once, that these switches will go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")
        yield
