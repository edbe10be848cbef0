"""What layers of a net cannot be fine-tuned with fake integers, and that those are named."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import torchadder as ta
from torchadder.quantize import Calibration, Int8Config, QuantizationError
from torchadder.quantize.fake import FakeQuantization

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Twice(nn.Module):
    """One layer, used twice with a norm for each use, maybe under a second name."""

    def __init__(self, layer, name):
        super().__init__()
        self.layer = self.alias = layer
        self.name = name
        self.bn1 = nn.BatchNorm2d(3)
        self.bn2 = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        y = self.bn1(self.layer(x))
        y = self.bn2(getattr(self, self.name)(y)) * 2.0
        return self.fc(y.mean((2, 3)))


class Halved(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input):
        return super().forward(input * 0.5)


class Functional(nn.Module):
    """A convolution that is no layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight).mean((2, 3))


def ranges_of(net):
    return Calibration(net.eval(), [IMAGES]).lower(Int8Config())[1]


@pytest.mark.parametrize("name", ["layer", "alias"])
@pytest.mark.parametrize("layer", [nn.Conv2d, ta.nn.Adder2d])
def test_a_layer_with_several_norms_is_refused(layer, name):
    net = Twice(layer(3, 3, 3, padding=1), name)
    message = r"^(layer|alias): used in ways that are different layers in integers \(.*, .*\)"
    with pytest.raises(QuantizationError, match=message):
        FakeQuantization(net, ranges_of(net), Int8Config())
    assert not any("forward" in vars(module) for module in net.modules())


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(Halved(3, 4, 3), nn.Flatten()), "^0: a Halved cannot be fine-tuned"),
        (Functional(), "^conv2d: an operation that is no layer cannot be fine-tuned"),
    ],
    ids=["subclass", "functional"],
)
def test_unknown_layers_are_refused(net, message):
    with pytest.raises(QuantizationError, match=message):
        FakeQuantization(net, ranges_of(net), Int8Config())


def test_parametrized_layers_are_known():
    torch.manual_seed(0)
    net = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten())
    floats = net.eval()(IMAGES)
    with FakeQuantization(net, ranges_of(net), Int8Config()):
        fakes = net(IMAGES)
    assert not torch.equal(fakes, floats)
    assert (fakes - floats).abs().max() < 0.1
