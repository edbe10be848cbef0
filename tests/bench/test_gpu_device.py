"""The GPU benchmark on a GPU: events, graphs, clocks, memory."""

import pytest
import torch

from torchadder.bench import gpu_step
from torchadder.bench.gpu_limits import pairs_per_second
from torchadder.bench.gpu_report import measure_gpu, measure_limit
from torchadder.bench.gpu_rig import current_gpu
from torchadder.bench.gpu_step import SIDES, measure_gpu_step
from torchadder.bench.shapes import Shape
from torchadder.provenance import provenance

pytestmark = pytest.mark.gpu

SHAPES = (Shape(2, 3, 4, 9, 3, stride=2, width=6), Shape(4, 16, 16, 8, 1))


@pytest.fixture
def rig():
    return current_gpu()


def test_timer_measures_the_device(rig):
    """Eight times the work takes more than four times the time, although launching does not."""
    large = torch.randn(64, 1 << 20, device=rig.device)

    def sine(rows):
        return lambda: torch.sin(large[:rows])

    times = {}
    for rows in (8, 64):
        replay = rig.timer.repeated([sine(rows)] * 16)
        times[rows] = min(rig.timer.read(replay).ms for _ in range(5))
    assert times[64] > 4 * times[8] > 0


def test_replay_does_the_work(rig):
    total = torch.zeros((), device=rig.device)
    replay = rig.timer.repeated([lambda: total.add_(1)] * 5)
    before = total.item()
    replay()
    assert total.item() == before + 5


def test_peak_counts_what_a_call_holds(rig):
    def build():
        kept = torch.zeros(1 << 20, device=rig.device)
        return lambda: (kept + 1).sum()

    peak = rig.timer.peak_bytes(build)
    assert 2 * 4 << 20 <= peak < 3 * 4 << 20


def test_limit(rig):
    """No kernel beats the data sheet at the clock it ran at, and the one in registers is near."""
    limit = measure_limit(rig)
    assert limit["measured_pairs_per_second"] > 0
    if limit["pairs_per_second"] is not None:
        assert limit["pairs_per_second"] == pairs_per_second(rig.lanes, limit["clock_hz"])
        assert 0.7 < limit["measured_pairs_per_second"] / limit["pairs_per_second"] < 1.1


def test_whole_report(rig):
    report = measure_gpu(SHAPES, rig, seconds=0.01, step=False)
    assert len(report["layers"]) == 4 * len(SHAPES)
    for result in report["layers"]:
        assert result["adder_ms"] > 0
        assert result["unfold_ms"] > 0
        if result["part"] == "step":
            assert result["adder_peak_bytes"] > 0
            assert result["conv_peak_bytes"] > 0
        if result["share_of_limit"] is not None:
            assert 0 < result["share_of_limit"] < 1


@pytest.mark.parametrize("side", SIDES)
def test_replay_of_a_step_trains(side, rig, monkeypatch):
    nets = []
    build = gpu_step.models.build

    def kept(*args, **kwargs):
        nets.append(build(*args, **kwargs))
        return nets[-1]

    monkeypatch.setattr(gpu_step.models, "build", kept)
    replay = rig.timer.repeated([gpu_step.gpu_training_step(side, "resnet20", 8, rig.device)])
    parameters = [p for net in nets for p in net.parameters()]
    before = [p.detach().clone() for p in parameters]
    replay()
    assert all((p != q).any() for p, q in zip(parameters, before, strict=True))
    assert all(p.isfinite().all() for p in parameters)


def test_step(rig):
    result = measure_gpu_step(rig, batch=8, seconds=0.05, baseline=False)
    for times in (result.eager_ms, result.graph_ms):
        assert set(times) == set(SIDES)
        assert min(times.values()) > 0
    assert result.memory_ratio > 0


def test_provenance_names_the_gpu():
    report = provenance()
    assert report["hardware"]["gpu"]
    assert report["hardware"]["gpu_multiprocessors"] > 0
    assert report["versions"]["cuda"] or report["versions"]["hip"]
