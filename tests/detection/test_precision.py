"""Boxes are computed in float32, whatever autocast does to the layers."""

import pytest
import torch

import torchadder as ta

WIDTH = 1312  # where bfloat16 knows multiples of 8 only
IMAGES = [torch.rand(3, 64, WIDTH, generator=torch.Generator().manual_seed(0))] * 2
TARGETS = [{"boxes": torch.tensor([[1001.0, 11.0, 1024.0, 35.0]]), "labels": torch.tensor([1])}] * 2


def detector(name, **options):
    torch.manual_seed(0)
    return ta.detection.build(
        name,
        num_classes=3,
        backbone="resnet18",
        backbone_width=4,
        neck_channels=16,
        min_size=64,
        max_size=1400,
        **options,
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcos", {"score_thresh": 0.0}),
        ("retinanet", {}),
        ("faster_rcnn", {"box_score_thresh": 0.0, "adder": ""}),
    ],
)
def test_boxes_under_autocast_are_float32(name, options):
    net = detector(name, **options).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = net(IMAGES[:1])[0]
    assert len(found["boxes"]) > 0
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_losses_under_autocast_are_those_of_float32(name):
    net = detector(name).train()
    plain = net(IMAGES, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(IMAGES, TARGETS)
    for part, value in plain.items():
        torch.testing.assert_close(mixed[part], value, rtol=5e-3, atol=1e-3)


def test_float64_stays():
    net = detector("fcos").double().eval()
    head = net.head(list(net.backbone(IMAGES[0][None].double()).values()))
    assert {values.dtype for values in head.values()} == {torch.float64}
