"""The share of zeros on each level."""

import pytest
import torch

from small_detectors import scenes, settle_, small
from torchadder import detection


class Body(torch.nn.Module):
    """Maps whose zeros can be counted by hand: the positive part of the image's first channel."""

    def forward(self, x):
        return {"c3": x[:, :1, ::8, ::8].relu(), "c5": x[:, :1, ::32, ::32].relu()}


class Neck(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, maps):
        return {"p3": maps["c3"] + self.weight, "p5": maps["c5"] * 0, "p6": maps["c5"]}


def test_zeros_are_counted_inside_the_images():
    model = small(adder="", neck_channels=8, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    model.backbone.body, model.backbone.neck = Body(), Neck()
    # 64x96 beside 64x64, which is padded by zeros to 64x96: those are not counted.
    dark, bright = torch.zeros(3, 64, 96), torch.ones(3, 64, 64)
    assert detection.feature_sparsity(model, [dark, bright]) == {
        "c3": 96 / 160,
        "c5": 6 / 10,
        "p3": 0.0,
        "p5": 1.0,
    }


@pytest.mark.parametrize("name", ["fcos", "faster_rcnn"])
def test_levels_and_mode(name):
    model = settle_(small(name, adder="BN"))
    model.backbone.body.layer1.eval()
    modes = {key: module.training for key, module in model.named_modules()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shares = detection.feature_sparsity(model, scenes()[0])
    levels = range(2 if name == "faster_rcnn" else 3, 6)
    assert list(shares) == [f"c{i}" for i in levels] + [f"p{i}" for i in levels]
    assert all(0 < shares[f"c{i}"] < 1 for i in levels)
    assert all(shares[f"p{i}"] < 0.01 for i in levels)
    assert modes == {key: module.training for key, module in model.named_modules()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_bad_input():
    with pytest.raises(TypeError, match=r"must be a detector of torchadder\.detection, got Linear"):
        detection.feature_sparsity(torch.nn.Linear(1, 1), scenes()[0])
    with pytest.raises(ValueError, match="images must hold at least one image, got none"):
        detection.feature_sparsity(small(), [])
