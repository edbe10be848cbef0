"""The lp layer, the exponent of whole nets, its schedule, and what torch.library promises."""

import copy
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import torchadder as ta
from cases import CASES
from torchadder.lp import ExponentSchedule, LpAdder2d, finish_, set_exponent_
from torchadder.nn import Adder2d

ops = torch.ops.torchadder
SOME = {"2 groups", "batch 0", "channels_last"}


# The operator as torch sees it --------------------------------------------------------------------


# torch's own checker reads .grad of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("p", "clip"), [(1.0, True), (1.5, False), (1.5, True), (2.0, False), (2.0, True)]
)
@pytest.mark.parametrize("case", [case for case in CASES if case.name in SOME], ids=str)
def test_opcheck(case, p, clip):
    x, w, b = case.draw()
    x.requires_grad_(), w.requires_grad_()
    window = (*case.geometry, p, clip)
    torch.library.opcheck(ops.adder2d_lp.default, (x, w, b, *window))
    g = torch.randn_like(ops.adder2d_lp(x, w, b, *window))
    arguments = (g.detach(), x.detach(), w.detach(), *window)
    torch.library.opcheck(ops.adder2d_lp_backward_input.default, arguments)
    torch.library.opcheck(ops.adder2d_lp_backward_weight.default, arguments)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_gradients_of_half_a_channels_last_image(p, clip):
    x = torch.randn(2, 4, 6, 12).contiguous(memory_format=torch.channels_last)[..., ::2]
    w, g = torch.randn(6, 4, 3, 3), torch.randn(2, 6, 4, 4)
    arguments = (g, x, w, [1, 1], [0, 0], [1, 1], 1, p, clip)
    torch.library.opcheck(ops.adder2d_lp_backward_input.default, arguments)


@pytest.mark.parametrize("p", [1.0, 1.125, 1.5, 2.0])
def test_gradcheck(p):
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def run(x, w, b):
        return ta.lp.adder2d(x, w, b, (2, 1), 1, groups=2, p=p)

    assert torch.autograd.gradcheck(run, (x, w, b), fast_mode=True)


def test_compile_autocast_meta_and_flops():
    torch.compiler.reset()
    layer = LpAdder2d(4, 6, 3, padding=1, bias=False, p=1.5)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.float32
    assert layer.to("meta")(x.to("meta")).shape == (2, 6, 8, 8)
    taps, w = 2 * 6 * 8 * 8 * 36, torch.randn(6, 4, 3, 3, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = ta.lp.adder2d(x, w, padding=1, p=1.5)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == 3 * taps
    assert backward.get_total_flops() == 2 * 4 * taps


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
def test_what_has_no_derivative_is_refused():
    x, w = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 3, 3)
    (gradient,) = torch.autograd.grad(ta.lp.adder2d(x, w, p=1.5).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="no forward-mode"):
        torch.func.jvp(lambda x: ta.lp.adder2d(x, w, p=1.5), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("p", [0.99, 2.01, float("nan")])
def test_exponents_out_of_range(p):
    with pytest.raises(ValueError, match=r"p must be within 1 \.\. 2, got"):
        ta.lp.adder2d(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1), p=p)
    with pytest.raises(ValueError, match=r"p must be within 1 \.\. 2, got"):
        LpAdder2d(1, 1, 1, p=p)
    with pytest.raises(ValueError, match=r"p must be within 1 \.\. 2, got"):
        set_exponent_(ta.models.lenet5_bn(), p)
    with pytest.raises(TypeError, match="p must be a number, got '2'"):
        LpAdder2d(1, 1, 1, p="2")


# The layer ----------------------------------------------------------------------------------------


def test_layer_at_one_is_the_adder_layer_gradients_included():
    plain = Adder2d(3, 8, 3, padding="same", padding_mode="circular", stride=1)
    layer = LpAdder2d(3, 8, 3, padding="same", padding_mode="circular", stride=1, p=1.0)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(layer(x), plain(x))
    for net in (plain, layer):
        net(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert not isinstance(layer, Adder2d)
    assert isinstance(layer, ta.nn.AdderModule)
    assert repr(layer).endswith("grad=clip, p=1, clip=False)")


def test_layer_computes_its_exponent():
    layer = LpAdder2d(3, 4, 2, stride=2, p=1.5)
    x = torch.randn(2, 3, 4, 4)
    patches = torch.nn.functional.unfold(x, 2, stride=2).transpose(1, 2).unsqueeze(2)
    distance = (patches - layer.weight.flatten(1)).abs().pow(1.5).sum(3)
    want = (layer.bias - distance).transpose(1, 2).reshape(2, 4, 2, 2)
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer(x[0]), want[0])


# Whole nets ---------------------------------------------------------------------------------------


