"""The GPU benchmark's arithmetic, by scripted times, and its calls, on the processor."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench.rigs import CLOCK_HZ, LANES, cpu_rig, scripted_rig
from torchadder.bench import gpu_calls, gpu_layers, gpu_report, gpu_step
from torchadder.bench.gpu_layers import CALLS_A_ROUND, measure_gpu_layer, num_sets
from torchadder.bench.gpu_report import measure_gpu
from torchadder.bench.gpu_step import gpu_training_step, measure_gpu_step
from torchadder.bench.gpu_timer import GRAPH_WARM_UP
from torchadder.bench.precision import default_algorithms, strict_float32, tf32_convolutions
from torchadder.bench.shapes import GPU_SHAPES, SHAPES, Shape
from torchadder.functional import adder2d

TINY = Shape(2, 3, 4, 9, 3, stride=2, width=6)
COSTS = (2.0, 1.0, 0.5, 0.25)  # adder, conv2d in fp32, TF32, bf16


def test_shapes_are_those_of_the_processor_and_a_detector():
    *layers, head = GPU_SHAPES
    assert [shape.batch for shape in layers] == [256] * len(SHAPES)
    assert [dataclasses.replace(s, batch=0) for s in layers] == [
        dataclasses.replace(s, batch=0) for s in SHAPES
    ]
    assert head.name == "3x3 256->256 @100x168 b1"
    assert head.output_size == (100, 168)


@pytest.mark.parametrize("part", ["forward", "input gradient", "weight gradient", "step"])
def test_sides_compute_what_they_say(part):
    operands = gpu_calls.Operands.draw(TINY, torch.device("cpu"))
    x, w = operands.x.clone().requires_grad_(), operands.w.clone().requires_grad_()
    for calls, operator in (
        (gpu_calls.adder_calls, adder2d),
        (gpu_calls.conv_calls, F.conv2d),
        (gpu_calls.unfold_calls, adder2d),
    ):
        y = operator(x, w, None, TINY.stride, TINY.padding)
        dx, dw = torch.autograd.grad(y, (x, w), operands.g)
        want = {"forward": (y,), "input gradient": (dx,), "weight gradient": (dw,)}
        got = calls(TINY, operands)[part]()
        got = [t for t in (got if isinstance(got, tuple) else (got,)) if t is not None]
        wanted = want.get(part, (dx, dw))
        assert len(got) == len(wanted)
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-4, atol=1e-5)


def test_figures_of_a_layer():
    rig = scripted_rig(COSTS, plain_ms=80.0, peaks=[300, 200])
    results = measure_gpu_layer(TINY, rig, seconds=1e-6)
    assert [result.part for result in results] == [
        "forward", "input gradient", "weight gradient", "step",
    ]  # fmt: skip
    taps = 2 * 4 * 15 * 27
    limit = LANES * CLOCK_HZ / 2
    for result in results:
        assert result.shape == "3x3 3->4 @9x6 /2 b2"
        assert result.adder_ms == 2.0
        assert result.conv_ms == {"fp32": 1.0, "tf32": 0.5, "bf16": 0.25}
        assert result.ratio_to_conv == {"fp32": 2.0, "tf32": 4.0, "bf16": 8.0}
        assert result.unfold_ms == 80.0
        assert result.speedup_over_unfold == 40.0
        assert result.clock_hz == CLOCK_HZ
        elements = taps * (3 if result.part == "step" else 1)
        assert result.elements_per_second == pytest.approx(elements / 2e-3)
        two_instructions = result.part in ("forward", "input gradient")
        share = taps / 2e-3 / limit if two_instructions else None
        assert result.share_of_limit == (None if share is None else pytest.approx(share))
        peaks = (300, 200) if result.part == "step" else (None, None)
        assert (result.adder_peak_bytes, result.conv_peak_bytes) == peaks


def test_unknown_chip_has_no_share():
    rig = dataclasses.replace(scripted_rig(COSTS, peaks=[1, 1]), lanes=None)
    results = measure_gpu_layer(TINY, rig, seconds=1e-6, baseline=False)
    assert {result.share_of_limit for result in results} == {None}
    assert {result.unfold_ms for result in results} == {None}


def test_chips_without_tensor_cores_are_compared_in_float32():
    rig = dataclasses.replace(scripted_rig(COSTS[:2], peaks=[1, 1]), precisions=())
    for result in measure_gpu_layer(TINY, rig, seconds=1e-6, baseline=False):
        assert result.conv_ms == {"fp32": 1.0}
        assert result.ratio_to_conv == {"fp32": 2.0}


def test_rounds_touch_more_than_the_cache():
    one_set = 4 * (2 * 3 * 9 * 6 + 4 * 3 * 9 + 2 * 4 * 15)
    assert num_sets(TINY, 0) == 1
    assert num_sets(TINY, one_set) == 3
    assert num_sets(TINY, 10**9) == CALLS_A_ROUND
    rig = scripted_rig(COSTS, peaks=[1, 1], cache_bytes=one_set)
    measure_gpu_layer(TINY, rig, seconds=1e-6, baseline=False)
    assert {calls for calls, _ in rig.timer.recorded} == {18}  # three sets, six times
    assert len(rig.timer.recorded) == 4 * 4  # four sides of four parts


@pytest.mark.parametrize("part", ["forward", "input gradient", "weight gradient"])
def test_a_wrong_kernel_is_not_timed(part, monkeypatch):
    """The last number of the result, off by a thousandth of the largest, is enough."""
    right = gpu_calls.adder_calls

    def wrong(shape, operands):
        calls = right(shape, operands)

        def spoilt(call=calls[part]):
            result = call().contiguous().clone()
            result.view(-1)[-1] += 1e-3 * result.abs().max()
            return result

        return {**calls, part: spoilt}

    gpu_calls.check_layer(TINY, torch.device("cpu"))
    monkeypatch.setattr(gpu_calls, "adder_calls", wrong)
    with pytest.raises(FloatingPointError, match=f"the {part} of 3x3 3->4 @9x6 /2 b2 on cpu"):
        measure_gpu_layer(TINY, cpu_rig(), seconds=1e-6)


def test_check_of_large_layers_takes_few_filters(monkeypatch):
    monkeypatch.setattr(gpu_calls, "CHECKED_NUMBERS", 2 * 15 * 27)
    seen = []
    plain = gpu_calls.unfold_calls
    monkeypatch.setattr(
        gpu_calls, "unfold_calls", lambda s, o: seen.append(len(o.w)) or plain(s, o)
    )
    gpu_calls.check_layer(TINY, torch.device("cpu"))
    assert seen == [2]


def flags():
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


@pytest.mark.parametrize("before", [(False, True, False), (True, True, False)])
def test_precision_is_set_and_restored(before):
    usual = flags()
    torch.backends.cuda.matmul.allow_tf32 = before[0]
    try:
        with strict_float32():
            assert flags() == (False, False, True)
            with tf32_convolutions():
                assert flags() == (False, True, True)
                assert torch.backends.cudnn.conv.fp32_precision == "tf32"
            with default_algorithms():
                assert flags() == (False, False, False)
            assert flags() == (False, False, True)
            assert torch.backends.cudnn.conv.fp32_precision != "tf32"
            assert torch.backends.cuda.matmul.fp32_precision != "tf32"
        assert flags() == before
        with pytest.raises(ZeroDivisionError), strict_float32():
            raise ZeroDivisionError
        assert flags() == before
    finally:
        torch.backends.cuda.matmul.allow_tf32 = usual[0]


def test_only_tf32_sides_run_in_tf32(monkeypatch):
    seen = {}
    conv = gpu_layers.conv_calls

    def spied(shape, operands):
        def note():
            dtype, last = operands.x.dtype, operands.x.stride(1) == 1
            seen.setdefault((dtype, last), set()).add(torch.backends.cudnn.allow_tf32)

        return {
            part: lambda call=call: (note(), call()) for part, call in conv(shape, operands).items()
        }

    monkeypatch.setattr(gpu_layers, "conv_calls", spied)
    measure_gpu_layer(TINY, scripted_rig(COSTS, peaks=[1, 1]), seconds=1e-6, baseline=False)
    assert seen == {
        (torch.float32, False): {False},
        (torch.float32, True): {True},
        (torch.bfloat16, True): {False},
    }


@pytest.mark.parametrize("side", ["adder", "conv", "pkkd"])
def test_training_steps_train(side):
    nets = []
    build = gpu_step.models.build

    def kept(*args, **kwargs):
        nets.append(build(*args, **kwargs))
        return nets[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_step.models, "build", kept)
        step = gpu_training_step(side, "resnet20", 2, torch.device("cpu"))
    before = [[p.detach().clone() for p in net.parameters()] for net in nets]
    step()
    assert len(nets) == (2 if side == "pkkd" else 1)
    for net, old in zip(nets, before, strict=True):
        assert all((p != q).any() for p, q in zip(net.parameters(), old, strict=True))
    adaptive = nets[0].layer1[0].conv1.weight.grad.square().mean().sqrt().item()
    assert (adaptive == pytest.approx(0.2, rel=1e-4)) == (side != "conv")


class HostWork(TorchDispatchMode):
    """Notes what would read the device, or copy a number of Python to it: no graph holds that."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))

    def forbidden(self):
        return [name for name in self.seen if name in self.FORBIDDEN]


