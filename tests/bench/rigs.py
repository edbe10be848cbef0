"""Rigs for the GPU benchmark on a machine without a GPU."""

import dataclasses

import torch

from torchadder.bench.gpu_rig import Rig
from torchadder.bench.timing import CpuTimer, Reading

CLOCK_HZ = 1.5e9
LANES = 1000
PRECISIONS = ("tf32", "bf16")


def cpu_rig():
    """Everything runs, on the processor and by its clock."""
    return Rig(
        torch.device("cpu"), CpuTimer(), units=2, lanes=LANES, cache_bytes=0, precisions=PRECISIONS
    )


class ScriptedTimer:
    """Runs what it is given once; says what it was told to say.

    ``costs``: milliseconds of one call of the first, second ... side of each measurement, recorded
    sides in the order of their recording; a call that was never recorded costs ``plain_ms``.
    """

    def __init__(self, costs, plain_ms=None, peaks=()):
        self.costs, self.plain_ms, self.peaks = costs, plain_ms, list(peaks)
        self.recorded = []

    def repeated(self, calls):
        for call in calls:
            call()
        cost = self.costs[len(self.recorded) % len(self.costs)] * len(calls)

        def replay():
            return Reading(cost, CLOCK_HZ)

        self.recorded.append((len(calls), replay))
        return replay

    def read(self, call):
        result = call()
        return result if isinstance(result, Reading) else Reading(self.plain_ms)

    def peak_bytes(self, build):
        build()()
        return self.peaks.pop(0)


def scripted_rig(*args, cache_bytes=0, **kwargs):
    timer = ScriptedTimer(*args, **kwargs)
    return dataclasses.replace(cpu_rig(), timer=timer, cache_bytes=cache_bytes)
