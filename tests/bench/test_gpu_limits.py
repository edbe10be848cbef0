"""Clocks, lanes and the kernel in registers: what the share of the limit is made of."""

import ctypes
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from torchadder.bench import gpu_clock, gpu_rig
from torchadder.bench.gpu_clock import amd_clock_reader, nvml_clock_reader
from torchadder.bench.gpu_limits import lanes_per_unit, pairs_per_second, tensor_core_precisions
from torchadder.bench.timing import CpuTimer, Reading, median_readings
from torchadder.provenance import gpu_driver, gpu_hardware, triton_version


@pytest.mark.parametrize(
    ("capability", "lanes"),
    [((7, 5), 64), ((8, 0), 64), ((8, 6), 128), ((8, 9), 128), ((9, 0), 128), ((10, 0), 128)],
)
def test_lanes_of_nvidia_chips(capability, lanes):
    assert lanes_per_unit(capability, None) == lanes


def test_lanes_of_amd_chips():
    assert lanes_per_unit(None, "gfx942:sramecc+:xnack-") == 64


def test_unknown_chips_have_no_lanes():
    assert lanes_per_unit((99, 0), None) is None
    assert lanes_per_unit(None, "gfx9999") is None
    assert lanes_per_unit(None, None) is None


def test_precisions_of_chips():
    assert tensor_core_precisions((9, 0)) == ("tf32", "bf16")
    assert tensor_core_precisions((7, 5)) == ()
    assert tensor_core_precisions(None) == ("bf16",)


def test_limit_is_half_a_pair_a_lane_and_cycle():
    assert pairs_per_second(132 * 128, 1.98e9) == pytest.approx(16.727e12, rel=1e-4)
    assert pairs_per_second(None, 1e9) is None
    assert pairs_per_second(128, None) is None


class FakeNvml:
    """The three calls that are made, on a device at 1755 MHz."""

    def __init__(self, init=0, found=0, status=0, megahertz=1755):
        self.init, self.found, self.status, self.megahertz = init, found, status, megahertz

    def nvmlInit_v2(self):  # noqa: N802
        return self.init

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus_id, handle):  # noqa: N802
        assert bus_id == b"00000000:18:00.0"
        handle._obj.value = 77
        return self.found

    def nvmlDeviceGetClockInfo(self, handle, kind, result):  # noqa: N802
        assert handle.value == 77
        assert kind == 1  # NVML_CLOCK_SM
        assert isinstance(result._obj, ctypes.c_uint)
        result._obj.value = self.megahertz
        return self.status


def test_clock_of_nvml():
    assert nvml_clock_reader(FakeNvml(), "00000000:18:00.0")() == 1.755e9


@pytest.mark.parametrize(
    "library",
    [None, FakeNvml(init=9), FakeNvml(found=6), FakeNvml(status=3), FakeNvml(megahertz=0)],
)
def test_no_clock_where_nvml_does_not_answer(library):
    assert nvml_clock_reader(library, "00000000:18:00.0")() is None


class AmdSmiError(Exception):
    pass


@pytest.mark.parametrize(
    ("answer", "clock_hz"),
    [(2100, 2.1e9), (0, None), (RuntimeError("no driver"), None), (AmdSmiError("busy"), None)],
)
def test_clock_of_amdsmi(monkeypatch, answer, clock_hz):
    def clock_rate(device):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setitem(sys.modules, "amdsmi", SimpleNamespace(AmdSmiException=AmdSmiError))
    monkeypatch.setattr(torch.cuda, "clock_rate", clock_rate)
    assert amd_clock_reader(torch.device("cuda", 0))() == clock_hz
    monkeypatch.setitem(sys.modules, "amdsmi", None)  # cannot be imported
    assert amd_clock_reader(torch.device("cuda", 0))() is None


def test_processor_timer_reads_its_clock():
    ticks = iter([1.0, 1.25])
    assert CpuTimer(lambda: next(ticks)).read(lambda: None) == Reading(250.0)


def test_medians_of_times_and_clocks():
    script = {"a": [(5.0, 2e9), (1.0, None), (3.0, 1e9)], "b": [(9.0, None)] * 3}

    class Timer(CpuTimer):
        def read(self, call):
            return Reading(*script[call()].pop(0))

    calls = {"a": lambda: "a", "b": lambda: "b"}
    medians = median_readings(calls, 0.0, Timer(), least_turns=3)
    assert medians == {"a": Reading(3.0, 1.5e9), "b": Reading(9.0, None)}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.51  Release", "575.51"),
        ("6.10.5\n", "6.10.5"),
        ("unreadable", None),
    ],
)
def test_driver_version(tmp_path, text, version):
    file = tmp_path / "version"
    file.write_text(text)
    assert gpu_driver((tmp_path / "missing", file)) == version