@pytest.mark.parametrize("side", ["adder", "conv", "pkkd"])
def test_steps_can_be_recorded(side):
    """After the warm-up of a recording, a step asks nothing of the device."""
    step = gpu_training_step(side, "resnet20", 2, torch.device("cpu"))
    for _ in range(GRAPH_WARM_UP):
        step()
    with HostWork() as work:
        step()
    assert {"convolution_backward", "_foreach_add_"} & set(work.seen)
    assert not work.forbidden()
    with HostWork() as work:
        bool(torch.ones(2).sum() > torch.tensor(1.0))
    assert set(work.forbidden()) == {"_local_scalar_dense", "lift_fresh"}


def test_figures_of_a_step(monkeypatch):
    monkeypatch.setattr(gpu_step, "gpu_training_step", lambda *args: lambda: None)
    rig = scripted_rig((3.0, 2.0, 6.0), plain_ms=9.0, peaks=[220, 200, 500])
    result = measure_gpu_step(rig, seconds=1e-6)
    assert result.batch == 256
    assert result.graph_ms == {"adder": 3.0, "conv": 2.0, "pkkd": 6.0}
    assert result.eager_ms == {"adder": 9.0, "conv": 9.0, "pkkd": 9.0}
    assert result.ratio_to_conv == {"eager": 1.0, "graph": 1.5}
    assert result.unfold_ms == 9.0
    assert result.speedup_over_unfold == 1.0
    assert result.peak_bytes == {"adder": 220, "conv": 200, "pkkd": 500}
    assert result.memory_ratio == pytest.approx(1.1)


