"""The order of what the GPU's timer does, on a device that only keeps a log."""

import contextlib

import pytest
import torch

from torchadder.bench import gpu_timer
from torchadder.bench.gpu_timer import GRAPH_WARM_UP, CudaTimer
from torchadder.bench.timing import Reading


class Device:
    """Stands for `torch.cuda`: notes what happens and in which stream."""

    def __init__(self):
        self.log, self.allocated, self.peak = [], 100, 0

    def install(self, monkeypatch):
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                device.log.append("record")

            def synchronize(self):
                device.log.append("wait")

            def elapsed_time(self, end):
                return 1.25

        class Stream:
            def wait_stream(self, other):
                device.log.append("side waits")

        class CurrentStream:
            def wait_stream(self, other):
                assert isinstance(other, Stream)
                device.log.append("main waits")

        class Graph:
            def replay(self):
                device.log.append("replay")

        @contextlib.contextmanager
        def within(*args, stream=None, name="stream"):
            device.log.append(f"enter {name}")
            yield
            device.log.append(f"leave {name}")

        fakes = {
            "Event": Event,
            "Stream": Stream,
            "CUDAGraph": Graph,
            "current_stream": CurrentStream,
            "stream": within,
            "graph": lambda graph, stream: within(name="graph"),
            "synchronize": lambda: device.log.append("synchronize"),
            "empty_cache": lambda: None,
            "memory_allocated": lambda: device.allocated,
            "reset_peak_memory_stats": lambda: setattr(device, "peak", device.allocated),
            "max_memory_allocated": lambda: device.peak,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(gpu_timer, "LEAD_IN_BYTES", 8)
    device = Device()
    device.install(monkeypatch)
    return device


def test_clock_is_read_while_the_device_works(device):
    def read_clock():
        device.log.append("clock")
        return 1.5e9

    timer = CudaTimer(torch.device("cpu"), read_clock)
    assert timer.read(lambda: device.log.append("call")) == Reading(1.25, 1.5e9)
    assert device.log == ["synchronize", "record", "call", "record", "clock", "wait"]


def test_calls_are_warmed_up_and_recorded(device):
    timer = CudaTimer(torch.device("cpu"))
    replay = timer.repeated([lambda: device.log.append("a"), lambda: device.log.append("b")])
    assert device.log == [
        "side waits", "enter stream", *["a", "b"] * GRAPH_WARM_UP, "leave stream", "main waits",
        "enter graph", "a", "b", "leave graph",
    ]  # fmt: skip
    replay()
    assert device.log[-1] == "replay"


def test_peak_is_that_of_the_third_call(device):
    peaks = iter([900, 800, 370])

    def build():
        device.allocated += 50

        def call():
            device.peak = max(device.peak, next(peaks))

        return call

    assert CudaTimer(torch.device("cpu")).peak_bytes(build) == 270
