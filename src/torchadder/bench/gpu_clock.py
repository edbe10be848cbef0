"""The clock of a GPU's multiprocessors, as the driver tells it while kernels run.

NVIDIA: NVML, the library that comes with the driver, by ctypes. AMD: torch's own reader, which
needs ROCm's amdsmi. Where neither answers there is no clock, and nothing that depends on it.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch

_SM_CLOCK = 1  # NVML_CLOCK_SM
_SUCCESS = 0

ClockReader = Callable[[], "float | None"]
"""Clock in Hz, None where the driver does not tell."""


def clock_reader(device: torch.device) -> ClockReader:
    """A function that reads the clock of a CUDA or ROCm device."""
    if torch.version.hip:
        return amd_clock_reader(device)
    properties = torch.cuda.get_device_properties(device)
    bus_id = (
        f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}"
        f":{properties.pci_device_id:02X}.0"
    )
    return nvml_clock_reader(nvml(), bus_id)


def nvml() -> Any | None:
    """The driver's management library, None where there is none."""
    try:
        return ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None


def nvml_clock_reader(library: Any | None, bus_id: str) -> ClockReader:
    """A function that reads the clock of the device with this PCI address.

    Args:
        library: NVML.
        bus_id: "domain:bus:device.function" in hexadecimal digits.
    """
    handle = ctypes.c_void_p()
    found = (
        library is not None
        and library.nvmlInit_v2() == _SUCCESS
        and library.nvmlDeviceGetHandleByPciBusId_v2(bus_id.encode(), ctypes.byref(handle))
        == _SUCCESS
    )
    if library is None or not found:
        return lambda: None

    def read() -> float | None:
        megahertz = ctypes.c_uint()
        status = library.nvmlDeviceGetClockInfo(handle, _SM_CLOCK, ctypes.byref(megahertz))
        return 1e6 * megahertz.value if status == _SUCCESS and megahertz.value else None

    return read


def amd_clock_reader(device: torch.device) -> ClockReader:
    """A function that reads the clock of a ROCm device, by torch and amdsmi."""
    try:
        amdsmi = importlib.import_module("amdsmi")
    except ImportError:
        return lambda: None

    def read() -> float | None:
        try:
            megahertz = torch.cuda.clock_rate(device)
        except (RuntimeError, amdsmi.AmdSmiException):
            return None
        return 1e6 * megahertz if megahertz else None

    return read
