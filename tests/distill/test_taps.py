import pytest
import torch
from torch import nn

import torchadder as ta
from torchadder.distill import capture, check_taps, find_taps
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
