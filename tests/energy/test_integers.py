"""Requantisation and memory traffic, against numbers worked out by hand."""

import pytest
import torch
from torch import nn

from torchadder import cli, models, quantize_, save
from torchadder.energy import MEMORIES, CostTable, MemoryCost, OpEnergy, count
from torchadder.nn import Adder2d
from torchadder.quantize import Int8Config

# 4 x 4 images, 3x3 layers with padding, so 16 pixels a channel everywhere.
PIXELS = 16
ADDER_TAPS = 8 * PIXELS * 4 * 9  # 4 -> 8 channels
CONV_TAPS = 4 * PIXELS * 2 * 9  # 2 -> 4 channels
LINEAR_TAPS = 3 * 8  # the mean of 8 channels to 3 classes


class Small(nn.Module):
    """A convolution, an adder layer with a residual, a mean and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.adder = Adder2d(4, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm1(self.conv(x)).relu()
        x = (self.norm2(self.adder(x)) + torch.cat([x, x], 1)).relu()
        return self.fc(x.mean((2, 3)))


class Plain(nn.Module):
    """The same without the residual, which integer nets cannot join."""

    def __init__(self):
        super().__init__()
        self.small = Small()

    def forward(self, x):
        net = self.small
        x = net.norm1(net.conv(x)).relu()
        x = net.norm2(net.adder(x)).relu()
        return net.fc(x.mean((2, 3)))


IMAGES = (1, 2, 4, 4)
WEIGHTS = 4 * 2 * 9 + 8 * 4 * 9 + 3 * 8


def rows(report):
    return {(layer.name, layer.op): layer for layer in report.layers}


def test_a_float_net_as_if_in_int8():
    report = count(Small(), IMAGES, dtype=torch.int8, include_requantisation=True)
    found = rows(report)
    assert found["conv", "conv2d"].energy_pj == pytest.approx(CONV_TAPS * (0.03 + 0.2))
    assert found["adder", "adder2d"].energy_pj == pytest.approx(2 * ADDER_TAPS * 0.03)
    conv = found["conv", "requantise"]
    assert (conv.num_mul, conv.num_add, conv.dtype) == (4 * PIXELS, 3 * 4 * PIXELS, "int32")
    assert conv.energy_pj == pytest.approx(64 * 3.1 + 192 * 0.1)
    assert found["adder", "requantise"].num_mul == 8 * PIXELS
    # The net itself adds a residual to 8 channels and takes the mean of 8.
    own = found["", "requantise"]
    assert (own.num_mul, own.num_add) == (8 * PIXELS + 8, 8 * PIXELS + 3 * 8)
    assert found["fc", "requantise"].num_mul == 3
    plain = count(Small(), IMAGES, dtype=torch.int8)
    assert not any(layer.op == "requantise" for layer in plain.layers)
    assert report.energy_pj == pytest.approx(plain.energy_pj + report.energy_pj_of("requantise"))
    assert report.energy_pj_of("requantise") == pytest.approx(
        sum(3.1 * layer.num_mul + 0.1 * layer.num_add for layer in report.layers
            if layer.op == "requantise")
    )  # fmt: skip


def test_memory_traffic():
    memory = MemoryCost("mine", 2.0)
    report = count(Small(), IMAGES, dtype=torch.int8, memory=memory)
    found = rows(report)
    # Images and filters are read once, the result is written once.
    assert found["conv", "memory"].num_bytes == 2 * PIXELS + 4 * 2 * 9 + 4 * PIXELS
    assert found["adder", "memory"].num_bytes == 4 * PIXELS + 8 * 4 * 9 + 8 * PIXELS
    assert found["fc", "memory"].num_bytes == 8 + 3 * 8 + 3
    # The residual is read once more; the mean reads 8 channels and writes 8 numbers.
    assert found["", "memory"].num_bytes == 8 * PIXELS + 8 * PIXELS + 8
    assert report.energy_pj_of("memory") == pytest.approx(2.0 * report.num_bytes)
    assert report.memory == "mine"
    assert "memory: mine" in str(report)
    in_float = count(Small(), IMAGES, memory=memory)
    assert in_float.num_bytes == 4 * report.num_bytes
    assert count(Small(), IMAGES).num_bytes == 0


def test_memories_are_those_of_the_figure():
    """Energy of 64 bits: 10, 20 and 100 pJ, and 1.3 nJ."""
    assert {name: memory.pj_per_byte * 8 for name, memory in MEMORIES.items()} == {
        "sram8k": 10, "sram32k": 20, "sram1m": 100, "dram": 1300,
    }  # fmt: skip


def test_a_net_of_mixed_formats():
    formats = {"": torch.int8, "conv": torch.float32, "fc": torch.float32}
    report = count(Small(), IMAGES, dtype=formats, include_requantisation=True)
    found = rows(report)
    assert found["conv", "conv2d"].energy_pj == pytest.approx(CONV_TAPS * 4.6)
    assert found["adder", "adder2d"].energy_pj == pytest.approx(2 * ADDER_TAPS * 0.03)
    assert ("conv", "requantise") not in found
    assert ("adder", "requantise") in found
    assert found["conv", "conv2d"].weight_bytes == 4 * 4 * 2 * 9
    assert found["adder", "adder2d"].weight_bytes == 8 * 4 * 9


def quantised(net, shape, config=None):
    """The integer net of one whose batch norms have seen the images that calibrate it."""
    torch.manual_seed(0)
    images = torch.randn(8, *shape)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    net.train()(images)
    quantize_(net.eval(), [images], config)
    return net


@pytest.fixture
def integer_net():
    return quantised(Plain(), IMAGES[1:])


def test_an_integer_net(integer_net):
    report = count(
        integer_net, (2, 2, 4, 4), include_requantisation=True, memory=MemoryCost("m", 1.0)
    )
    found = rows(report)
    adder = found["small.adder", "adder2d"]
    assert (adder.num_mul, adder.num_add, adder.dtype) == (0, 2 * 2 * ADDER_TAPS, "uint8")
    assert adder.energy_pj == pytest.approx(4 * ADDER_TAPS * 0.03)
    assert found["small.conv", "conv2d"].num_mul == 2 * CONV_TAPS
    assert found["small.fc", "conv2d"].num_mul == 2 * LINEAR_TAPS
    assert found["small.adder", "requantise"].num_mul == 2 * 8 * PIXELS
    assert found["small.adder", "memory"].num_bytes == 2 * 12 * PIXELS + 8 * 4 * 9
    # Logits are 4 bytes.
    assert found["small.fc", "memory"].num_bytes == 2 * 8 + 3 * 8 + 2 * 3 * 4
    assert report.weight_bytes == WEIGHTS
    # As if in int8, the float net does the same arithmetic.
    twin = count(Plain(), (2, 2, 4, 4), dtype=torch.int8)
    plain = count(integer_net, (2, 2, 4, 4))
    assert (plain.num_mul, plain.num_add) == (twin.num_mul, twin.num_add)
    assert plain.energy_pj == pytest.approx(twin.energy_pj)
    whole = count(Plain(), (2, 2, 4, 4), dtype=torch.int8, include_requantisation=True)
    assert report.energy_pj_of("requantise") == pytest.approx(whole.energy_pj_of("requantise"))
    pooled = count(integer_net, (2, 2, 4, 4), include_elementwise=True)
    assert pooled.num_add == plain.num_add + 2 * 8 * (PIXELS - 1)


def test_an_integer_net_with_ends_in_float():
    net = quantised(Plain(), IMAGES[1:], Int8Config(first="float", last="float"))
    found = rows(count(net, IMAGES))
    assert found["small.conv", "conv2d"].dtype == "float32"
    assert found["small.conv", "conv2d"].energy_pj == pytest.approx(CONV_TAPS * 4.6)
    assert found["small.adder", "adder2d"].dtype == "uint8"


def test_costs_can_be_replaced(integer_net):
    costs = CostTable(name="chip", uint8=OpEnergy(0.01, 0.1), int32=OpEnergy(0.05, 1.0))
    report = count(integer_net, IMAGES, costs=costs, include_requantisation=True)
    found = rows(report)
    assert found["small.adder", "adder2d"].energy_pj == pytest.approx(2 * ADDER_TAPS * 0.01)
    assert found["small.conv", "requantise"].energy_pj == pytest.approx(64 * 1.0 + 192 * 0.05)


def test_what_is_refused(integer_net):
    with pytest.raises(ValueError, match="nothing here is int8"):
        count(Small(), IMAGES, include_requantisation=True)
    with pytest.raises(ValueError, match="pj_per_byte must be an energy of at least 0"):
        MemoryCost("m", -1.0)
    with pytest.raises(ValueError, match="one batch of images"):
        count(integer_net, IMAGES, IMAGES)
    with pytest.raises(ValueError, match=r"images of 4x4 only, got 8x4"):
        count(integer_net, (1, 2, 8, 4))
    with pytest.raises(ValueError, match="images of 2 channels, got 3"):
        count(integer_net, (1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"images \(N, C, H, W\), got \(2, 4, 4\)"):
        count(integer_net, (2, 4, 4))


def test_command(capsys, tmp_path):
    options = ["--int8", "--memory", "sram1m", "--conv", "adder"]
    assert cli.main(["energy", "--model", "resnet20", *options]) == 0
    out = capsys.readouterr().out
    assert "of it requantise" in out
    assert "of it memory" in out
    assert "1 MB SRAM" in out
    net = models.build("lenet5_bn", conv="adder")
    save(quantised(net, net.image_shape), tmp_path / "int8.safetensors")
    assert cli.main(["energy", "--model", str(tmp_path / "int8.safetensors")]) == 0
    # 416,520 taps, 118,440 of them products: see tests/energy/test_command.py.
    assert "118.44K" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "tape"], "memory must be one of sram8k, sram32k, sram1m, dram, got 'tape'"),
        (["--int8", "--dtype", "float32"], "int8 goes with no other dtype, got 'float32'"),
        (["--requantisation"], "nothing here is int8"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert cli.main(["energy", "--model", "resnet20", *arguments]) == 2
    assert message in capsys.readouterr().err
