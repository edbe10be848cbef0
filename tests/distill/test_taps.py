import pytest
import torch
from torch import nn

import torchadder as ta
from torchadder.distill import AT, FSP, SP, FitNet, capture, check_taps, find_stages, find_taps
from torchadder.distill.held import HeldTaps
from torchadder.nn import Adder2d, AdderLinear


def hooks_of(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_finds_the_adder_layers(adder_net, conv_net, taps):
    assert find_taps(adder_net(), conv_net()) == taps
    assert find_taps(conv_net(), adder_net()) == taps
    assert find_taps(adder_net(), adder_net()) == taps


def test_of_two_cnns_finds_what_an_adder_net_would_replace(conv_net, taps):
    assert find_taps(conv_net(), conv_net()) == taps


@pytest.mark.parametrize("name", ["lenet5_bn", "vgg_small", "resnet20", "resnet18", "resnet50"])
def test_models_of_the_package(name):
    with torch.device("meta"):
        student, teacher = (ta.models.build(name, conv=conv) for conv in ("adder", "conv"))
        names = [n for n, m in student.named_modules() if isinstance(m, Adder2d)]
        assert find_taps(student, teacher) == tuple(names)
        assert find_taps(teacher, ta.models.build(name, conv="conv")) == tuple(names)


def test_layers_that_only_one_net_has(adder_net, conv_net):
    student, teacher = adder_net(), conv_net()
    student.extra = AdderLinear(3, 3)  # no convolution: never compared
    assert find_taps(student, teacher) == ("body.0", "body.3")
    student.more = Adder2d(3, 3, 1)
    message = "of the student have no partner of their name in the teacher: more; name the layers"
    with pytest.raises(ValueError, match=message):
        find_taps(student, teacher)
    assert check_taps(student, teacher, ["body.?"]) == ("body.0", "body.3")


def test_nets_of_different_depths():
    with torch.device("meta"):
        shallow = {kind: ta.models.resnet20(conv=kind) for kind in ("adder", "conv")}
        deep = {kind: ta.models.resnet32(conv=kind) for kind in ("adder", "conv")}
    message = (
        r"layers of the {} have no partner of their name in the {}: layer1\.3\.conv1, .*, \.\.\., "
        r"layer3\.4\.conv2; name .*; the student is CifarResNet with .*, the teacher Cifar"
    )
    with pytest.raises(ValueError, match=message.format("teacher", "student")):
        find_taps(shallow["adder"], deep["conv"])
    with pytest.raises(ValueError, match=message.format("student", "teacher")):
        find_taps(deep["adder"], shallow["conv"])
    ends = ["layer?.0.conv2"]
    assert check_taps(shallow["adder"], deep["conv"], ends) == tuple(
        f"layer{stage}.0.conv2" for stage in (1, 2, 3)
    )


def test_no_pair(adder_net):
    teacher = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(
        ValueError,
        match=r"student is Net with .*body\.0 \(12, 6, 3, 3\).*teacher Sequential with 0 \(",
    ):
        find_taps(adder_net(), teacher)


def test_another_width(adder_net, conv_net):
    with pytest.raises(
        ValueError,
        match=r"body\.0 \(12, 6, 3, 3\), body\.3 \(6, 12, 1, 1\) in the student Net and "
        r"body\.0 \(16, 8, 3, 3\), body\.3 \(8, 16, 1, 1\) in the teacher",
    ):
        find_taps(adder_net(), conv_net(width=8))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["body.7"],
            r"'body\.7', which the student does not have; the student is Net .*teacher Net with",
        ),
        (["body.1"], r"'body\.1', which is a BatchNorm2d in the student"),
        (["fc"], r"'fc', which is a Linear in the student"),
        (["body.0", "body.0"], r"'body\.0' more than once"),
        ([], "taps is empty"),
    ],
)
def test_bad_names(adder_net, conv_net, names, message):
    with pytest.raises(ValueError, match=message):
        check_taps(adder_net(), conv_net(), names)


def test_name_that_the_teacher_lacks(adder_net, conv_net):
    student = adder_net()
    student.extra = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="'extra', which the teacher does not have"):
        check_taps(student, conv_net(), ["extra"])


def test_one_string_is_refused(adder_net, conv_net):
    with pytest.raises(TypeError, match="sequence of layer names"):
        check_taps(adder_net(), conv_net(), "body.0")


def test_capture_reads_what_the_layer_put_out(adder_net, taps):
    net, inputs = adder_net(), torch.randn(2, 2, 8, 8)
    with capture(net, taps, detach=False) as outputs:
        net(inputs)
    assert list(outputs) == list(taps)
    expected = net.body[0](net.bn1(net.conv1(inputs)).relu())
    torch.testing.assert_close(outputs["body.0"], expected)
    assert outputs["body.0"].requires_grad
    assert hooks_of(net) == 0


def test_capture_detaches(conv_net, taps):
    net = conv_net()
    with capture(net, taps, detach=True) as outputs:
        net(torch.randn(2, 2, 8, 8))
    assert not any(output.requires_grad for output in outputs.values())


def test_no_hook_survives_an_error(adder_net, taps):
    net = adder_net()
    with pytest.raises(RuntimeError), capture(net, taps, detach=False):
        net(torch.randn(2, 3, 8, 8))
    assert hooks_of(net) == 0


def test_layer_that_does_not_run(adder_net):
    net = adder_net()
    with (
        pytest.raises(RuntimeError, match=r"'body\.0' of Net ran 0 times"),
        capture(net, ["body.0"], detach=False),
    ):
        net.conv1(torch.randn(2, 2, 8, 8))


