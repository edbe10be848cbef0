"""Detectors from head to tail in integers: the four necks, sizes, files, refusals."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchadder as ta
from small_detectors import scenes, small
from small_programs import every_step
from torchadder import detection
from torchadder.export import ExportError
from torchadder.quantize import (
    Adder2dInt8,
    Calibration,
    Conv2dInt8,
    Int8Config,
    IntegerNet,
    QuantizationError,
    integer_net,
    interpreter,
)
from torchadder.quantize import program as p
from torchadder.quantize.fake import FakeQuantization

TINY = {"backbone_width": 4, "neck_channels": 8, "num_head_convs": 1}
KINDS = {
    "fpn": {"adder": "", "top_levels": 0},
    "pafpn": {"adder": "B", "head_norm": "batch", "top_levels": 1},
    "pafpn_shortcut": {"adder": "BNH", "neck_norm": "group", "top_levels": 0},
    "r_pafpn": {"adder": "BN", "head_norm": "batch"},
}
"""The necks, each with other parts, norms and levels."""

IMAGES = scenes(((64, 96), (64, 64), (96, 64)))[0]
BATCHES = [IMAGES[:2], IMAGES[2]]
"""A list of images, and one of another size."""


def detector(name="fcos", **arguments):
    """A detector whose maps vary, with norms that have seen the images, the head's all levels."""
    found = small(name, **{**TINY, "score_thresh": 0.0, **arguments})
    for norm in found.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        found.train()(*scenes())
    found.eval()
    torch.manual_seed(0)
    for layer in found.head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5)
    nn.init.constant_(found.head.regression_head.bbox_reg.bias, 2)
    return found


@pytest.fixture(scope="module")
def calibrated():
    """A detector with group norms behind adder layers, and its calibration."""
    whole = detector(neck="pafpn_shortcut", **KINDS["pafpn_shortcut"])
    return whole, Calibration(whole, BATCHES)


@pytest.fixture(scope="module", params=KINDS)
def quantised(request):
    """A detector, itself in integers, the report."""
    if request.param == "pafpn_shortcut":
        # Exported once for this fixture and the next: most of the time goes there.
        whole, calibration = request.getfixturevalue("calibrated")
        program, ranges = calibration.lower(Int8Config())
        integers = copy.deepcopy(whole)
        integers.use_integers_(IntegerNet(program))
        return whole, integers, calibration.report(program, ranges)
    whole = detector(neck=request.param, **KINDS[request.param])
    integers = copy.deepcopy(whole)
    return whole, integers, ta.quantize_(integers, BATCHES)


