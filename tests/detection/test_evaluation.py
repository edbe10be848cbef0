"""Detectors put to use on images that are not those of their training."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import torch

import annotated
import torchadder
from small_detectors import small
from torchadder.cli import main
from torchadder.data.detection import DetectionData, DetectionDataError, open_detection
from torchadder.data.sources import DataError, split_to_evaluate
from torchadder.training.detector_evaluation import find, open_detector, open_images_for
from torchadder.training.recipe import DataConfig, DetectionConfig

OPTIONS = {"num_classes": 2, "adder": "", "backbone_width": 4, "num_head_convs": 1}


@pytest.fixture
def checkpoint(tmp_path):
    """A detector of cats and dogs that was trained on a COCO folder with `skip_bad`."""
    source = annotated.write_coco(tmp_path / "trained_on")
    metadata = {
        "class_names": annotated.NAMES,
        "data": dataclasses.asdict(DataConfig(source=str(source), batch_size=2, workers=0)),
        "detection": dataclasses.asdict(
            DetectionConfig(adder="", shorter=[64], longer=96, skip_bad=True, train_split="train")
        ),
    }
    return torchadder.save(small(**OPTIONS), tmp_path / "net.safetensors", metadata=metadata)


def images_of(opened):
    return len(opened.val), opened.val.split.name


def test_another_source_is_evaluated_whole(checkpoint, tmp_path):
    net = open_detector(checkpoint)
    for split in ("train", "test"):
        source = str(annotated.write_coco(tmp_path / split, split=split))
        opened = open_images_for(net, {"source": source})
        assert images_of(opened) == (3, split)
        assert not opened.skip_bad
        assert not hasattr(opened, "train")


def test_a_split_that_is_named_is_evaluated_whole(checkpoint):
    net = open_detector(checkpoint)
    assert images_of(open_images_for(net)) == (1, "validation")
    assert images_of(open_images_for(net, {"val_split": "train"})) == (3, "train")


def test_quantisation_gets_training_images(checkpoint, tmp_path):
    source = str(annotated.write_coco(tmp_path / "other"))
    opened = open_images_for(open_detector(checkpoint), {"source": source}, with_training=True)
    assert (len(opened.train), len(opened.val)) == (2, 1)


def test_the_split_to_evaluate(tmp_path):
    source = open_detection(annotated.write_voc(tmp_path / "voc"))
    assert split_to_evaluate(source).name == "validation"
    assert split_to_evaluate(source, "trainval").name == "trainval"
    with pytest.raises(DataError, match=r"data.val_split='dev': the data has train"):
        split_to_evaluate(source, "dev")
    del source.splits["validation"]
    with pytest.raises(DataError, match=r"splits train, trainval; data.val_split chooses one"):
        split_to_evaluate(source)


def test_the_cost_is_that_of_an_image_there_is(checkpoint, tmp_path, capsys):
    """Image a is lying, image c standing: neither is as high as c and as wide as a."""
    source = annotated.write_coco(tmp_path / "other")
    assert main(["evaluate", str(checkpoint), f"--data.source={source}", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["height"], figures["width"]) in {(64, 96), (96, 64)}
    assert figures["left_out"] == []


def test_what_is_left_out_is_told(checkpoint, tmp_path, capsys):
    content = annotated.instances()
    content["annotations"][0]["bbox"] = [5, 5, -1, 3]
    source = annotated.write_coco(tmp_path / "other", content)
    options = [f"--data.source={source}", "--skip-bad", f"--save={tmp_path / 'saved'}"]
    assert main(["evaluate", str(checkpoint), *options]) == 0
    assert "left out (1):" in capsys.readouterr().out
    kept = json.loads((tmp_path / "saved" / "evaluation.json").read_text())["left_out"]
    assert len(kept) == 1
    assert "annotations" in kept[0]
    assert main(["evaluate", str(checkpoint), *options[:1]]) == 2


def test_options_of_classifiers_are_refused(checkpoint, capsys):
    assert main(["evaluate", str(checkpoint), "--data.label_column=y"]) == 2
    assert "--data.label_column is for nets that name images" in capsys.readouterr().err
    assert main(["predict", str(checkpoint), "nowhere.png", "--top=3"]) == 2
    assert "--top is for nets that name images; --score" in capsys.readouterr().err


def test_images_are_found_in_as_they_are_evaluated(checkpoint, tmp_path):
    """The same boxes by `find`, in the image's pixels, as by the data module and the detector."""
    net = open_detector(checkpoint)
    opened = open_images_for(net, {"val_split": "train"})
    path = tmp_path / "trained_on" / "images" / "a.png"
    image, target = opened.val[0]
    net.model.score_thresh = 0.0
    with torch.inference_mode():
        boxes = net.model([image])[0]["boxes"]
    scale = (target["orig_size"] / target["size"]).flip(0).repeat(2)
    net.model.score_thresh = 0.5  # `score` goes below it
    (found,) = find(net, [path], score=0.0)
    assert net.model.score_thresh == 0.5
    assert len(found.boxes) == len(boxes) > 0
    torch.testing.assert_close(found.boxes, boxes * scale)
    assert found.boxes[:, 2].max() <= 40 + 1e-3
    assert len(next(find(net, [path])).boxes) == 0


def test_pictures_of_one_name_do_not_meet(checkpoint, tmp_path, capsys):
    images = tmp_path / "images"
    for name in ("x/1.png", "y/1.png"):
        (images / name).parent.mkdir(parents=True)
        PIL.Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(images / name)
    saved = tmp_path / "saved"
    assert main(["predict", str(checkpoint), str(images), f"--save={saved}"]) == 0
    assert {path.name for path in saved.glob("*.png")} == {"1_1.png", "2_1.png"}


def test_a_damaged_image_in_a_worker_is_one_line(tmp_path):
    source = annotated.write_voc(tmp_path / "voc")
    (source / "JPEGImages" / "c.png").write_bytes(b"nothing")
    images = DetectionData(str(source), val_split="validation", eval_batch_size=1, workers=1)
    images.setup()
    with pytest.raises(DetectionDataError) as caught:
        list(images.val_dataloader())
    assert (
        str(caught.value) == f"{source}/JPEGImages/c.png: cannot be decoded (no known image format)"
    )
    assert "Traceback" in caught.value.__notes__[0]


def test_a_source_without_names_has_those_of_the_checkpoint(checkpoint, tmp_path):
    """A YOLO folder with bare numbers, VOC annotations that show one class of two, a table."""
    net = open_detector(checkpoint)
    yolo = annotated.write_yolo(tmp_path / "yolo", yaml=False)
    voc = annotated.write_voc(tmp_path / "voc", {"a": [(1, (10, 0, 40, 15))]})
    (voc / "classes.txt").unlink()
    table = tmp_path / "table"
    annotated.table(names=None).save_to_disk(str(table))
    for source in (yolo, voc, table):
        opened = open_images_for(net, {"source": str(source)})
        assert opened.class_names == annotated.NAMES
    with pytest.raises(DetectionDataError, match="class_names or num_classes is wanted"):
        open_detection(yolo)
    assert open_detection(voc).class_names == ["dog"]


def test_other_names_are_refused(checkpoint, tmp_path):
    voc = annotated.write_voc(tmp_path / "voc", {"a": [("bird", (10, 0, 40, 15))]})
    (voc / "classes.txt").unlink()
    with pytest.raises(DetectionDataError, match=r"a\.xml, object 0: class 'bird' is unknown"):
        open_images_for(open_detector(checkpoint), {"source": str(voc)})
