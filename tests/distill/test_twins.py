"""The kernel of the other kind: outputs of the twin, and the same kernel on both sides."""

import pytest
import torch
from torch import nn

from torchadder import functional as AF
from torchadder.distill import (
    PKKD,
    GaussianKernel,
    LaplacianKernel,
    exponential_kernel,
    kernel_for,
    twin_output,
)
from torchadder.nn import Adder1d, Adder2d

GEOMETRY = {"stride": 2, "padding": 1, "groups": 2, "bias": True}


def test_twin_of_a_convolution_is_an_adder_layer():
    layer, inputs = nn.Conv2d(4, 6, 3, **GEOMETRY), torch.randn(2, 4, 7, 7)
    want = AF.adder2d(inputs, layer.weight, stride=2, padding=1, groups=2)
    torch.testing.assert_close(twin_output(layer, inputs), want)


def test_twin_of_an_adder_layer_is_a_convolution():
    layer, inputs = Adder2d(4, 6, 3, **GEOMETRY), torch.randn(2, 4, 7, 7)
    want = nn.functional.conv2d(inputs, layer.weight, stride=2, padding=1, groups=2)
    torch.testing.assert_close(twin_output(layer, inputs), want)


def test_one_dimension():
    inputs = torch.randn(2, 4, 9)
    for layer, twin in ((nn.Conv1d(4, 6, 3), AF.adder1d), (Adder1d(4, 6, 3), nn.functional.conv1d)):
        torch.testing.assert_close(twin_output(layer, inputs), twin(inputs, layer.weight))


def test_laplacian_kernel_of_a_convolution_by_hand():
    # |1 - 2| + |3 - 0| = 4 and sigma = 2: exp(-4 / 8), as for the adder layer of these weights.
    layer = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, 0.0]).view(1, 2, 1, 1))
    output = twin_output(layer, torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
    assert exponential_kernel(output, 2.0).item() == pytest.approx(0.6065307, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "student", "teacher"),
    [
        ("paper", LaplacianKernel, GaussianKernel),
        (True, LaplacianKernel, GaussianKernel),
        ("gaussian", GaussianKernel, GaussianKernel),
        ("laplacian", LaplacianKernel, LaplacianKernel),
    ],
)
def test_kinds(adder_net, conv_net, taps, kind, student, teacher):
    pkkd = PKKD(adder_net(), conv_net(), kernel=kind)
    for alignment in pkkd.alignments.values():
        assert type(alignment.student_kernel) is student
        assert type(alignment.teacher_kernel) is teacher
    assert set(pkkd.student_readings) == (set(taps) if student is GaussianKernel else set())
    assert set(pkkd.teacher_readings) == (set(taps) if teacher is LaplacianKernel else set())
    inputs = torch.randn(8, 2, 8, 8)
    read = pkkd.run_student(inputs).taps
    layer, before = pkkd.student.body[0], pkkd.student.bn1(pkkd.student.conv1(inputs)).relu()
    want = twin_output(layer, before) if kind == "gaussian" else layer(before)
    torch.testing.assert_close(read["body.0"], want)


@pytest.mark.parametrize("kind", ["gaussian", "laplacian"])
@pytest.mark.parametrize("kinds", [("adder", "conv"), ("conv", "adder"), ("conv", "conv")])
def test_student_loss_leaves_the_teacher_alone(adder_net, conv_net, kind, kinds):
    nets = [{"adder": adder_net, "conv": conv_net}[name]() for name in kinds]
    pkkd = PKKD(*nets, kernel=kind)
    pkkd(torch.randn(8, 2, 8, 8), torch.arange(8) % 4).loss.backward()
    assert all(p.grad is None for p in pkkd.teacher.parameters())
    assert all(torch.isfinite(p.grad).all() for p in pkkd.student.parameters())
    assert all(p.grad is not None for p in pkkd.own_parameters())


def test_no_kernel(adder_net, conv_net):
    for kind in ("none", False):
        assert PKKD(adder_net(), conv_net(), kernel=kind).sigmas() == {}


def test_unknown_kinds(adder_net, conv_net):
    with pytest.raises(ValueError, match=r"kernel must be one of paper, .*, got 'sobolev'"):
        PKKD(adder_net(), conv_net(), kernel="sobolev")
    with pytest.raises(ValueError, match=r"kind must be one of paper, .*, got 'none'"):
        kernel_for(nn.Conv2d(1, 1, 1), kind="none")


def test_layers_without_a_twin(adder_net, conv_net):
    teacher = conv_net()
    teacher.body[0] = nn.Conv2d(6, 12, 3, stride=2, padding=1, padding_mode="reflect")
    with pytest.raises(ValueError, match=r"'body\.0'.*pads with a number of zeros"):
        PKKD(adder_net(), teacher, kernel="laplacian")
    PKKD(adder_net(), teacher)
