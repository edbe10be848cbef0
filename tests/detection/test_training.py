"""Detectors through `torchadder train`, `evaluate` and `predict`, on tiny scenes of digits."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning
import PIL.Image
import pytest
import torch
from torch import Tensor

import annotated
import torchadder
from torchadder import recipes
from torchadder.checkpoint import read_info
from torchadder.cli import main
from torchadder.data.detection import write_json
from torchadder.training import RecipeError, fit, resume
from torchadder.training.assembly import build_task, open_data
from torchadder.training.callbacks import read_metrics
from torchadder.training.checkpoint_io import read_state
from torchadder.training.folders import RUN_FILES

SCENES = {
    "num_train": 10,
    "num_validation": 4,
    "height": 64,
    "width": 64,
    "sides": [20, 40],
    "digits": [1, 3],
}
TINY = {
    "epochs": 3,
    "data.batch_size": 4,
    "data.eval_batch_size": 2,
    "detection.backbone_width": 4,
    "detection.neck_channels": 8,
    "detection.num_head_convs": 1,
    "detection.shorter": [64],
    "detection.longer": 64,
    "detection.scenes": SCENES,
    "schedule.warmup": 2,
    "trainer.threads": 1,
    "trainer.accelerator": "cpu",
}


def recipe(method="adder_bn", **overrides):
    return recipes.load(f"digits_fcos_{method}", TINY | overrides)


def spelled(values):
    """Values as the command line takes them."""
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in values.items()}
    return [f"--{key}={text}" for key, text in texts.items()]


class Interrupt(lightning.Callback):
    """Presses Ctrl-C in the second epoch."""

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run by the command line, its folder."""
    folder = tmp_path_factory.mktemp("detector") / "run"
    assert main(["train", "digits_fcos_adder_bn", *spelled(TINY), f"--output={folder}"]) == 0
    return folder