def test_set_exponent_keeps_objects_and_finish_restores_the_net():
    net = ta.models.resnet20(num_classes=10, conv="adder")
    before = copy.deepcopy(net.config)
    types = {name: type(module) for name, module in net.named_modules()}
    parameters = [id(parameter) for parameter in net.parameters()]
    calls = []
    net.layer1[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    assert set_exponent_(net, 1.5, clip=True) == 20
    layers = [module for module in net.modules() if isinstance(module, LpAdder2d)]
    assert len(layers) == 20
    assert {(layer.p, layer.clip) for layer in layers} == {(1.5, True)}
    assert net.config["kwargs"]["conv"] == {"type": "adder_lp", "p": 1.5, "clip": True}
    assert json.loads(json.dumps(net.config)) == net.config
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert calls == [1]
    assert finish_(net) == 20
    assert {name: type(module) for name, module in net.named_modules()} == types
    assert not any(hasattr(module, "p") for module in net.modules() if type(module) is Adder2d)
    assert [id(parameter) for parameter in net.parameters()] == parameters
    assert net.config == before


def test_config_keeps_the_other_arguments_of_the_layer():
    net = ta.models.lenet5_bn(conv={"type": "adder", "grad": "sign"}, head="adder")
    assert set_exponent_(net, 1.25) == 4
    kwargs = net.config["kwargs"]
    assert kwargs["conv"] == {"type": "adder_lp", "grad": "sign", "p": 1.25, "clip": False}
    assert kwargs["head"] == {"type": "adder_lp", "p": 1.25, "clip": False}
    finish_(net)
    assert net.config["kwargs"]["conv"] == {"type": "adder", "grad": "sign"}
    assert net.config["kwargs"]["head"] == "adder"


def test_checkpoints_know_the_exponent_and_are_plain_at_one(tmp_path):
    net = ta.models.lenet5_bn().eval()
    images = torch.randn(2, 1, 28, 28)
    set_exponent_(net, 1.5)
    between = ta.load(ta.save(net, tmp_path / "between.safetensors"))
    assert between.conv2.p == 1.5
    assert torch.equal(between(images), net(images))
    with pytest.raises(ta.checkpoint.CheckpointError, match="type of conv2 is Adder2d, saved LpA"):
        ta.checkpoint.load_into(ta.models.lenet5_bn(), tmp_path / "between.safetensors")
    other = ta.models.lenet5_bn()
    set_exponent_(other, 1.25)
    with pytest.raises(ta.checkpoint.CheckpointError, match=r"p of conv2 is 1.25, saved 1.5"):
        ta.checkpoint.load_into(other, tmp_path / "between.safetensors")
    finish_(net)
    path = ta.save(net, tmp_path / "plain.safetensors")
    assert ta.checkpoint.read_info(path).config["kwargs"]["conv"] == "adder"
    plain = ta.load(path)
    assert type(plain.conv2) is Adder2d
    assert torch.equal(plain(images), net(images))


def test_nets_without_an_exponent_are_refused_and_left_alone():
    with pytest.raises(ValueError, match="LeNet5BN has no Adder2d layers"):
        set_exponent_(ta.models.lenet5_bn(conv="conv"), 1.5)
    net = torch.nn.Sequential(Adder2d(1, 1, 1), torch.nn.Flatten(), ta.nn.AdderLinear(4, 2))
    with pytest.raises(ValueError, match="layer '2' is a AdderLinear: only Adder2d"):
        set_exponent_(net, 1.5)
    assert type(net[0]) is Adder2d


def test_adaptive_rate_and_energy_go_on():
    net = ta.models.lenet5_bn()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ta.optim.AdaptiveLR(optimizer, net)
    set_exponent_(net, 1.5)
    net(torch.randn(4, 1, 28, 28)).square().sum().backward()
    optimizer.step()
    rms = net.conv2.weight.grad.square().mean().sqrt()
    torch.testing.assert_close(rms, torch.tensor(0.2))
    plain = ta.energy.count(ta.models.lenet5_bn(), torch.zeros(1, 1, 28, 28))
    between = ta.energy.count(net, torch.zeros(1, 1, 28, 28))
    assert between.num_add == plain.num_add
    assert between.num_mul - plain.num_mul == 16 * 100 * 150 + 120 * 400 + 84 * 120


# The schedule -------------------------------------------------------------------------------------


def exponents(schedule, num_epochs):
    return [schedule.exponent(epoch, num_epochs) for epoch in range(num_epochs)]


def test_schedules():
    assert exponents(ExponentSchedule(share=0.5), 4) == [2, 1.5, 1, 1]
    assert exponents(ExponentSchedule(start=1.5, share=1.0), 3) == [1.5, 1.25, 1]
    assert exponents(ExponentSchedule("step", num_steps=2, share=0.8), 5) == [2, 2, 1.5, 1.5, 1]
    assert exponents(ExponentSchedule("step", num_steps=3, share=0.99), 2) == [2, 1]
    assert exponents(ExponentSchedule(), 1) == [1]
    assert exponents(ExponentSchedule(share=0.1), 4) == [2, 1, 1, 1]
    for schedule in (ExponentSchedule(), ExponentSchedule("step")):
        falling = exponents(schedule, 400)
        assert falling == sorted(falling, reverse=True)
        assert falling[:2] != falling[298:300]
        assert falling[299] > 1
        assert falling[300:] == [1] * 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "cosine"}, "shape must be one of linear, step, got 'cosine'"),
        ({"start": 1}, "start must be above 1"),
        ({"start": 3}, r"p must be within 1 \.\. 2, got 3"),
        ({"share": 0}, r"share must lie in \(0, 1\], got 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ],
)
def test_bad_schedules(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExponentSchedule(**arguments)
