"""The operators on a GPU against the float64 reference; runs where there is one.

``pytest --require-gpu`` makes a missing GPU a failure.
"""

import pytest
import torch

import torchadder as ta
from cases import CASES, Case
from closeness import (
    assert_close,
    forward_in_float64,
    input_gradient_in_float64,
    weight_gradient_in_float64,
)
from torchadder.ops.geometry import GRAD_RULES

pytestmark = pytest.mark.gpu
ops = torch.ops.torchadder
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def on_gpu(case, *tensors):
    """Copies in the layout of the case."""
    return [None if t is None else case.laid_out(t.cuda()) if i == 0 else t.cuda()
            for i, t in enumerate(tensors)]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case, dtype, poisoned_memory):
    x, w, b = case.draw(dtype)
    want, magnitude = forward_in_float64(x, w, b, case.geometry)
    got = ops.adder2d(*on_gpu(case, x, w, b), *case.geometry, "clip")
    assert got.dtype == dtype
    assert_close(got.cpu(), want, magnitude)


@pytest.mark.parametrize("rule", GRAD_RULES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case, rule, poisoned_memory, monkeypatch):
    x, w, _ = case.draw()
    want_y, _ = forward_in_float64(x, w, None, case.geometry)
    g = torch.randn_like(want_y).float()
    operands = (g.cuda(), *on_gpu(case, x, w))
    want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, rule, monkeypatch)
    got = ops.adder2d_backward_input(*operands, *case.geometry, rule)
    assert_close(got.cpu(), want, magnitude, "x")
    want, magnitude = weight_gradient_in_float64(g, x, w, case.geometry, rule)
    got = ops.adder2d_backward_weight(*operands, *case.geometry, rule)
    assert_close(got.cpu(), want, magnitude, "w")


def test_large_images_and_many_channels():
    case = Case("", (4, 64, 56, 56), (128, 3, 3), padding=(1, 1))
    x, w, _ = case.draw()
    want, magnitude = forward_in_float64(x, w, None, case.geometry)
    assert_close(
        ops.adder2d(x.cuda(), w.cuda(), None, *case.geometry, "clip").cpu(), want, magnitude
    )


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", ["x", "w"])
def test_infinities_and_nan_pass_through(where, value, monkeypatch):
    case = Case("", (2, 32, 8, 9), (64, 3, 3), padding=(1, 1))
    x, w, _ = case.draw()
    # the central tap, which every pixel meets
    (x if where == "x" else w)[1, 2, 1, 1] = value
    want, magnitude = forward_in_float64(x, w, None, case.geometry)
    assert_close(
        ops.adder2d(x.cuda(), w.cuda(), None, *case.geometry, "clip").cpu(), want, magnitude
    )
    g = torch.randn_like(want).float()
    for rule in ("clip", "sign"):
        want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, rule, monkeypatch)
        got = ops.adder2d_backward_input(g.cuda(), x.cuda(), w.cuda(), *case.geometry, rule)
        assert_close(got.cpu(), want, magnitude, rule)


def test_gradient_of_large_activations(monkeypatch):
    """Beyond the range in which 1 - x keeps its digits."""
    case = Case("", (2, 16, 8, 8), (32, 3, 3))
    x, w, _ = case.draw()
    x, w = x + 1e4, w + 1e4
    g = torch.randn(2, 32, 6, 6)
    want, magnitude = input_gradient_in_float64(g, x, w, case.geometry, "clip", monkeypatch)
    got = ops.adder2d_backward_input(g.cuda(), x.cuda(), w.cuda(), *case.geometry, "clip")
    assert_close(got.cpu(), want, magnitude)


def test_two_calls_give_the_same_bits():
    case = Case("", (8, 32, 17, 17), (48, 3, 3), padding=(1, 1))
    x, w, _ = (None if t is None else t.cuda() for t in case.draw())
    g = torch.randn(8, 48, 17, 17, device="cuda")
    for _ in range(3):
        assert torch.equal(*(ops.adder2d(x, w, None, *case.geometry, "clip") for _ in range(2)))
        for rule in GRAD_RULES:
            arguments = (g, x, w, *case.geometry, rule)
            assert torch.equal(*(ops.adder2d_backward_input(*arguments) for _ in range(2)))
        arguments = (g, x, w, *case.geometry, "exact")
        assert torch.equal(*(ops.adder2d_backward_weight(*arguments) for _ in range(2)))


def small_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        ta.nn.Adder2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        ta.nn.Adder2d(16, 8, 3, stride=2), torch.nn.BatchNorm2d(8),
    ).cuda()  # fmt: skip


def test_compiles_as_one_graph():
    net, x = small_net(), torch.randn(4, 3, 12, 12, device="cuda")
    want = net(x)
    got = torch.compile(net, fullgraph=True)(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    got.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_cuda_graph_replays_the_step():
    net, x = small_net(), torch.randn(4, 3, 12, 12, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            net(x).square().sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    net.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(x).square().sum().backward()
    x.copy_(torch.randn_like(x))
    graph.replay()
    got = [p.grad.clone() for p in net.parameters()]
    net.zero_grad(set_to_none=True)
    net(x).square().sum().backward()
    for mine, p in zip(got, net.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-4, atol=1e-4)


def test_autocast_computes_in_float32():
    layer = ta.nn.Adder2d(16, 16, 3).cuda()
    x = torch.randn(2, 16, 9, 9, device="cuda", dtype=torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(x).dtype == torch.float32


def test_step_keeps_no_more_than_its_operands():
    """No im2col: the peak above what was there is a few times the operands."""
    x = torch.randn(32, 64, 56, 56, device="cuda", requires_grad=True)
    w = torch.randn(64, 64, 3, 3, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ta.functional.adder2d(x, w, padding=1).sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 7 * x.numel() * x.element_size()


def test_weight_gradient_is_in_true_float32():
    x, w = torch.randn(64, 64, 14, 14), torch.randn(64, 64, 3, 3)
    g = torch.randn(64, 64, 14, 14)
    geometry = Case("", (64, 64, 14, 14), (64, 3, 3), padding=(1, 1)).geometry
    before = torch.backends.cudnn.conv.fp32_precision
    got = ops.adder2d_backward_weight(g.cuda(), x.cuda(), w.cuda(), *geometry, "clip")
    want, magnitude = weight_gradient_in_float64(g, x, w, geometry, "clip")
    assert_close(got.cpu(), want, magnitude)
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_tensors_on_two_devices():
    with pytest.raises(
        ValueError, match=r"weight must be on the device of input .cuda:0., got cpu"
    ):
        ta.functional.adder2d(torch.zeros(1, 3, 5, 5).cuda(), torch.zeros(4, 3, 3, 3))
