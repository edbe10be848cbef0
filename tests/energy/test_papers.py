"""The counts that the papers print, and by how much they do not come out."""

import pytest
import torch
from torch import nn

from torchadder import models
from torchadder.energy import count
from torchadder.energy.papers import PRINTED, deviation

COUNTS = [
    # name, arguments, layers, multiplications, additions
    ("lenet5_bn", {}, "conv", 416_520, 416_520),
    ("resnet20", {}, "conv", 40_813_184, 40_813_184),
    ("resnet20", {}, "adder", 443_008, 81_183_360),
    ("resnet32", {}, "conv", 69_124_736, 69_124_736),
    ("resnet32", {}, "adder", 443_008, 137_806_464),
    ("vgg_small", {}, "conv", 607_600_640, 607_600_640),
    ("resnet18", {}, "conv", 1_814_073_344, 1_814_073_344),
    ("resnet50", {"stride_in_1x1": True}, "conv", 3_857_973_248, 3_857_973_248),
    ("resnet50", {"stride_in_1x1": True}, "adder", 120_061_952, 7_595_884_544),
    ("resnet50", {}, "conv", 4_089_184_256, 4_089_184_256),
    ("resnet50", {}, "adder", 120_061_952, 8_058_306_560),
]


@pytest.mark.parametrize(("name", "arguments", "conv", "num_mul", "num_add"), COUNTS)
def test_counts(name, arguments, conv, num_mul, num_add):
    with torch.device("meta"):
        model = models.build(name, conv=conv, **arguments)
    report = count(model, (1, *model.image_shape))
    assert (report.num_mul, report.num_add) == (num_mul, num_add)
    assert report.device == "meta"


def conv_taps(model, shape):
    """Taps of the convolutions and linear layers by hooks: independent of the dispatch mode."""
    taps = 0

    def hook(module, args, out):
        nonlocal taps
        taps += out.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(hook)
    model.eval()(torch.empty(shape, device="meta"))
    return taps


@pytest.mark.parametrize("name", models.MODELS)
def test_counts_agree_with_hooks(name):
    with torch.device("meta"):
        model = models.build(name, conv="conv")
    shape = (1, *model.image_shape)
    report = count(model, shape)
    assert report.num_mul == report.num_add == conv_taps(model, shape)


def test_fcos():
    """214.7G and 987.7 mJ, arXiv 2112.13608, table 5."""
    from torchvision.models import detection

    model = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=80)
    report = count(model, [(3, 800, 1344)])
    assert report.num_mul == report.num_add == 214_730_342_400
    assert deviation("214.7G", report.num_mul) == 0
    assert report.energy_mj == pytest.approx(987.7, abs=0.1)
    assert report.device == "cpu"
    assert model.training
    head = next(layer for layer in report.layers if layer.name == "head.regression_head.bbox_reg")
    assert head.calls == 5
    # Running the detector must not have left meta tensors in its cached anchors.
    assert all(a.device.type == "cpu" for a in model.anchor_generator.cell_anchors)


@pytest.mark.parametrize(
    ("printed", "counted", "expected"),
    [
        ("69.12M", 69_124_736, 0),
        ("0.1G", 118_525_952, 0),
        ("435K", 416_520, -0.0425),
        ("41.17M", 40_813_184, -0.0087),
        ("0.45M", 443_008, -0.0155),
        ("12", 12, 0),
    ],
)
def test_deviation(printed, counted, expected):
    assert deviation(printed, counted) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("row", [r for r in PRINTED if "." not in r.model], ids=str)
def test_printed_figures_come_out_or_are_explained(row):
    with torch.device("meta"):
        model = models.build(row.model, conv=row.conv, **row.arguments)
    report = count(model, row.input_shape)
    agrees = not deviation(row.num_add, report.num_add) and (
        float(row.num_mul[:-1]) > 0 and not deviation(row.num_mul, report.num_mul)
    )
    assert agrees != bool(row.remark)