def test_layer_that_runs_twice():
    net = nn.Sequential(nn.Conv2d(3, 3, 1))
    with (
        pytest.raises(RuntimeError, match="'0' of Sequential ran 2 times"),
        capture(net, ["0"], detach=False),
    ):
        net(net(torch.randn(2, 3, 8, 8)))


def test_output_overwritten_in_place():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True))
    with (
        pytest.raises(RuntimeError, match=r"'0' of Sequential was overwritten in place"),
        capture(net, ["0"], detach=True),
    ):
        net(torch.randn(2, 3, 8, 8))


def test_inference_mode(adder_net, taps):
    net = adder_net().eval()
    with torch.inference_mode(), capture(net, taps, detach=True) as outputs:
        net(torch.randn(2, 2, 8, 8))
    assert set(outputs) == set(taps)


class Flat(nn.Module):
    """Convolutions and norms that are direct children, registered in an order that is given."""

    def __init__(self, order, conv=nn.Conv2d, norm=nn.BatchNorm2d, widths=(4, 6, 8), peeks=False):
        super().__init__()
        outer = nn.Conv2d, conv, conv
        for kind, number in order.split():
            i = int(number) - 1
            if kind == "c":
                layer = outer[i]((3, *widths)[i], widths[i], 3, padding=1)
            else:
                layer = norm(widths[i]) if kind == "n" else nn.ReLU()
            self.add_module({"c": "conv", "n": "bn", "r": "act"}[kind] + number, layer)
        self.fc = nn.Linear(widths[2], 5)
        self.peeks = peeks

    def forward(self, x):
        if self.peeks and x.sum().isnan():
            return x
        for number in (1, 2, 3):
            for kind in ("conv", "act", "bn"):
                layer = getattr(self, f"{kind}{number}", None)
                x = x if layer is None else layer(x)
        return self.fc(x.mean((2, 3)))


def group_norm(width):
    return nn.GroupNorm(2, width)


NETS = {
    "layers first": {"order": "c1 c2 c3 n1 n2 n3"},
    "layers first, one width": {"order": "c1 c2 c3 n1 n2 n3", "widths": (4, 4, 4)},
    "norms first": {"order": "n1 n2 n3 c1 c2 c3"},
    "norms backwards": {"order": "c1 c2 c3 n3 n2 n1"},
    "in turn": {"order": "c1 n1 c2 n2 c3 n3"},
    "activation before the norm": {"order": "c1 r1 n1 c2 r2 n2 c3 r3 n3"},
    "group norm": {"order": "c1 c2 c3 n1 n2 n3", "norm": group_norm},
    "instance norm, backwards": {"order": "n3 n2 n1 c1 c2 c3", "norm": nn.InstanceNorm2d},
    "not to be followed": {"order": "c1 c2 c3 n1 n2 n3", "peeks": True},
    "not to be followed, one width": {
        "order": "c1 c2 c3 n1 n2 n3",
        "widths": (4, 4, 4),
        "peeks": True,
    },
    "not to be followed, in turn": {"order": "c1 c2 r2 n2 c3 r3 n3", "peeks": True},
}


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_stages_of_flat_nets(options):
    nets = [Flat(conv=conv, **options) for conv in (Adder2d, nn.Conv2d)]
    assert find_stages(*nets) == ("bn2", "bn3")
    for method in (AT, SP, FSP, FitNet):
        assert method(*nets).taps == ("bn2", "bn3")
    assert find_stages(torch.compile(nets[0], backend="eager"), nets[1]) == ("bn2", "bn3")


@pytest.mark.parametrize("peeks", [False, True])
def test_a_norm_of_another_layer_is_not_taken(peeks):
    order = "c1 n1 c2 c3 n3"
    nets = [Flat(order, conv, peeks=peeks) for conv in (Adder2d, nn.Conv2d)]
    assert find_stages(*nets) == ("conv2", "bn3")
    nets = [Flat("c1 n1 c2 c3", conv, peeks=peeks) for conv in (Adder2d, nn.Conv2d)]
    assert find_stages(*nets) == ("conv2", "conv3")


def test_norms_whose_layers_are_not_known_are_not_taken():
    order = "c1 c2 c3 n2 n3"
    nets = [Flat(order, c, widths=(4, 4, 4), peeks=True) for c in (Adder2d, nn.Conv2d)]
    assert find_stages(*nets) == ("conv2", "conv3")
    nets = [Flat(order, c, widths=(4, 4, 4)) for c in (Adder2d, nn.Conv2d)]
    assert find_stages(*nets) == ("bn2", "bn3")


def test_a_norm_inside_another_part_is_not_taken():
    def net(conv):
        head = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(nn.Conv2d(3, 4, 1), conv(4, 4, 1), nn.ReLU(), head, nn.Linear(4, 2))

    assert find_stages(net(Adder2d), net(nn.Conv2d)) == ("1",)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 2)

    def forward(self, x):
        return self.up(output_size=None, input=x)


def test_readings_of_an_input_that_is_given_by_keyword():
    net, inputs = Keywords(), torch.randn(2, 2, 4, 4)
    readings = {"up": lambda layer, x: 2 * x}
    with capture(net, ["up"], detach=True, readings=readings) as outputs:
        net(inputs)
    assert torch.equal(outputs["up"], 2 * inputs)
    held = HeldTaps(net, ["up"], detach=True, readings=readings)
    _, outputs = held.run(inputs)
    assert torch.equal(outputs["up"], 2 * inputs)
    held.remove()
    assert hooks_of(net) == 0
