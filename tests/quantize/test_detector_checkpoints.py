"""`torchadder quantize`, `evaluate` and `predict` on the checkpoint of a detector."""

import csv
import json

import PIL.Image
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as vision

import torchadder as ta
from torchadder import cli, recipes
from torchadder.quantize import Int8Config, integer_net
from torchadder.training import detector_quantization, quantization
from torchadder.training.assembly import checkpoint_metadata, open_data
from torchadder.training.detection import build_detector
from torchadder.training.detector_evaluation import open_detector, open_images_for
from torchadder.training.detector_quantization import (
    QuantizedDetector,
    average_precision,
    calibration_batches,
)

TINY = {
    "data.batch_size": 3,
    "detection.backbone_width": 4,
    "detection.neck_channels": 8,
    "detection.num_head_convs": 1,
    "detection.shorter": [64],
    "detection.longer": 64,
    "detection.scenes": {
        "num_train": 7, "num_validation": 4, "height": 64, "width": 64, "sides": [20, 40],
        "digits": [1, 3],
    },
    "model.kwargs": {"score_thresh": 0.0, "top_levels": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What training leaves of a detector: its best weights, here those of the beginning."""
    folder = tmp_path_factory.mktemp("detector") / "run"
    recipe = recipes.load("digits_fcos_adder_bn", TINY)
    data = open_data(recipe)
    torch.manual_seed(0)
    detector = build_detector(recipe, data.num_classes)
    for layer in detector.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        detector(*next(iter(data.train_dataloader())))
    nn.init.normal_(detector.head.classification_head.cls_logits.weight, std=0.5)
    nn.init.constant_(detector.head.regression_head.bbox_reg.bias, 2)
    metadata = checkpoint_metadata(recipe, data)
    ta.save(detector, folder / "checkpoints" / "best.safetensors", metadata=metadata)
    return folder


def test_the_commands(run_folder, tmp_path, capsys):
    output, report = tmp_path / "scenes.safetensors", tmp_path / "layers.csv"
    argv = ["quantize", str(run_folder), "--output", str(output), "--report", str(report)]
    assert cli.main([*argv, "--images", "5", "--bits", "6"]) == 0
    out = capsys.readouterr().out
    said = dict(line.split("  ", 1) for line in out.splitlines() if line[:8] in
                ("float32 ", "integers", "checkpoi"))  # fmt: skip
    assert "5 calibration images" in out
    assert "in float: head.classification_head.conv.0.1" in out
    whole = open_detector(run_folder)
    figures = average_precision(whole.model, open_images_for(whole))
    assert figures.ap50 > 0
    assert f"AP {100 * figures.ap:.2f} %, AP50 {100 * figures.ap50:.2f} %, 4 images" in out
    with report.open() as file:
        rows = {row["layer"]: row["bits"] for row in csv.DictReader(file)}
    assert rows["backbone.neck.down.p4.conv"] == "6"
    assert rows["head.regression_head.bbox_reg"] == rows["backbone.body.conv1"] == "8"
    net = open_detector(output)
    assert integer_net(net.model).bits == 6
    assert integer_net(net.model).input.mean == tuple(net.model.transform.image_mean)
    assert net.class_names == whole.class_names
    assert ta.checkpoint.read_info(output).metadata["quantization"]["bits"] == 6

    assert cli.main(["evaluate", str(output), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    words = f"AP {100 * page['ap']:.2f} %, AP50 {100 * page['ap50']:.2f} %"
    assert said["integers"].strip() == words
    assert page["zeros"] == {}
    operations = ta.detection.count_operations(whole.model, 64, 64)
    assert (page["num_mul"], page["num_add"]) == (operations.num_mul, operations.num_add)
    picture = tmp_path / "picture.png"
    pixels = torch.randint(0, 256, (3, 80, 48), dtype=torch.uint8)  # of another size and shape
    PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(picture)
    argv = ["predict", str(output), str(picture), "--score", "0", "--save", str(tmp_path / "found")]
    assert cli.main(argv) == 0
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    resized = vision.resize(pixels, [64, 38], antialias=True)  # as images of the evaluation are
    net.model.score_thresh = 0.0
    wanted = net.model([vision.to_dtype(resized, torch.float32, scale=True)])[0]
    assert sorted(one["score"] for one in found) == sorted(wanted["scores"].tolist())
    capsys.readouterr()
    for argv, message in (
        (["quantize", str(output)], "the net computes with integers already"),
        (["predict", str(output), str(picture), "--save", str(tmp_path / "maps"), "--maps"],
         "the maps of a quantised detector are integers; measure the float one"),
    ):  # fmt: skip
        assert cli.main(argv) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_bad_options_are_one_line(run_folder, tmp_path, capsys):
    output = tmp_path / "x.safetensors"
    for options, message in (
        (["--images", "0"], "calibration: 0 images; at least 1 is wanted"),
        (["--bits", "9"], "bits must be within 2 .. 8, got 9"),
        (["--data.source", "nowhere/nothing.json"], "nowhere"),
    ):
        assert cli.main(["quantize", str(run_folder), "--output", str(output), *options]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
        assert not output.exists()


@pytest.mark.slow
def test_the_table(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quantization, "SCHEMES", {"clamped filters": Int8Config()})
    monkeypatch.setattr(quantization, "TABLE_BITS", (8, 5))
    monkeypatch.setattr("torchadder.training.quantization_table.TABLE_BITS", (8, 5))
    folder = tmp_path / "table"
    assert cli.main(["quantize", str(run_folder), "--table", str(folder), "--images", "2"]) == 0
    page = json.loads((folder / "accuracy.json").read_text())
    with (folder / "accuracy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["scheme", "bits", "ap", "ap50", "sqnr_db", "weight_bytes"]
    assert [(row["scheme"], row["bits"]) for row in rows] == [
        ("float", "32"), ("clamped filters", "8"), ("clamped filters", "5"),
    ]  # fmt: skip
    assert float(rows[1]["sqnr_db"]) > float(rows[2]["sqnr_db"]) + 3
    whole = open_detector(run_folder)
    assert page["rows"][0]["ap"] == average_precision(whole.model, open_images_for(whole)).ap
    assert (page["num_calibration_images"], page["num_validation_images"]) == (2, 4)
    cells = [f"{100 * row['ap']:.2f} / {100 * row['ap50']:.2f} %" for row in page["rows"]]
    text = (folder / "accuracy.md").read_text()
    assert f"| clamped filters | {' | '.join(cells)} |" in text
    assert "AP / AP50 on 4 images of digit-scenes" in text
    assert f"AP {100 * page['rows'][1]['ap']:.2f} %" in capsys.readouterr().out


def test_calibration_images_are_the_same_every_time_and_not_augmented(run_folder):
    data = open_data(recipes.load("digits_fcos_adder_bn", TINY | {"detection.flip": 1.0}))
    batches = list(calibration_batches(data, 5, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    images = [image for batch in batches for image in batch]
    for image, index in zip(images, (0, 1, 2, 4, 5), strict=True):
        pixels = torch.from_numpy(_pixels(data.train.split, index)).permute(2, 0, 1)
        assert torch.allclose(image, pixels.float() / 255)
    with pytest.raises(ta.data.DataError, match="0 images; at least 1 is wanted"):
        list(calibration_batches(data, 0, 2))


def _pixels(split, index):
    import numpy as np

    return np.array(split.pictures.open(index).convert("RGB"))


def test_average_precision_is_that_of_the_boxes_found():
    data = open_data(recipes.load("digits_fcos_adder_bn", TINY))
    truth = iter(data.val_dataloader())

    def knows(images):
        return [
            {key: target[key] for key in ("boxes", "labels")}
            | {"scores": torch.ones(len(target["labels"]))}
            for target in next(truth)[1]
        ]

    figures = average_precision(knows, data)
    assert figures.ap == pytest.approx(1)
    assert figures.num_images == 4


def test_a_classifier_is_no_detector(run_folder):
    with pytest.raises(ta.checkpoint.CheckpointError, match="a detector, a net that names"):
        quantization.QuantizedCheckpoint(run_folder)
    assert detector_quantization.NUM_IMAGES == 100
    assert QuantizedDetector.__init__.__kwdefaults__["num_images"] == 100
