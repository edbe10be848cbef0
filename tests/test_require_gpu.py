"""The contract of --require-gpu: what would be skipped for want of a GPU has failed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent / "conftest.py"
TESTS = """
import pytest


@pytest.fixture
def device_memory():
    raise RuntimeError("no device to allocate on")


@pytest.mark.gpu
def test_touches_no_device():
    pass


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 2])
def test_with_fixture(device_memory, size):
    pass


@pytest.mark.gpu
@pytest.mark.xfail(reason="known", run=False)
def test_expected_to_fail():
    pass


def test_of_the_processor():
    pass


def test_skips_itself():
    pytest.skip("another reason")
"""


@pytest.fixture
def run_tests(tmp_path):
    """Runs TESTS in a process that sees no GPU, with the conftest of this suite."""
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs a GPU\n")
    (tmp_path / "test_tiny.py").write_text(TESTS)

    def run(*arguments):
        hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-rfs", "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path,
            env={**os.environ, **hidden, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
        )
        return result.returncode, result.stdout

    return run


def outcomes(output):
    summary = output.strip().splitlines()[-1]
    return {kind: int(number) for number, kind in re.findall(r"(\d+) ([a-z]+)", summary)}


def test_without_the_flag_they_are_skipped(run_tests):
    status, output = run_tests()
    assert status == 0
    assert outcomes(output) == {"passed": 1, "skipped": 5}
    assert "no CUDA or ROCm device" in output


def test_with_the_flag_they_fail(run_tests):
    status, output = run_tests("--require-gpu")
    assert status == 1
    counted = outcomes(output)
    assert counted["failed"] == 4
    assert counted["passed"] == 1
    assert counted["skipped"] == 1, "a skip that has nothing to do with the GPU stays one"
    assert "errors" not in counted
    assert output.count("--require-gpu: no CUDA or ROCm device") >= 3
    assert "FAILED test_tiny.py::test_touches_no_device" in output
