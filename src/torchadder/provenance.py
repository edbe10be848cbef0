"""Where a number comes from: hardware, versions, date and command, for every result file.

Knows the machine and nothing of models; imports only torch.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import torchadder


def provenance(command: str | None = None) -> dict[str, Any]:
    """Date, command, hardware and versions of this process.

    Args:
        command: The command to state; by default what started this process.

    Returns:
        A JSON-able dict with the keys date, command, hardware and versions. Where torch finds a
        GPU, hardware and versions also name its kind, driver, CUDA or ROCm and Triton.
    """
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or command_line(),
        "hardware": {
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "cpu": cpu_model(),
            "cpu_cores": os.cpu_count(),
            "instruction_set": torchadder.ops.cpu_library_info()["instruction_set"],
            "torch_threads": torch.get_num_threads(),
            "platform": platform.platform(),
        },
        "versions": {
            "torchadder": torchadder.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if torch.cuda.is_available():
        report["hardware"] |= gpu_hardware(torch.cuda.get_device_properties())
        report["versions"] |= gpu_versions()
    return report


def gpu_hardware(properties: Any) -> dict[str, Any]:
    """What matters of a GPU, from `torch.cuda.get_device_properties`."""
    amd = torch.version.hip is not None
    capability = f"sm_{properties.major}{properties.minor}"
    return {
        "gpu_architecture": properties.gcnArchName if amd else capability,
        "gpu_multiprocessors": properties.multi_processor_count,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_cache_bytes": properties.L2_cache_size,
        "gpu_driver": gpu_driver(),
    }


def gpu_versions() -> dict[str, str | None]:
    """CUDA or ROCm and cuDNN or MIOpen as torch was built with them, and Triton."""
    cudnn = torch.backends.cudnn.version()
    return {
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": None if cudnn is None else str(cudnn),
        "triton": triton_version(),
    }


def triton_version() -> str | None:
    """Version of the Triton that is installed, under any of the names it is published by."""
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


DRIVER_FILES = (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version"))
"""Where Linux tells the version of a loaded GPU driver."""


def gpu_driver(files: Sequence[Path] = DRIVER_FILES) -> str | None:
    """Version of the GPU's driver; None where the system does not tell."""
    for file in files:
        if file.is_file():
            found = re.search(r"\d+\.\d+(\.\d+)*", file.read_text(encoding="utf-8"))
            if found:
                return found[0]
    return None


def command_line() -> str:
    """What started this process, without the path of the interpreter."""
    program = Path(sys.argv[0])
    words = (
        ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    )
    return shlex.join([*words, *sys.argv[1:]])


def cpu_model() -> str:
    """Name of the processor as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