H200 = SimpleNamespace(
    major=9, minor=0, multi_processor_count=132, total_memory=5, L2_cache_size=6,
    gcnArchName="gfx942", pci_domain_id=0, pci_bus_id=0x18, pci_device_id=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("hip", "lanes", "precisions"),
    [(None, 132 * 128, ("tf32", "bf16")), ("7.0", 132 * 64, ("bf16",))],
)
def test_rig_of_a_gpu(monkeypatch, hip, lanes, precisions):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H200)
    monkeypatch.setattr(torch.cuda, "clock_rate", lambda device: 1755)
    monkeypatch.setitem(sys.modules, "amdsmi", SimpleNamespace(AmdSmiException=AmdSmiError))
    monkeypatch.setattr(gpu_clock, "nvml", FakeNvml)
    clocks = []
    monkeypatch.setattr(gpu_rig, "CudaTimer", lambda device, read: clocks.append(read()))
    rig = gpu_rig.current_gpu()
    assert clocks == [1.755e9]
    assert (rig.device, rig.units, rig.lanes) == (torch.device("cuda", 0), 132, lanes)
    assert (rig.cache_bytes, rig.precisions) == (6, precisions)


def test_hardware_of_a_gpu():
    hardware = gpu_hardware(H200)
    assert hardware.pop("gpu_architecture") == ("gfx942" if torch.version.hip else "sm_90")
    assert hardware == {
        "gpu_multiprocessors": 132,
        "gpu_memory_bytes": 5,
        "gpu_cache_bytes": 6,
        "gpu_driver": gpu_driver(),
    }


def test_version_of_triton():
    triton = pytest.importorskip("triton")
    assert triton_version().split("+")[0] == triton.__version__.split("+")[0]


def test_kernel_in_registers_computes_its_chains():
    """In Triton's interpreter, against the same recurrence in torch; the orbits stay bounded."""
    pytest.importorskip("triton")
    code = """
import torch
from torchadder.bench.gpu_peak import BLOCK, UNROLL, num_pairs, run_chains
values = torch.rand(3 * BLOCK)
got = run_chains(values, torch.empty(2, BLOCK), 3)
a, b, w = values.split(BLOCK)
for _ in range(3 * UNROLL):
    a = (b - w).abs() - a
    b = (a - w).abs() - b
assert torch.equal(got, (a + b).expand(2, -1))
assert num_pairs(2, 3) == 2 * BLOCK * 3 * UNROLL * 2
for _ in range(6400):
    a = (b - w).abs() - a
    b = (a - w).abs() - b
assert 1 < a.abs().max() < 100
assert a.std() > 0.5
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_kernel_in_registers_is_two_additions_a_pair(tmp_path, monkeypatch):
    """The machine code for a chip of compute capability 9.0: additions and nothing else counts."""
    triton = pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.backends.compiler")
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no backend for NVIDIA")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from torchadder.bench.gpu_peak import BLOCK, OPTIONS, UNROLL, WARPS, chains

    source = triton.compiler.ASTSource(
        chains,
        signature={
            "values": "*fp32",
            "results": "*fp32",
            "iterations": "i32",
            "UNROLL": "constexpr",
            "BLOCK": "constexpr",
        },
        constexprs={"UNROLL": UNROLL, "BLOCK": BLOCK},
    )
    target = compiler.GPUTarget("cuda", 90, 32)
    assembly = triton.compile(source, target=target, options=OPTIONS).asm["sass"]
    operations = re.findall(r"\b([A-Z][A-Z0-9]+)(?:\.[A-Z0-9_.]+)? ", assembly)
    a_thread = BLOCK // (32 * WARPS)
    pairs = 2 * UNROLL * a_thread
    additions = operations.count("FADD")
    assert 2 * pairs <= additions <= 2 * pairs + a_thread  # and one to store a + b
    assert not {"FFMA", "FMUL", "FMNMX", "LDS", "LDL", "STL"} & set(operations)
    assert len(operations) < 1.2 * additions
