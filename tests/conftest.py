"""A hostile world for the tests: NaN in fresh memory, warnings as errors, one seed."""

import os
import sys

import pytest

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # before torch reads it; programs that the tests start read it, too
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))

import torch  # noqa: E402


def pytest_addoption(parser):
    parser.addoption(
        "--require-gpu", action="store_true", help="fail instead of skipping tests marked gpu"
    )


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA or ROCm device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """With --require-gpu, a test marked gpu that skips, for whatever reason, has failed."""
    report = yield
    required = item.config.getoption("--require-gpu") and "gpu" in item.keywords
    if required and report.skipped and not hasattr(report, "wasxfail"):
        _, _, reason = report.longrepr
        report.longrepr = f"--require-gpu: {reason.removeprefix('Skipped: ')}"
        report.outcome = "failed"
        report.when = "call"  # a failed test, not an error of its preparation
    return report


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def _poisoned(function):
    """``function`` (an allocator) with NaN in what it returns to callers in the package."""

    def allocate(*args, **kwargs):
        tensor = function(*args, **kwargs)
        module = sys._getframe(1).f_globals.get("__name__", "")
        real = type(tensor) is torch.Tensor and tensor.device.type != "meta"
        if module.startswith("torchadder.ops") and real and tensor.is_floating_point():
            tensor.fill_(float("nan"))
        return tensor

    return allocate


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Outputs that a kernel leaves unwritten show as NaN."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
