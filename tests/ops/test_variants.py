"""The kernel tests again: on lesser instruction sets, on dirty memory, and without the library."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torchadder
from torchadder.ops import cpu, gpu

KERNEL_TESTS = Path(__file__).with_name("test_kernels.py")
ROOT = Path(__file__).parents[2]


def run_kernel_tests(*selection, **environment):
    """Run test_kernels.py in a process of its own, return its output."""
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(KERNEL_TESTS),
            *selection,
        ],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("capability", ["avx2", "portable"])
def test_lesser_instruction_sets(capability):
    code = "import torchadder as ta; print(ta.ops.cpu_library_info()['instruction_set'])"
    used = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TORCHADDER_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert used in (capability, "portable")
    if used != capability:
        pytest.skip(f"this processor has no {capability}")
    assert "passed" in run_kernel_tests(TORCHADDER_CPU_CAPABILITY=capability)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's MALLOC_PERTURB_")
def test_workspace_starts_dirty():
    """malloc hands out memory full of 0xFE, about -1.7e38 as float."""
    assert "passed" in run_kernel_tests(
        "-k", "test_forward or test_gradients or test_any_problem", MALLOC_PERTURB_="1"
    )


def test_reference_serves_without_the_library():
    code = (
        "import torch, torchadder as ta; from torchadder.ops import cpu;"
        "assert cpu.library() is None;"
        "x = torch.randn(2, 4, 6, 6, requires_grad=True); layer = ta.nn.Adder2d(4, 8, 3);"
        "layer(x).sum().backward();"
        "print(ta.ops.cpu_library_info()['backend'], x.grad.shape)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "TORCHADDER_BACKEND": "reference"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "reference torch.Size([2, 4, 6, 6])\n", result.stderr


def test_missing_library_warns_once():
    code = (
        "import ctypes, warnings, torch, torchadder as ta\n"
        "def missing(path): raise OSError('no such file')\n"
        "ctypes.CDLL = missing\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3): ta.nn.Adder2d(4, 8, 3)(torch.randn(2, 4, 6, 6))\n"
        "print(len(caught), 'slow reference' in str(caught[0].message))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "1 True\n", result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TORCHADDER_BACKEND", "gpu", "must be one of auto, cpu, reference, triton, got 'gpu'"),
        ("TORCHADDER_CPU_CAPABILITY", "AVX2", "must be one of avx512, avx2, portable, got 'AVX2'"),
    ],
)
def test_unknown_word_in_the_environment_is_an_error(variable, value, message):
    result = subprocess.run(
        [sys.executable, "-c", "import torchadder; torchadder.ops.cpu_library_info()"],
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
    )
    assert f"{variable} {message}" in result.stderr


def test_the_page_names_every_word_of_the_environment():
    page = (ROOT / "docs/operator.md").read_text(encoding="utf-8")
    table = page[page.index("| `TORCHADDER_BACKEND` |") :].partition("| `TORCHADDER_CPU")[0]
    named = [row.split("|")[2].strip(" `") for row in table.strip().splitlines()]
    assert sorted(named) == sorted(cpu._BACKENDS)


@pytest.mark.parametrize(
    ("choice", "dtype", "device", "is_triton"),
    [
        ("auto", torch.float32, "cuda", True),
        ("auto", torch.float64, "cuda", False),
        ("auto", torch.float32, "mps", False),
        ("auto", torch.float32, "cpu", False),
        ("cpu", torch.float32, "cuda", False),
        ("reference", torch.float32, "cuda", False),
        ("triton", torch.float32, "cpu", True),
        ("triton", torch.float64, "cpu", False),
    ],
)
def test_which_tensors_the_triton_kernels_serve(choice, dtype, device, is_triton, monkeypatch):
    """The section "Backends" of docs/operator.md, on tensors that this machine need not have."""
    monkeypatch.setattr(gpu, "backend", lambda: choice)
    monkeypatch.setattr(gpu, "_kernels", lambda: gpu)
    monkeypatch.setattr(gpu, "_supports", lambda index: True)
    tensor: Any = SimpleNamespace(dtype=dtype, device=torch.device(device))
    assert (gpu.kernels(tensor) is gpu) == is_triton


def test_this_installation_has_the_kernels():
    """The other tests of this folder would pass on the reference, too."""
    assert torchadder.ops.cpu_library_info()["backend"] == "cpu"
