"""The C++ library alone, under AddressSanitizer and UBSan: no torch, no Python in its process."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Compiles everything under the sanitizers: minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CAPABILITIES = ["avx512", "avx2", "portable"]  # the best first


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sanitized")
    for tool in ("cmake", "c++"):
        assert shutil.which(tool), f"{tool} is needed: pip install .[dev] brings cmake"
    options = ["-DTORCHADDER_SANITIZE=ON", "-DTORCHADDER_BUILD_TESTS=ON"]
    for command in (
        ["-S", str(ROOT), "-B", str(folder), *options],
        ["--build", str(folder), "-j2"],
    ):
        result = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
        assert "warning:" not in result.stdout + result.stderr
    return folder


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("program", "problems"), [("check_kernels", 60), ("check_int8", 200), ("check_pkkd", 60)]
)
def test_random_problems(programs, program, problems, capability):
    result = subprocess.run(
        [programs / program, str(problems), "7"],
        env={**os.environ, "TORCHADDER_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert f"{problems} problems checked" in result.stdout
    used = result.stdout.partition(":")[0]
    assert CAPABILITIES.index(used) >= CAPABILITIES.index(capability)
    if used != capability:
        pytest.skip(f"this processor has no {capability}")