def test_every_size_equals_the_interpreter(quantised):
    _, integers, _ = quantised
    net = integers.integers
    program = net.program()
    assert program.takes_any_size
    assert (program.input.height, program.input.width) == (64, 96)
    for size in ((64, 96), (96, 64), (128, 32)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
        wanted = interpreter.outputs(program.resized(*size), images)
        got = net.integers(images)
        assert len(got) == len(wanted) == 3 * len(integers.backbone.levels)
        for one, two in zip(got, wanted, strict=True):
            assert one.dtype == torch.int32
            assert torch.equal(one, two)
        assert all(one.float().std() > 0 for one in got[:3])


def test_maps_are_those_of_the_float_detector(quantised):
    whole, integers, report = quantised
    images = whole.core_images(IMAGES[:2])
    with torch.no_grad():
        wanted = whole.integer_core()(images)
    got = integers.integers(images)
    assert [tuple(one.shape) for one in got] == [tuple(one.shape) for one in wanted]
    # The finest level: above it a map of this detector has a few pixels only.
    for one, two in zip(got[:3], wanted[:3], strict=True):
        assert 10 * torch.log10(two.square().sum() / (one - two).square().sum()) > 12
    assert (got[1] >= 0).all()  # distances to the sides of a box
    assert report.num_images == 3
    assert report.weight_bytes < 0.35 * report.float_weight_bytes


def test_torchvision_finds_boxes_as_before(quantised):
    whole, integers, _ = quantised
    with torch.no_grad():
        wanted = whole(IMAGES)
    found = integers(IMAGES)
    assert type(integers) is type(whole)
    for image, one, two in zip(IMAGES, found, wanted, strict=True):
        assert {key: value.dtype for key, value in one.items()} == {
            key: value.dtype for key, value in two.items()
        }
        height, width = image.shape[1:]
        assert len(one["boxes"]) > 0
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert torch.allclose(one["scores"][:5], two["scores"][:5], atol=0.1)
    # One image at a time is padded less, and its maps have another size.
    assert len(integers([IMAGES[1]])[0]["boxes"]) > 0


def test_modules_have_the_names_of_the_float_layers(quantised):
    whole, integers, report = quantised
    layers = {
        name: layer
        for name, layer in whole.named_modules()
        if isinstance(layer, nn.Conv2d | ta.nn.Adder2d)
    }
    for name, layer in layers.items():
        kind = Adder2dInt8 if isinstance(layer, ta.nn.Adder2d) else Conv2dInt8
        assert type(integers.get_submodule(name)) is kind, name
    assert [row.layer for row in report.layers] != []
    assert {row.layer for row in report.layers} == set(layers)
    assert not list(integers.parameters())
    names = list(integers.state_dict())
    assert all(name.startswith(("backbone.", "head.")) for name in names)
    assert len({buffer.data_ptr() for buffer in integers.buffers() if buffer.numel()}) == sum(
        buffer.numel() > 0 for buffer in integers.buffers()
    )


def test_the_head_is_one_layer_for_all_levels(quantised):
    _, integers, _ = quantised
    program = integers.integers.program()
    name = "head.regression_head.bbox_reg"
    uses = [step for step in program.steps if name in (step.name, getattr(step, "shared", None))]
    assert len(uses) == len(integers.backbone.levels)
    assert [step.shared for step in uses] == [None] + [name] * (len(uses) - 1)
    read = {(program.values[u.input].scale, program.values[u.input].zero_point) for u in uses}
    assert len(read) == 1
    assert len({program.values[step.output].scale for step in uses}) == 1
    held = sum(
        buffer.numel() for path, buffer in integers.named_buffers() if path.endswith("packed")
    )
    pooled = [s for s in program.steps if isinstance(s, p.Add | p.Affine | p.AvgPool)]
    extra = sum(integers.backbone.get_submodule(step.name).packed.numel() for step in pooled)
    assert p.weight_bytes(program.steps) == held - extra


def test_batch_norms_fold_and_group_norms_stay_in_float(quantised):
    whole, integers, report = quantised
    groups = [name for name, one in whole.named_modules() if isinstance(one, nn.GroupNorm)]
    assert sorted(report.float_layers) == sorted(groups)
    assert integers.integers.program().float_layers == report.float_layers
    assert ("in float: " in str(report)) == bool(groups)
    kinds = {type(step) for step in integers.integers.program().steps}
    assert kinds <= {
        p.Layer, p.MaxPool, p.Add, p.Affine, p.Upsample, *([p.GroupNorm] if groups else ()),
    }  # fmt: skip


def test_files(quantised, tmp_path):
    _, integers, _ = quantised
    path = ta.save(integers, tmp_path / "detector.safetensors", metadata={"class_names": ["a"]})
    again = ta.load(path)
    assert type(again) is type(integers)
    assert again.config == integers.config
    assert again.score_thresh == 0
    for one, two in zip(again(IMAGES), integers(IMAGES), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in ("boxes", "scores", "labels"))
    assert list(again.state_dict()) == list(integers.state_dict())
    with pytest.raises(ta.checkpoint.CheckpointError, match=r"made by torchadder.load"):
        ta.checkpoint.load_into(again, path)


def test_copies_and_state_dicts(quantised):
    _, integers, _ = quantised
    other = copy.deepcopy(integers)
    state = {name: value.clone() for name, value in integers.state_dict().items()}
    for buffer in other.buffers():
        buffer.zero_()
    images = torch.randn(1, 3, 64, 64)
    assert not torch.equal(other.integers(images)[0], integers.integers(images)[0])
    other.load_state_dict(state)
    assert torch.equal(other.integers(images)[0], integers.integers(images)[0])


def test_operations_are_those_of_the_float_detector(quantised):
    whole, integers, _ = quantised
    one, two = (detection.count_operations(found, 64, 96) for found in (whole, integers))
    assert (one.num_mul, one.num_add) == (two.num_mul, two.num_add)
    calls = {row.name: row.calls for row in two.layers}
    assert calls["head.regression_head.bbox_reg"] == len(integers.backbone.levels)
    assert two.energy_pj < one.energy_pj / 5
    # The whole detector: 40 x 60 pixels are resized to 64 x 96, two images side by side.
    pair = ta.energy.count(integers, [(3, 40, 60), (3, 64, 96)])
    assert (pair.num_mul, pair.num_add) == (2 * two.num_mul, 2 * two.num_add)
    plain = detection.count_operations(integers, 64, 96, include_elementwise=True)
    norms = {row.name: row for row in plain.layers if row.op == "group_norm"}
    assert set(norms) == {n for n, one in whole.named_modules() if isinstance(one, nn.GroupNorm)}
    row = norms.get("backbone.neck.output.p3.norm")
    numbers = 8 * 8 * 12  # 8 channels
    if row is not None:
        assert (row.num_mul, row.num_add, row.dtype) == (2 * numbers, 4 * numbers, "float32")


def test_what_a_detector_of_integers_does_not_do(quantised, tmp_path):
    _, integers, _ = quantised
    images, targets = scenes()
    with pytest.raises(ValueError, match="a detector of integers cannot be trained"):
        copy.deepcopy(integers).train()(images, targets)
    with pytest.raises(QuantizationError, match="computes with integers already"):
        ta.quantize_(integers, [images])
    with pytest.raises(ValueError, match="the maps of a quantised detector are integers"):
        detection.feature_sparsity(integers, images)
    reason = r"computes? in float|left in float|outputs; C is written for nets that make one number"
    with pytest.raises(ExportError, match=reason) as error:
        ta.export.to_c(integers, tmp_path / "c")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "config",
    [Int8Config(bits=4, groups=3), Int8Config(bits=6, clamp=False, first="float", last="float")],
    ids=["4 bits", "ends in float"],
)
def test_other_integers(calibrated, config):
    whole, calibration = calibrated
    program, ranges = calibration.lower(config)
    net = IntegerNet(program)
    images = whole.core_images(IMAGES[:1])
    for one, two in zip(
        net.integers(images), interpreter.outputs(program.resized(64, 96), images), strict=True
    ):
        assert torch.allclose(one.double(), two.double(), atol=0.1 if config.last == "float" else 0)
    inner = {row.bits for row in ranges if row.kind == "adder"}
    assert inner == {config.bits}
    values = interpreter.run(program.resized(64, 96), images)
    for step in program.steps:
        if isinstance(step, p.Layer) and step.kind == "adder":
            assert int(values[step.input].max()) < 2**config.bits
    ends = ["head.classification_head.cls_logits", "backbone.body.conv1"]
    assert all((end in program.float_layers) == (config.last == "float") for end in ends)


