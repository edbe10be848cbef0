"""Detectors as a whole: that they train, detect, and are what their arguments say."""

import itertools
import json
import re

import pytest
import torch
from torchvision.models import detection as torchvision_detection

import torchadder as ta
from small_detectors import scenes, settle_, small
from torchadder import detection
from torchadder.nn import AdderModule

NAMES = ("fcos", "retinanet", "faster_rcnn")
LOSSES = {
    "fcos": {"classification", "bbox_regression", "bbox_ctrness"},
    "retinanet": {"classification", "bbox_regression"},
    "faster_rcnn": {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"},
}


def adder_layers(model):
    return {name for name, module in model.named_modules() if isinstance(module, AdderModule)}


@pytest.mark.parametrize("adder", ["", "BNH"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_parameter(name, adder):
    model = small(name, adder=adder)
    losses = model.train()(*scenes())
    assert set(losses) == LOSSES[name]
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_detections_have_boxes_inside_the_image_and_labels_from_zero(name):
    threshold = "box_score_thresh" if name == "faster_rcnn" else "score_thresh"
    model = settle_(small(name, **{threshold: 0.0})).eval()
    images, _ = scenes()
    with torch.no_grad():
        found = model(images)
    assert isinstance(model, getattr(torchvision_detection, type(model).__name__))
    assert len(found) == 2
    for image, entry in zip(images, found, strict=True):
        assert len(entry["boxes"])
        assert set(entry["labels"].tolist()) <= {0, 1, 2}
        assert entry["boxes"].min() >= 0
        assert (entry["boxes"][:, 2] <= image.shape[2]).all()
        assert (entry["boxes"][:, 3] <= image.shape[1]).all()


def test_faster_rcnn_counts_labels_from_zero_and_leaves_the_targets_alone(monkeypatch):
    seen = {}
    model = small("faster_rcnn", adder="")

    def roi_loss(self, features, proposals, shapes, targets=None):
        seen["labels"] = [t["labels"].tolist() for t in targets]
        return [], {}

    monkeypatch.setattr(type(model.roi_heads), "forward", roi_loss)
    images, targets = scenes()
    model.train()(images, targets)
    assert seen["labels"] == [[1, 3], [1, 3]]
    assert targets[0]["labels"].tolist() == [0, 2]
    assert model.roi_heads.box_predictor.cls_score.out_features == 4


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("adder", "neck"), [("", "fpn"), ("BN", "pafpn"), ("BNH", "r_pafpn")])
def test_every_side_of_a_box_gets_a_gradient_from_the_start(adder, neck, seed):
    torch.manual_seed(seed)
    model = small(adder=adder, neck=neck).train()
    head = model.head.regression_head
    for features in model.backbone(torch.rand(2, 3, 96, 96)).values():
        assert head.bbox_reg(head.conv(features)).min() > 0


def test_an_image_without_boxes_is_legal():
    images, targets = scenes()
    targets[0] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = small().train()(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_letters_choose_the_parts():
    for letters, prefixes in (
        ("", ()),
        ("B", ("backbone.body.layer",)),
        ("N", ("backbone.neck.",)),
        ("H", ("head.",)),
        ("HNB", ("backbone.body.layer", "backbone.neck.", "head.")),
    ):
        model = small(adder=letters)
        layers = adder_layers(model)
        found = {p for p in prefixes if any(layer.startswith(p) for layer in layers)}
        assert found == set(prefixes)
        assert all(layer.startswith(prefixes) for layer in layers), letters
    # Everything but the first layer and the three last ones is an adder layer.
    convs = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert convs == {
        "backbone.body.conv1",
        "head.classification_head.cls_logits",
        "head.regression_head.bbox_reg",
        "head.regression_head.bbox_ctrness",
    }


def test_h_in_faster_rcnn_is_the_tower_and_the_two_box_layers():
    model = small("faster_rcnn", adder="H", num_head_features=32)
    assert adder_layers(model) == {
        "rpn.head.conv.0.0",
        "roi_heads.box_head.fc6",
        "roi_heads.box_head.fc7",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_stands_behind_every_adder_layer(name):
    model = small(name, adder="BNH")
    norms = torch.nn.BatchNorm2d | torch.nn.GroupNorm
    order = [m for m in model.modules() if isinstance(m, AdderModule | torch.nn.Conv2d | norms)]
    order += [torch.nn.Identity()]
    behind = {id(layer): following for layer, following in itertools.pairwise(order)}
    for layer in model.modules():
        if isinstance(layer, AdderModule):
            assert layer.bias is None
            following = behind[id(layer)]
            assert isinstance(following, norms)
            width = getattr(following, "num_features", getattr(following, "num_channels", None))
            assert width == layer.weight.shape[0]


def test_the_input_gradient_is_the_sign_unless_told_otherwise():
    for arguments, rule in (({}, "sign"), ({"grad": "clip"}, "clip")):
        model = small("faster_rcnn", adder="BNH", **arguments)
        rules = {m.grad for m in model.modules() if isinstance(m, AdderModule)}
        assert rules == {rule}


def test_construction_is_deterministic():
    first, second, other = (small(adder="BNH", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_the_same_detector_again(name):
    options = {"num_head_convs": 2, "neck": "pafpn", "min_size": (64, 80), "image_mean": [0, 0, 0]}
    model = small(name, adder="NB", **options)
    config = json.loads(json.dumps(model.config))
    assert "backbone_weights" not in config["kwargs"]
    again = detection.build(config["name"], **config["kwargs"])
    assert again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert again.transform.min_size == [64, 80]
    assert again.transform.image_mean == [0, 0, 0]


def test_checkpoints_come_back_bit_by_bit(tmp_path):
    model, other = small(seed=1), small(seed=2)
    path = ta.save(model, tmp_path / "detector.safetensors")
    ta.checkpoint.load_into(other, path)
    state = other.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_levels_above_the_fifth():
    image = torch.zeros(1, 3, 64, 64)
    for count, names in ((0, "p3 p4 p5"), (1, "p3 p4 p5 p6"), (2, "p3 p4 p5 p6 p7")):
        model = small(top_levels=count).eval()
        assert list(model.backbone(image)) == names.split()
        assert len(model.anchor_generator.sizes) == 3 + count
        with torch.no_grad():
            model(list(image))


NECK = [
    *(f"lateral.{c}" for c in ("c3", "c4", "c5")),
    *(f"down.{p}" for p in ("p4", "p5")),
    *(f"merge.{p}" for p in ("p4", "p5")),
    *(f"output.{p}" for p in ("p3", "p4", "p5")),
    *(f"top.{p}" for p in ("p6", "p7")),
]
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_state_dict_names_are_a_contract():
    body = [k for k in ta.models.resnet18().state_dict() if not k.startswith(("fc.", "bn2."))]
    neck = [
        name
        for node in NECK
        for name in (f"{node}.conv.weight", *(f"{node}.norm.{part}" for part in NORM))
    ]
    towers = {
        part: [
            f"{part}.conv.{i}.{name}"
            for i in range(4)
            for name in ("0.weight", "0.bias", "1.weight", "1.bias")
        ]
        for part in ("classification_head", "regression_head")
    }
    head = [
        *towers["classification_head"],
        *("classification_head.cls_logits.weight", "classification_head.cls_logits.bias"),
        *towers["regression_head"],
        *(
            f"regression_head.{layer}.{name}"
            for layer in ("bbox_reg", "bbox_ctrness")
            for name in ("weight", "bias")
        ),
    ]
    wanted = [f"backbone.body.{k}" for k in body] + [f"backbone.neck.{k}" for k in neck]
    wanted += [f"head.{k}" for k in head]
    # The same for conv and adder layers, but that adder layers have no bias.
    assert list(small(adder="", neck_norm="batch").state_dict()) == wanted
    assert list(small(adder="BN").state_dict()) == wanted
    biases = {f"head.{part}.conv.{i}.0.bias" for part in towers for i in range(4)}
    assert list(small(adder="BNH").state_dict()) == [k for k in wanted if k not in biases]
    # A neck without norms has biases in their place.
    plain = [k for k in small(adder="").state_dict() if k.startswith("backbone.neck")]
    assert plain == [f"backbone.neck.{n}.conv.{k}" for n in NECK for k in ("weight", "bias")]


def test_state_dict_names_of_the_other_heads():
    retina = {k for k in small("retinanet", adder="", num_head_convs=1).state_dict() if "head" in k}
    assert retina == {
        f"head.{part}.{layer}.{leaf}"
        for part, last in (("classification_head", "cls_logits"), ("regression_head", "bbox_reg"))
        for layer in ("conv.0.0", last)
        for leaf in ("weight", "bias")
    }
    faster = {k for k in small("faster_rcnn", adder="").state_dict() if "backbone" not in k}
    layers = ("rpn.head.conv.0.0", "rpn.head.cls_logits", "rpn.head.bbox_pred")
    layers += ("roi_heads.box_head.fc6", "roi_heads.box_head.fc7")
    layers += ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
    assert faster == {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}


@pytest.mark.parametrize("name", NAMES)
def test_the_conv_head_is_torchvisions(name):
    """Same names and shapes as the head that torchvision builds for itself."""
    num_classes = 91 if name == "faster_rcnn" else 90
    with torch.device("meta"):
        model = small(name, adder="", num_classes=90, neck_channels=256, neck="fpn")
        theirs = getattr(torchvision_detection, f"{name.replace('_', '')}_resnet50_fpn")(
            weights=None, weights_backbone=None, num_classes=num_classes
        )

    def heads(detector):
        state = detector.state_dict().items()
        return {key: value.shape for key, value in state if not key.startswith("backbone")}

    wanted = heads(theirs)
    if name == "fcos":
        # torchvision lists layers, norms and ReLUs of FCOS's towers in one row.
        wanted = {
            re.sub(r"conv\.(\d+)", lambda m: f"conv.{int(m[1]) // 3}.{int(m[1]) % 3}", key): shape
            for key, shape in wanted.items()
        }
    assert heads(model) == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet19"}, "backbone must be one of resnet18, resnet34, .* got 'resnet19'"),
        ({"neck": "bifpn"}, "neck must be one of fpn, pafpn, pafpn_shortcut, r_pafpn, got 'bifpn'"),
        ({"adder": "BX"}, r"adder must be letters out of B \(backbone\), .* got 'BX'"),
        ({"adder": "BB"}, "adder must name each part once, got 'BB'"),
        ({"adder": None}, "adder must be letters out of .* got None"),
        ({"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"neck_channels": 0}, "neck_channels must be an integer of at least 1, got 0"),
        ({"num_head_convs": 0}, "num_head_convs must be an integer of at least 1, got 0"),
        ({"min_size": 0}, "min_size must be an integer of at least 1, or several .* got 0"),
        ({"min_size": (320, 0)}, r"min_size must be .* got \(320, 0\)"),
        ({"min_size": "640"}, "min_size must be .* got '640'"),
        ({"max_size": -1}, "max_size must be an integer of at least 1, got -1"),
        ({"grad": "sgn"}, "grad"),
        ({"adder": "N", "neck_norm": "none"}, "neck_norm='none' with adder layers"),
        ({"adder": "H", "head_norm": "none"}, "head_norm='none' with adder layers"),
        ({"neck_norm": "layer"}, "neck_norm must be one of batch, group, none, got 'layer'"),
        ({"frozen_bn": True}, "frozen_bn=True with an adder backbone: .*NaN.*force_frozen_bn=True"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        small(name, **{"adder": "BN", **arguments})
    assert "\n" not in str(error.value)


def test_more_bad_arguments():
    with pytest.raises(ValueError, match="top_levels must be 0, 1 or 2, got 3"):
        small(top_levels=3)
    with pytest.raises(ValueError, match="detector 'fcoss' is unknown; the nearest names are fcos"):
        small("fcoss")
    with pytest.raises(TypeError, match=r"no argument 'score_threshold'; .*score_thresh"):
        small(score_threshold=0.1)
    with pytest.raises(TypeError, match="FCOS takes no argument 'head'"):
        small(head=torch.nn.Identity())
    with pytest.raises(TypeError, match="detector 'fcos' needs num_classes; it takes num_classes"):
        detection.build("fcos", adder="B")
