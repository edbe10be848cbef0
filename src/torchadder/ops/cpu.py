"""Binding of the C++ library of ``csrc`` (ctypes, raw pointers); falls back to the reference."""

from __future__ import annotations


def cpu_library_info() -> dict[str, str | int]:
    """What the CPU backend runs on."""
    return {"backend": "reference"}
