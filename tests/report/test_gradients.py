"""The command that compares gradients, its files and its figure."""

import csv
import json

import pytest

from torchadder.cli import main
from torchadder.distill import Pull
from torchadder.report.gradients import gradients, write_gradients
from torchadder.report.style import LIGHT


def pulls(*ratios):
    found = []
    for index, ratio in enumerate(ratios):
        found.append(Pull(f"conv{index}", "ce", 1.0, 1.0, 1.0))
        found.append(Pull(f"conv{index}", "mid", ratio, ratio, 0.5))
    return found


def test_files_and_medians(tmp_path):
    report = write_gradients(tmp_path, pulls(1.0, 8.0, 2.0), {"run": "here"}, "torchadder x")
    assert report["median"] == {"mid": {"ratio": 2.0, "cosine": 0.5}}
    assert json.loads((tmp_path / "gradients.json").read_text()) == report
    with (tmp_path / "gradients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["term"] for row in rows] == ["ce", "mid"] * 3
    names = {"gradients.json", "gradients.csv", "gradients.png", "gradients-dark.png"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_json_without_infinity(tmp_path):
    """Readers of JSON other than Python's refuse the word."""
    write_gradients(tmp_path, pulls(float("inf")), {})
    text = (tmp_path / "gradients.json").read_text()
    report = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert report["median"]["mid"]["ratio"] is None
    assert report["gradients"][1]["ratio"] is None


@pytest.mark.parametrize("ratios", [(1.0, 8.0, 0.0), (float("inf"),), tuple(range(1, 30))])
def test_figure(ratios):
    (axes,) = gradients(pulls(*ratios), LIGHT).axes
    line, labels = axes.get_lines()
    assert line.get_label() == "features"
    shown = [value for value in line.get_ydata() if value == value]
    assert shown == [ratio for ratio in ratios if 0 < ratio < float("inf")]
    assert labels.get_label() == "labels"
    named = [text.get_text() for text in axes.get_xticklabels()]
    assert not any("$" in text.get_text() for text in axes.get_yticklabels())
    assert ("conv0" in named) == (len(ratios) <= 10)


def test_command(pkkd_run, tmp_path, capsys):
    words = ["diagnose", str(pkkd_run.folder), "--gradients", "--images", "16"]
    assert main([*words, "--output", str(tmp_path), "--layers", "conv?"]) == 0
    shown = capsys.readouterr().out
    assert "soft labels" in shown
    assert "conv4" in shown
    report = json.loads((tmp_path / "gradients.json").read_text())
    assert report["facts"] == {"run": str(pkkd_run.folder), "weights": "last", "num_images": 16}
    assert {row["layer"] for row in report["gradients"]} == {f"conv{i}" for i in (1, 2, 3, 4)}
    assert {row["term"] for row in report["gradients"]} == {"ce", "kd", "mid"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stability"], "--stability and --gradients: one of them is wanted"),
        (["--teacher", "x"], "--teacher: no option of --gradients"),
        (["--layers", "stage*"], "fits 'stage*'; there are conv1, conv2"),
    ],
)
def test_bad_input(pkkd_run, words, message, capsys):
    assert main(["diagnose", str(pkkd_run.folder), "--gradients", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_without_a_teacher(adder_run, capsys):
    assert main(["diagnose", str(adder_run.folder), "--gradients"]) == 2
    assert "method supervised has no teacher" in capsys.readouterr().err