@pytest.mark.slow
def test_other_instruction_sets_give_the_same(calibrated, tmp_path):
    """Group norms, which torch's own kernels compute, included."""
    whole, calibration = calibrated
    integers = copy.deepcopy(whole)
    integers.use_integers_(IntegerNet(calibration.lower(Int8Config())[0]))
    path = ta.save(integers, tmp_path / "detector.safetensors")
    code = (
        "import torch, torchadder as ta\n"
        f"net = ta.load({str(path)!r}).integers\n"
        "images = torch.arange(2 * 3 * 64 * 96).mul(37).remainder(256).to(torch.uint8)\n"
        "maps = net.integers(images.reshape(2, 3, 64, 96))\n"
        "print([one.double().mul(torch.arange(one.numel()).reshape(one.shape) % 101).sum().item()"
        " for one in maps])\n"
    )
    found = set()
    for capability in ("portable", "avx2", ""):
        chosen = {"TORCHADDER_CPU_CAPABILITY": capability} if capability else {}
        chosen |= {"ATEN_CPU_CAPABILITY": "default"} if capability == "portable" else {}
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **chosen}, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        found.add(result.stdout)
    assert len(found) == 1, found


def test_fake_layers_compute_what_the_integers_of_a_detector_compute(calibrated):
    whole, calibration = calibrated
    config = Int8Config(bits=4)
    program, ranges = calibration.lower(config)
    images = whole.core_images(IMAGES[:2])
    with torch.no_grad():
        floats = whole.integer_core()(images)
        with FakeQuantization(whole, ranges, config):
            fakes = whole.integer_core()(images)
    for one, two, three in zip(fakes[:3], IntegerNet(program)(images)[:3], floats[:3], strict=True):
        assert (one - two).square().sum() < 0.5 * (three - two).square().sum()