def test_whole_report_on_the_processor():
    told = []
    report = measure_gpu(
        [TINY], cpu_rig(), seconds=1e-3, baseline=False, step=False, announce=told.append
    )
    assert json.loads(json.dumps(report)) == report
    assert report["device"] == "cuda"
    assert report["shapes"] == [TINY.name]
    assert report["limit"] == {
        "lanes": LANES,
        "clock_hz": None,
        "pairs_per_second": None,
        "measured_pairs_per_second": None,
    }
    assert len(report["layers"]) == 4
    assert report["step"] is None
    assert told == ["timing the limit in registers", f"timing {TINY.name}"]


def test_layers_that_do_not_fit_are_left_out(monkeypatch):
    def too_large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_report, "measure_gpu_layer", too_large)
    told = []
    report = measure_gpu([TINY], cpu_rig(), step=False, announce=told.append)
    assert report["shapes"] == [TINY.name]
    assert report["layers"] == []
    assert told[-1] == f"left out {TINY.name}: it does not fit into the device's memory"


def test_baseline_that_does_not_fit_is_left_out(monkeypatch):
    def too_large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_layers, "unfold_calls", too_large)
    rig = scripted_rig(COSTS, plain_ms=1.0, peaks=[1, 1])
    assert {r.unfold_ms for r in measure_gpu_layer(TINY, rig, seconds=1e-6)} == {None}
