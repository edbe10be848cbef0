"""The page of a run: every section is there and its figures are those of the run."""

import json
import shutil

import pytest
import torch

import torchadder as ta
from html_page import read_page
from torchadder import energy
from torchadder.energy.report import short_number
from torchadder.report import write_run_report
from torchadder.report.evaluation import layer_weights, predict
from torchadder.report.exhibits import KINDS, facts
from torchadder.report.page import NO_BREAK
from torchadder.report.run_folder import RunFolder, read_run

SECTIONS = [
    "Results",
    "Learning curves",
    "Mistakes",
    "Weights",
    "Arithmetic, layer by layer",
    "Where these numbers come from",
]
PICTURES = ["learning_curves", "confusion_matrix", "mistakes", "weight_histograms"]


@pytest.fixture(scope="module")
def page(adder_run):
    path = write_run_report(adder_run.folder, model=adder_run.model, data=adder_run.data)
    assert path == adder_run.folder / "report.html"
    return read_page(path)


def test_sections_and_pictures(page, adder_run):
    assert page.headings == SECTIONS
    assert len(page.images) == len(PICTURES)
    for name in PICTURES:
        assert (adder_run.folder / f"{name}.png").stat().st_size > 5000
        assert (adder_run.folder / f"{name}-dark.png").is_file()


def test_figures_are_those_of_the_run(page, adder_run):
    summary = json.loads((adder_run.folder / "summary.json").read_text())
    report = energy.count(adder_run.model, (1, 1, 28, 28))
    rows = {row[0]: row[1:] for row in page.rows}
    best = f"{100 * summary['metrics']['best_val_accuracy']:.1f} %"
    assert rows["Accuracy of the best epoch, 1,000 images"] == [best]
    last = f"{100 * summary['metrics']['val_accuracy']:.1f} %"
    assert rows["Validation accuracy, last epoch"] == [last]
    assert rows["Multiplications of one image"] == [short_number(report.num_mul)]
    assert rows["Additions of one image"] == [short_number(report.num_add)]
    assert rows["Best epoch"] == [f"{summary['metrics']['best_epoch']:.0f} of 2"]
    assert rows["conv2"] == ["adder2d", "0", "480.00K", f"{0.432:.3f}"]
    assert "torchadder train mnist_lenet5bn_adder" in page.text
    assert f"torch {torch.__version__}" in page.text
    assert summary["hardware"]["platform"] in page.text


def test_every_layer_has_its_fits(page, adder_run):
    names = [layer.name for layer in layer_weights(adder_run.model)]
    assert names == ["conv1", "conv2", "conv3", "conv4", "fc"]
    tables = [row[0] for row in page.rows]
    assert all(f"Adder net {name}" in tables for name in names)


def test_a_report_can_be_made_again_from_the_folder_alone(page, adder_run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(adder_run.folder, moved)
    first = (moved / "report.html").read_bytes()
    write_run_report(moved)
    assert (moved / "report.html").read_bytes() == first


def test_distillation_has_its_own_figure(pkkd_run):
    page = read_page(write_run_report(pkkd_run.folder, model=pkkd_run.model, data=pkkd_run.data))
    assert (pkkd_run.folder / "distillation.png").is_file()
    assert (pkkd_run.folder / "alignment.png").is_file()
    assert len(page.images) == len(PICTURES) + 2
    assert "cross-entropy + 5 soft labels + 5 features" in page.text
    assert "Centred kernel alignment" in page.text
    assert "Teacher's accuracy, last epoch" in page.text


def test_last_weights_are_those_of_the_last_epoch(adder_run):
    run = read_run(adder_run.folder)
    predictions = predict(run.load_model("last"), adder_run.data)
    assert predictions.accuracy == pytest.approx(run.rows[-1]["val_accuracy"])


def test_predictions(adder_run):
    predictions = predict(adder_run.model, adder_run.data, num_mistakes=5, with_features=True)
    images = torch.cat([images for images, _ in adder_run.data.val_dataloader()])
    with torch.no_grad():
        logits = adder_run.model(images)
        features = adder_run.model.forward_features(images)
    assert (predictions.predicted == logits.argmax(1).numpy()).all()
    assert predictions.features == pytest.approx(features.numpy(), abs=1e-4)
    assert predictions.confusion.sum() == 1000
    assert predictions.confusion.trace() == predictions.num_correct
    confidences = logits.softmax(1).max(1).values.numpy()
    wrong = sorted(confidences[~predictions.is_correct])[::-1]
    assert [m.confidence for m in predictions.mistakes] == pytest.approx(wrong[:5], abs=1e-5)
    image = predictions.mistakes[0].image
    assert image.shape == (28, 28, 1)
    assert image.min() >= 0
    assert image.max() <= 1


def test_fewer_images_are_spread_over_the_split(adder_run):
    predictions = predict(adder_run.model, adder_run.data, max_images=100)
    assert sorted(set(predictions.labels)) == list(range(10))
    assert len(predictions.labels) == 100


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.csv", "summary.json"])
def test_no_run(adder_run, tmp_path, missing):
    for name in ("config.yaml", "metrics.csv", "summary.json"):
        if name != missing:
            shutil.copy(adder_run.folder / name, tmp_path)
    with pytest.raises(ValueError, match=f"no folder of a finished run: no {missing}"):
        write_run_report(tmp_path)


def test_damaged_runs(adder_run, tmp_path):
    for name in ("config.yaml", "metrics.csv", "summary.json"):
        shutil.copy(adder_run.folder / name, tmp_path)
    (tmp_path / "summary.json").write_text('{"name": ')
    with pytest.raises(ValueError, match="damaged run"):
        write_run_report(tmp_path)
    shutil.copy(adder_run.folder / "summary.json", tmp_path)
    with pytest.raises(ta.checkpoint.CheckpointError):
        write_run_report(tmp_path)
    (tmp_path / "metrics.csv").write_text("epoch\n")
    with pytest.raises(ValueError, match="no epoch was finished"):
        write_run_report(tmp_path)


def test_no_break_spaces_keep_numbers_and_units_together(adder_run, page):
    text = (adder_run.folder / "report.html").read_text(encoding="utf-8")
    assert f"{NO_BREAK}%" in text


@pytest.mark.parametrize(
    ("conv", "method", "kind"),
    [
        ("conv", "supervised", "conv"),
        ("adder", "dropout", "adder"),
        ("adder_lp", "supervised", "adder"),
        ({"type": "adder_lp", "p": 1.5}, "supervised", "adder"),
        ({"type": "adder_lp"}, "pkkd", "pkkd"),
    ],
)
def test_every_layer_that_a_recipe_names_has_its_kind(conv, method, kind, tmp_path):
    run = RunFolder(tmp_path, {"model": {"conv": conv}, "method": method}, [], {})
    assert run.kind == kind
    assert kind in KINDS


@pytest.mark.parametrize(
    ("device", "words"), [("cpu", "CPU"), ("cuda:0", "H200"), ("mps", "MPS"), ("xpu:1", "XPU:1")]
)
def test_the_device_of_a_run_is_named(device, words, adder_run):
    summary = json.loads((adder_run.folder / "summary.json").read_text())
    summary["hardware"] |= {"device": device, "gpu": "H200"}
    date = "2026-03-01T09:05:00+00:00"
    found = facts(summary, adder_run.data, command="train", seconds=1.0, date=date)
    assert found["Device"] == words