@pytest.mark.slow
def test_frozen_norms_and_retinanet():
    whole = detector("retinanet", adder="", neck="fpn", frozen_bn=True)
    with torch.no_grad():
        wanted = whole(IMAGES[:1])[0]
    report = ta.quantize_(whole, [IMAGES])
    assert report.float_layers == ()
    assert len(whole.integers.outputs) == 10
    found = whole(IMAGES[:1])[0]
    assert torch.allclose(found["scores"][:5], wanted["scores"][:5], atol=0.1)
    # 9 anchors at each position; rows go by position, as the anchors do.
    maps = whole.integers(whole.core_images(IMAGES[:1]))
    logits = whole.head(list(whole.backbone(whole.core_images(IMAGES[:1])).values()))["cls_logits"]
    assert torch.equal(logits[0, 9 * 12 + 4, 2], maps[0][0, 4 * 3 + 2, 1, 0])


# What is refused ----------------------------------------------------------------------------------


def plain(**arguments):
    return small(**{**TINY, "top_levels": 0, **arguments}).eval()


@pytest.mark.parametrize(
    ("make", "batches", "error", "message"),
    [
        (lambda: plain().train(), [IMAGES], QuantizationError, "in training mode: call model.eval"),
        (plain, [], QuantizationError, "calibration: no images"),
        (plain, [[IMAGES[0] * torch.nan]], QuantizationError, "the images hold NaN or infinity"),
        (plain, [IMAGES[0][0]], QuantizationError, r"floats of shape \(3, H, W\), got torch.float"),
        (plain, [[IMAGES[0].byte()]], QuantizationError, r"got torch.uint8 \(3, 64, 96\)"),
        (plain, [{"image": IMAGES}], TypeError, r"an image \(3, H, W\) or a list .* got dict"),
        (plain, [[]], TypeError, r"an image \(3, H, W\) or a list .* got list"),
        (
            lambda: plain(size_divisible=8),
            [IMAGES],
            QuantizationError,
            "multiples of size_divisible = 8; a multiple of 32 is wanted",
        ),
        (
            lambda: small("faster_rcnn", backbone_width=4, neck_channels=8).eval(),
            [IMAGES],
            QuantizationError,
            "a FasterRCNN cannot be quantised: .*; fcos and retinanet can be",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_detector_stays(make, batches, error, message):
    found = make()
    before = {name: value.clone() for name, value in found.state_dict().items()}
    modules = list(found.modules())
    with pytest.raises(error, match=message) as caught:
        ta.quantize_(found, batches)
    assert "\n" not in str(caught.value)
    assert list(found.modules()) == modules
    assert integer_net(found) is None
    assert all(
        torch.equal(value, before[name]) or value.isnan().any()
        for name, value in found.state_dict().items()
    )


def test_an_integer_net_of_something_else_is_refused(tmp_path):
    found, net = plain(), IntegerNet(every_step())
    modules = list(found.modules())
    message = "net makes 1 outputs, wanted 3 maps for each of 3 levels, of images of any size"
    with pytest.raises(ValueError, match=message):
        found.use_integers_(net)
    assert list(found.modules()) == modules
    net.config, net.built_by = found.config, found.built_by
    path = ta.save(net, tmp_path / "net.safetensors")
    with pytest.raises(ta.checkpoint.CheckpointError, match=f"no detector's: {message}"):
        ta.load(path)


@pytest.mark.slow
def test_a_layer_that_integers_do_not_have_is_named():
    found = plain()
    found.head.regression_head.conv[0][2] = nn.GELU()
    with pytest.raises(
        QuantizationError, match=r"head.regression_head.conv.0.2: aten.gelu cannot be done"
    ):
        ta.quantize_(found, [IMAGES])
    assert isinstance(found.head.regression_head.conv[0][0], nn.Conv2d)


def test_images_come_in_many_ways():
    found = plain()
    one = IMAGES[0]
    wanted = found.core_images([one])
    assert wanted.shape == (1, 3, 64, 96)
    target = {"boxes": torch.zeros(0, 4)}
    for batch in (one, one[None], [one], (one, target), ([one], [target]), [one[None], [target]]):
        assert torch.equal(found.core_images(batch), wanted)
    assert found.core_images(IMAGES).shape == (3, 3, 96, 96)
    padded = found.core_images(IMAGES)[1, :, 64:]
    assert torch.equal(padded, F.pad(padded[:, :0], (0, 0, 0, 32)))