def test_the_run_folder_is_complete(folder):
    names = {path.name for path in folder.iterdir()}
    drawn = {f"{stem}{theme}.png" for stem in ("results", "pr_curve") for theme in ("", "-dark")}
    kept = {"config.yaml", "metrics.csv", "summary.json", "tensorboard", "checkpoints"}
    found = {"predictions.json", "evaluation.json"}
    assert names - drawn == kept | found
    assert names <= RUN_FILES
    assert "results.png" in names
    rows = read_metrics(folder / "metrics.csv")
    assert len(rows) == 3
    parts = ["classification", "bbox_regression", "bbox_ctrness"]
    for row in rows:
        losses = [row[f"train_{part}_loss"] for part in parts]
        assert row["train_loss"] == pytest.approx(sum(losses), rel=1e-5)
        assert {"val_ap", "val_ap50", "val_ap75", "val_voc_ap", "val_voc_ap11"} <= row.keys()
        assert all(0 <= row[f"val_zeros_{level}"] <= 1 for level in ("c3", "c5", "p3", "p5"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["metrics"]["best_val_ap"] == max(row["val_ap"] for row in rows)
    assert not summary["ended_early"]


def test_a_checkpoint_is_the_detector(folder):
    info = read_info(folder / "checkpoints" / "last.safetensors")
    assert info.config["package"] == "torchadder.detection"
    assert info.metadata["class_names"] == [str(digit) for digit in range(10)]
    model = torchadder.load(folder / "checkpoints" / "last.safetensors")
    saved = read_state(folder / "checkpoints" / "last.ckpt")["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"]), name
    assert model.config["kwargs"]["min_size"] == 64


@pytest.mark.parametrize(
    ("options", "done"),
    [({}, "1 of 3 epochs; "), ({"trainer.checkpoint_minutes": 0}, "1 of 3 epochs and 1 batch of")],
)
def test_an_interrupted_run_goes_on_bit_by_bit(folder, tmp_path, options, done):
    with pytest.raises(KeyboardInterrupt, match=f"interrupted after {done}"):
        fit(recipe(**options), output=tmp_path / "cut", callbacks=[Interrupt()])
    result = resume(tmp_path / "cut")
    want, got = (read_state(path / "checkpoints" / "last.ckpt") for path in (folder, result.folder))
    for name, value in want["state_dict"].items():
        assert torch.equal(value, got["state_dict"][name]), name
    momenta = [state["optimizer_states"][0]["state"] for state in (want, got)]
    assert momenta[0].keys() == momenta[1].keys()
    for key, entry in momenta[0].items():
        assert torch.equal(entry["momentum_buffer"], momenta[1][key]["momentum_buffer"])
    drop = "seconds"
    rows = [read_metrics(path / "metrics.csv") for path in (folder, result.folder)]
    one, other = ([{k: v for k, v in row.items() if k != drop} for row in part] for part in rows)
    assert one == other


def test_evaluate_repeats_the_best_epoch(folder, capsys, tmp_path):
    saved = tmp_path / "evaluation"
    assert main(["evaluate", str(folder), "--json", "--save", str(saved)]) == 0
    got = json.loads(capsys.readouterr().out)
    rows = read_metrics(folder / "metrics.csv")
    best = max(rows, key=lambda row: row["val_ap"])
    for name in ("ap", "ap50", "ap75", "voc_ap", "voc_ap11"):
        assert got[name] == pytest.approx(best[f"val_{name}"], abs=1e-6)
    assert (got["num_images"], got["height"], got["width"]) == (4, 64, 64)
    assert got["num_mul"] < got["num_add"]
    assert {path.name for path in saved.iterdir()} >= {"evaluation.json", "predictions.json"}
    found = json.loads((saved / "predictions.json").read_text())
    assert found == json.loads((folder / "predictions.json").read_text())
    assert main(["evaluate", str(folder)]) == 0
    words = capsys.readouterr().out
    assert "AP50" in words
    assert "VOC AP, 11 points" in words


def test_predict_draws_what_it_prints(folder, capsys, tmp_path):
    images = tmp_path / "images"
    annotated.write_images(images)
    (images / "d.png").write_bytes(b"nothing")
    saved = tmp_path / "saved"
    options = ["--save", str(saved), "--score", "0", "--beside", str(folder), "--maps"]
    assert main(["predict", str(folder), str(images), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "d.png" in captured.err
    drawn = {f"{stem}{kind}.png" for stem in "abc" for kind in ("", "_zeros")}
    assert {path.name for path in saved.iterdir()} == drawn | {"predictions.json"}
    with PIL.Image.open(saved / "a.png") as file:
        assert file.width > 100
    found = json.loads((saved / "predictions.json").read_text())
    assert captured.out.count("%") == len(found)
    assert captured.out.endswith(f"written to {saved}\n")
    assert main(["predict", str(folder), str(images), "--save", str(saved)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_save_alone_makes_a_folder(folder, capsys, tmp_path, monkeypatch):
    annotated.write_images(tmp_path)
    checkpoint = str(folder.resolve())
    monkeypatch.chdir(tmp_path)
    for command, arguments, written in (
        ("predict", ["a.png"], {"a.png", "predictions.json"}),
        ("evaluate", [], {"evaluation.json", "predictions.json", "pr_curve.png"}),
    ):
        assert main([command, checkpoint, *arguments, "--save"]) == 0
        (saved,) = Path("runs").glob(f"{command}-*")
        assert {path.name for path in saved.iterdir()} >= written
        assert capsys.readouterr().out.endswith(f"written to {saved}\n")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("retinanet", {"trainer.accumulate": 2, "trainer.precision": "bf16-mixed"}),
        ("faster_rcnn", {"detection.metric": "voc", "detection.skip_bad": True}),
    ],
)
def test_other_detectors_train(tmp_path, name, overrides):
    few = {"epochs": 1, "model.name": name, "model.kwargs": {}, "detection.adder": "BN"}
    result = fit(recipe(**few | overrides), output=tmp_path / name)
    monitor = "val_voc_ap" if "detection.metric" in overrides else "val_ap"
    assert f"best_{monitor}" in result.metrics
    assert result.model.config["name"] == name


def test_a_run_ends_early_where_nothing_gets_better(tmp_path):
    """A rate of almost nothing leaves the average precision where it is."""
    still = {"epochs": 6, "trainer.patience": 2, "optimizer.lr": 1e-12, "schedule.warmup": 0}
    result = fit(recipe("conv", **still), output=tmp_path / "still")
    assert len(result.history) < 6
    assert json.loads((result.folder / "summary.json").read_text())["ended_early"]
    with pytest.raises(RecipeError, match="the run is finished"):
        resume(result.folder)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path, capsys):
    """Every image of either process is looked at once; the figures are those of one process."""
    folder = tmp_path / "two"
    options = [*spelled(TINY | {"data.eval_batch_size": 4, "data.batch_size": 8}), "--devices=2"]
    options += ["--trainer.sync_batchnorm=true", f"--output={folder}"]
    command = [sys.executable, "-m", "torchadder", "train", "digits_fcos_adder_bn", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    last = read_metrics(folder / "metrics.csv")[-1]
    checkpoint = folder / "checkpoints" / "last.safetensors"
    assert main(["evaluate", str(checkpoint), "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["num_images"] == 4
    for name in ("ap", "ap50", "voc_ap"):
        assert got[name] == pytest.approx(last[f"val_{name}"], abs=1e-6)


def test_a_training_step_sees_images_as_the_data_gives_them():
    """Two sizes reach the backbone in training; the losses are those of the detector itself."""
    several = recipe(**{"detection.shorter": [64, 96], "detection.longer": 96})
    data = open_data(several)
    task = build_task(several, data)
    sizes = set()
    hook = task.model.backbone.register_forward_pre_hook(
        lambda module, inputs: sizes.add(tuple(inputs[0].shape[-2:]))
    )
    for index in range(8):
        image, target = data.train[0, index]
        torch.manual_seed(0)
        loss, sums = task.loss_and_sums([image] * 2, [target] * 2)
        assert set(sums) == {
            "train_loss",
            *(f"train_{part}_loss" for part in ("classification", "bbox_regression")),
            "train_bbox_ctrness_loss",
        }
        assert float(sums["train_loss"]) == pytest.approx(2 * loss.item())
    hook.remove()
    assert sizes == {(64, 64), (96, 96)}
    image, target = data.val[0]
    plain = {"boxes": target["boxes"].as_subclass(Tensor), "labels": target["labels"]}
    assert tuple(image.shape[-2:]) == (96, 96)  # the detector's own size: it changes nothing more
    losses = task.model([image] * 2, [plain] * 2)
    loss, _ = task.loss_and_sums([image] * 2, [target] * 2)
    assert loss.item() == pytest.approx(sum(losses.values()).item(), rel=1e-5)


@pytest.fixture
def bad_voc(tmp_path):
    """Four bad entries in a VOC folder: a reversed box, an unknown class, one outside, an image."""
    folder = annotated.write_voc(tmp_path / "voc")
    objects = [
        (0, (4, 6, 20, 26)),
        (1, (30, 0, 10, 15)),
        ("bird", (1, 1, 5, 5)),
        (1, (0, 0, 100, 100)),
    ]
    (folder / "Annotations" / "a.xml").write_text(annotated.xml("a", objects))
    for split, stems in (("train", "bc"), ("val", "ac")):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    (folder / "JPEGImages" / "b.png").write_bytes(b"nothing")
    return folder


def test_skip_bad_lists_what_is_left_out(bad_voc, tmp_path, capsys):
    tiny = {key: value for key, value in TINY.items() if key != "detection.scenes"}
    tiny |= {"epochs": 1, "data.source": str(bad_voc), "detection.scenes": {}}
    tiny |= {"data.eval_batch_size": 1, "data.workers": 0, "model.kwargs": {"top_levels": 0}}
    argv = ["train", "digits_fcos_conv", *spelled(tiny), f"--output={tmp_path / 'run'}"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "a.xml, object 1" in error
    assert "reversed (2 more like it" in error
    assert not (tmp_path / "run").exists()
    assert main([*argv, "--skip-bad"]) == 0
    words = capsys.readouterr().out
    kept = (tmp_path / "run" / "left_out.txt").read_text().splitlines()
    assert len(kept) == 4
    assert all(line in words for line in kept)
    assert "b.png: cannot be decoded" in kept[-1]


def test_other_classes_are_refused(folder, tmp_path, capsys):
    source = annotated.write_coco(tmp_path / "coco")
    assert main(["evaluate", str(folder), f"--data.source={source}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "best.safetensors has 10 classes, the data 2 (cat, dog)" in error
    results = tmp_path / "results.json"
    write_json(results, [{"image_id": 1}])
    assert main(["evaluate", str(folder), f"--data.source={results}"]) == 2
    assert "as of detection results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.augment": "crop"}, "data.augment = 'crop': 'none', because method is detection"),
        ({"trainer.compile": True}, "trainer.compile = True: False, because method is detection"),
        ({"detection.shorter": []}, r"detection.shorter = \[\]: pixels of at least 1"),
        ({"detection.flip": 2.0}, "detection.flip = 2.0: a share in 0..1 is wanted"),
        ({"trainer.patience": 0}, "trainer.patience = 0: at least 1, or null is wanted"),
        ({"schedule.warmup": -1}, "schedule.warmup = -1: at least 0 is wanted"),
        ({"method": "supervised"}, "detection.adder = '': 'BN', because method is supervised"),
        ({"method": "pkkd"}, "detection.adder = '': 'BN', because method is pkkd"),
    ],
)
def test_recipes_that_contradict_themselves(overrides, message):
    with pytest.raises(RecipeError, match=message):
        recipes.load("digits_fcos_conv", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.name": "yolo"}, "model.name = yolo: detector 'yolo' is unknown"),
        ({"detection.frozen_bn": True}, "frozen_bn=True with an adder backbone"),
        ({"detection.neck": "bifpn"}, "neck must be one of fpn"),
        ({"detection.scenes": {"size": 3}}, "scenes has no 'size'"),
        ({"detection.scenes": SCENES | {"digits": [0, 0]}}, "hold no object"),
    ],
)
def test_recipes_that_cannot_be_built(overrides, message):
    broken = recipe(**overrides)
    with pytest.raises(ValueError, match=message):
        build_task(broken, open_data(broken))


@pytest.mark.parametrize("method", ["conv", "adder_b"])
def test_one_name_of_the_backbones_weights_serves_both_kinds(tmp_path, method):
    """What "{kind}" stands for is what the backbone is made of; a run folder means its best."""
    kind = "conv" if method == "conv" else "adder"
    net = torchadder.models.resnet18(num_classes=10, conv=kind, width=4)
    torchadder.save(net, tmp_path / f"run_{kind}" / "checkpoints" / "best.safetensors")
    one = recipe(method, **{"detection.backbone_weights": str(tmp_path / "run_{kind}")})
    body = build_task(one, open_data(one)).model.backbone.body
    assert torch.equal(body.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
