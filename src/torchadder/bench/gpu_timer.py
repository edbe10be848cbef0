"""Times a CUDA or ROCm device by events, and weighs it by torch's allocator."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

from torchadder.bench.gpu_clock import ClockReader
from torchadder.bench.timing import Call, Reading

GRAPH_WARM_UP = 3
"""Rounds before a capture: compilation, cuDNN's trials and PKKD's first batch happen there."""

LEAD_IN_BYTES = 1 << 28
"""Takes any GPU longer to fill than the host to launch a graph."""


class CudaTimer:
    """Measures on the current CUDA or ROCm device.

    Args:
        device: That device.
        read_clock: Reads its clock; by default there is none.
    """

    def __init__(self, device: torch.device, read_clock: ClockReader = lambda: None) -> None:
        self._lead_in = torch.empty(LEAD_IN_BYTES, dtype=torch.uint8, device=device)
        self._read_clock = read_clock

    def read(self, call: Call) -> Reading:
        """Time between two events around the call; the clock is read while the device works.

        The device fills memory before the first event. Meanwhile the host launches the call, so
        that the launch of a replay is not part of its time.
        """
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self._lead_in.zero_()
        start.record()
        call()
        end.record()
        clock_hz = self._read_clock()
        end.synchronize()
        return Reading(start.elapsed_time(end), clock_hz)

    def repeated(self, calls: Sequence[Call]) -> Call:
        """The replay of a graph of all calls, which the host starts with one launch."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(GRAPH_WARM_UP):
                for call in calls:
                    call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        return graph.replay

    def peak_bytes(self, build: Callable[[], Call]) -> int | None:
        """Peak of the allocator in the third call, above what was allocated before ``build``."""
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        call = build()
        call()
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
