"""What torch.library promises: fake kernels, autograd, autocast, compile, export, flops."""

import copy
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import torchadder as ta
from cases import CASES, Case
from torchadder.ops.geometry import GRAD_RULES

ops = torch.ops.torchadder
SOME = [
    case
    for case in CASES
    if case.name
    in {
        "3x3", "1x1 stride 2", "2 groups", "depthwise multiplier 3", "batch 0", "channels_last",
        "sliced", "expanded", "dilation (3, 2) stride (2, 3)", "one pixel",
    }
]  # fmt: skip


# torch's own checker reads .grad of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("rule", GRAD_RULES)
@pytest.mark.parametrize("case", SOME, ids=str)
def test_opcheck(case, rule):
    x, w, b = case.draw()
    if case.layout != "expanded":
        x.requires_grad_()
    w.requires_grad_()
    torch.library.opcheck(ops.adder2d.default, (x, w, b, *case.geometry, rule))
    g = torch.randn_like(ops.adder2d(x, w, b, *case.geometry, rule))
    arguments = (g.detach(), x.detach(), w.detach(), *case.geometry, rule)
    torch.library.opcheck(ops.adder2d_backward_input.default, arguments)
    torch.library.opcheck(ops.adder2d_backward_weight.default, arguments)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_gradcheck_of_the_exact_rule(case):
    if case.input[0] == 0 or case.layout == "expanded":
        case = Case("", (1, 2, 4, 4), (3, 3, 3), padding=(1, 1), bias=True)
    x, w, b = case.draw(torch.float64)
    inputs = [t.detach().requires_grad_() for t in (x, w) + (() if b is None else (b,))]

    def run(x, w, b=None):
        return ta.functional.adder2d(x, w, b, *case.geometry, grad="exact")

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_l2_rule_is_the_gradient_of_half_the_squared_distance():
    case = Case("", (2, 4, 6, 5), (6, 3, 3), stride=(2, 1), padding=(1, 1), groups=2)
    x, w, _ = case.draw(torch.float64)
    x.requires_grad_(), w.requires_grad_()
    y = ta.functional.adder2d(x, w, None, *case.geometry, grad="l2")
    g = torch.randn_like(y)
    got = torch.autograd.grad(y, (x, w), g)
    patches = torch.nn.functional.unfold(x, 3, 1, 1, (2, 1)).reshape(2, 2, 1, 18, -1)
    filters = w.reshape(1, 2, 3, 18, 1)
    half = -((patches - filters) ** 2).sum(3) / 2
    want = torch.autograd.grad(half.reshape(y.shape), (x, w), g)
    torch.testing.assert_close(got, want)


def test_backward_is_linear_in_the_gradient():
    """No normalisation inside: the defect of the original implementation."""
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    y = ta.functional.adder2d(x, w)
    g = torch.randn_like(y)
    (once,) = torch.autograd.grad(y, w, g, retain_graph=True)
    (scaled,) = torch.autograd.grad(y, w, 65536 * g)
    torch.testing.assert_close(scaled, 65536 * once)


def test_bias_gradient():
    x, w = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    b = torch.zeros(4, requires_grad=True)
    y = ta.functional.adder2d(x, w, b)
    g = torch.randn_like(y)
    y.backward(g)
    torch.testing.assert_close(b.grad, g.sum((0, 2, 3)))


def test_double_backward_is_refused():
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    w = torch.randn(2, 2, 3, 3, requires_grad=True)
    for target in (x, w):
        (gradient,) = torch.autograd.grad(
            ta.functional.adder2d(x, w).sum(), target, create_graph=True
        )
        with pytest.raises(RuntimeError, match="no double backward"):
            gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
def test_forward_mode_is_refused():
    x, w = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 3, 3)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: ta.functional.adder2d(x, w), (x,), (torch.ones_like(x),))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
def test_forward_mode_is_refused_while_compiling():
    torch.compiler.reset()
    w = torch.randn(2, 2, 3, 3)

    @torch.compile(fullgraph=False, backend="eager")
    def derivative(x):
        return torch.func.jvp(lambda x: ta.functional.adder2d(x, w), (x,), (torch.ones_like(x),))

    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        derivative(torch.randn(1, 2, 4, 4))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("rule", GRAD_RULES)
def test_compile_without_graph_breaks(rule, dynamic):
    torch.compiler.reset()
    w = torch.randn(6, 4, 3, 3, requires_grad=True)
    run = lambda x, w: ta.functional.adder2d(x, w, None, 2, 1, grad=rule).relu().sum()  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (8, 9):
        x = torch.randn(2, 4, size, size, requires_grad=True)
        want = torch.autograd.grad(run(x, w), (x, w))
        got = torch.autograd.grad(compiled(x, w), (x, w))
        torch.testing.assert_close(got, want)


def test_compile_of_every_form():
    torch.compiler.reset()
    net = torch.nn.Sequential(
        ta.nn.Adder2d(3, 8, 3, padding="same"),
        ta.nn.AdderTranspose2d(8, 4, 2, stride=2),
        torch.nn.Flatten(2),
        ta.nn.Adder1d(4, 2, 5),
        ta.nn.AdderLinear(60, 5),
    )
    x = torch.randn(2, 3, 4, 4)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))


def test_export_and_deepcopy():
    net = torch.nn.Sequential(ta.nn.Adder2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
    x = torch.randn(2, 3, 8, 8)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    other = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(other), net(other))
    torch.testing.assert_close(copy.deepcopy(net)(x), net(x))


def test_autocast_runs_in_float32():
    layer = ta.nn.Adder2d(3, 4, 3)
    x = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer(x.bfloat16().float()))


def test_meta_and_fake_tensors():
    layer = ta.nn.Adder2d(3, 4, 3, stride=2, device="meta")
    assert layer(torch.empty(2, 3, 9, 7, device="meta")).shape == (2, 4, 4, 3)
    with torch._subclasses.FakeTensorMode():
        fake = ta.functional.adder2d(torch.empty(2, 3, 9, 7), torch.empty(4, 3, 3, 3))
    assert fake.shape == (2, 4, 7, 5)


def test_stock_flop_counter():
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    w = torch.randn(6, 2, 3, 3, requires_grad=True)
    taps = 2 * 6 * 8 * 8 * 2 * 9
    with FlopCounterMode(display=False) as forward:
        y = ta.functional.adder2d(x, w, None, 1, 1, 1, 2)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == 2 * taps
    assert backward.get_total_flops() == 6 * taps


def test_flop_counter_imported_late():
    """Also where somebody looked for the module before and did not import it."""
    code = (
        "import importlib.util, sys, torch, torchadder as ta\n"
        "assert 'torch.utils.flop_counter' not in sys.modules\n"
        "assert importlib.util.find_spec('torch.utils.flop_counter')\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "with FlopCounterMode(display=False) as counter:\n"
        "    ta.functional.adder2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 1, 1))\n"
        "print(counter.get_total_flops())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == f"{2 * 3 * 16 * 2}\n", result.stderr


def test_runs_are_deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        x, w = torch.randn(4, 20, 9, 9), torch.randn(30, 20, 3, 3)
        first = [ta.functional.adder2d(x, w) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
