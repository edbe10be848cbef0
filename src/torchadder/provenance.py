"""Where a number comes from: hardware, versions, date and command, for every result file.

Knows the machine and nothing of models; imports only torch.
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

import torchadder


def provenance(command: str | None = None) -> dict[str, Any]:
    """Date, command, hardware and versions of this process.

    Args:
        command: The command to state; by default what started this process.

    Returns:
        A JSON-able dict with the keys date, command, hardware and versions.
    """
    return {
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
