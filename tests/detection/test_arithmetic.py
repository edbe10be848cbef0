"""Counting a detector by its parts."""

import pytest
import torch

import torchadder as ta
from small_detectors import small
from torchadder import detection


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_parts_add_up_to_the_whole(name):
    model = small(name, adder="BN").eval()
    whole = ta.energy.count(model, [(3, 64, 64)])
    parts = detection.count_operations(model, 64, 64)
    assert (parts.num_mul, parts.num_add) == (whole.num_mul, whole.num_add)
    assert parts.energy_pj == pytest.approx(whole.energy_pj)
    assert parts.weight_bytes == whole.weight_bytes
    assert {(r.name, r.op, r.num_mul, r.num_add) for r in parts.layers} == {
        (r.name, r.op, r.num_mul, r.num_add) for r in whole.layers
    }
    assert parts.model == name


@pytest.mark.parametrize("name", detection.DETECTORS)
def test_levels_have_the_shapes_of_the_neck(name):
    with torch.device("meta"):
        model = small(name, adder="")
        maps = model.backbone(torch.empty(1, 3, 100, 75))
    rows = {r.name: r for r in detection.count_operations(model, 100, 75, num_proposals=7).layers}
    positions = sum(value.shape[2] * value.shape[3] for value in maps.values())
    tower = "rpn.head.conv.0.0" if name == "faster_rcnn" else "head.regression_head.conv.0.0"
    assert rows[tower].num_mul == 9 * 16 * 16 * positions
    if name == "faster_rcnn":
        assert rows["roi_heads.box_head.fc6"].num_mul == 7 * 16 * 49 * 1024
        assert rows["roi_heads.box_predictor.cls_score"].num_mul == 7 * 1024 * 4


def test_sizes_below_one():
    for sizes in ((0, 64), (64, -1)):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            detection.count_operations(small(), *sizes)
