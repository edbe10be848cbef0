"""Backbones: maps, weights of classifiers, frozen statistics."""

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

import torchadder as ta
from small_detectors import scenes, small
from torchadder import detection
from torchadder.checkpoint import CheckpointError


def classifier(name="resnet18", conv="adder", **arguments):
    torch.manual_seed(5)
    model = ta.models.build(name, conv=conv, **arguments)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(1, 2)
    return model


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_maps(name):
    with torch.device("meta"):
        body = detection.ResNetBackbone(name, is_adder=True, grad="sign", first_level=2)
        maps = body(torch.empty(1, 3, 64, 96))
    width = 4 if name == "resnet50" else 1
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        "c2": (1, 64 * width, 16, 24),
        "c3": (1, 128 * width, 8, 12),
        "c4": (1, 256 * width, 4, 6),
        "c5": (1, 512 * width, 2, 3),
    }
    assert body.channels == {key: value.shape[1] for key, value in maps.items()}


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_of_a_classifier(tmp_path, frozen):
    net = classifier(num_classes=7, conv="conv")
    path = ta.save(net, tmp_path / "net.safetensors")
    detector = small(adder="N", backbone_weights=path, frozen_bn=frozen).eval()
    loaded = detector.loaded_backbone
    assert set(loaded.left_out) == {
        "fc.weight",
        "fc.bias",
        *(f"bn2.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")),
    }
    assert "backbone: 100 tensors of resnet18, conv from" in str(loaded)
    image = torch.rand(1, 3, 64, 64)
    net.eval()
    with torch.no_grad():
        pooled = detector.backbone.body(image)["c5"].mean((2, 3))
        torch.testing.assert_close(pooled, net.forward_features(image))
    assert "backbone_weights" not in detector.config["kwargs"]


def test_weights_with_another_head(tmp_path):
    path = ta.save(classifier(head="slac", num_classes=4), tmp_path / "net.safetensors")
    loaded = small(backbone_weights=path).loaded_backbone
    assert all(name.startswith("head.") for name in loaded.left_out)


@pytest.mark.parametrize(
    ("name", "conv", "message"),
    [
        (
            "resnet34",
            "adder",
            r"resnet34, adder\) does not fit .*: unexpected layer1.2.conv1.weight",
        ),
        ("resnet20", "adder", "missing .*layer4.0.* and 22 more"),
        ("resnet18", "conv", "layer1.0.conv1 is Conv2d instead of Adder2d, .* and 16 more"),
        ("lenet5_bn", "adder", "missing .*shape of conv1.weight"),
    ],
)
def test_weights_of_another_net(tmp_path, name, conv, message):
    path = ta.save(classifier(name, conv), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=message) as error:
        small(backbone_weights=path)
    assert "does not fit the backbone resnet18 (adder)" in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_with_the_stride_elsewhere(monkeypatch):
    with torch.device("meta"):
        other = ta.models.resnet50(conv="conv", stride_in_1x1=True)
        body = detection.ResNetBackbone("resnet50", is_adder=False, grad="sign")
    monkeypatch.setattr(ta.checkpoint, "load", lambda path: other)
    with pytest.raises(CheckpointError, match=r"stride of layer2.0.conv1 is \(2, 2\) instead of"):
        detection.load_backbone_(body, "net.safetensors")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        small(backbone_weights=tmp_path / "none.safetensors")


def test_a_failed_load_leaves_the_backbone_alone(tmp_path):
    path = ta.save(classifier(conv="conv"), tmp_path / "net.safetensors")
    body = small().backbone.body
    before = {key: value.clone() for key, value in body.state_dict().items()}
    with pytest.raises(CheckpointError):
        detection.load_backbone_(body, path)
    assert all(torch.equal(value, before[key]) for key, value in body.state_dict().items())


def test_frozen_statistics_stay_and_have_no_parameters():
    model = small(adder="N", frozen_bn=True).train()
    body = model.backbone.body
    frozen = [m for m in body.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(frozen) == 20
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in body.modules())
    assert not any("bn" in name for name, _ in body.named_parameters())
    before = {key: value.clone() for key, value in body.state_dict().items() if "bn" in key}
    sum(model(*scenes()).values()).backward()
    assert all(torch.equal(value, body.state_dict()[key]) for key, value in before.items())
    # The neck's own statistics live on.
    assert model.backbone.neck.output["p3"].norm.num_batches_tracked == 1


def test_live_statistics_move():
    model = small(adder="N").train()
    before = model.backbone.body.bn1.running_mean.clone()
    model(*scenes())
    assert not torch.equal(before, model.backbone.body.bn1.running_mean)


def test_frozen_statistics_of_an_adder_backbone_can_be_forced():
    model = small(adder="BN", frozen_bn=True, force_frozen_bn=True)
    assert isinstance(model.backbone.body.bn1, FrozenBatchNorm2d)
    assert model.config["kwargs"]["frozen_bn"]
