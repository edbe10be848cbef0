"""The page on the stability of runs: its numbers are those of the runs, bad input is one line."""

import csv
import json
import math
import shutil

import pytest

from html_page import read_page
from short_runs import recipe
from torchadder import cli
from torchadder.report.run_folder import RunFolder
from torchadder.report.stability import _labels, geometric_mean, number, write_stability
from torchadder.stability.table import read_table
from torchadder.training import fit

INNER = ["conv2", "conv3", "conv4"]
FIGURES = [
    *("weight_var", "output_var", "bn_mean_step_std", "bn_var_step", "grad_norm"),
    "predicted_and_measured",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Short runs of the CNN, the adder net and the adder net with normalised weights."""
    parent = tmp_path_factory.mktemp("runs")
    small = {"epochs": 1, "trainer.limit_val_batches": 1, "trainer.record_stability": 1}
    for name, method, overrides in (
        ("cnn", "conv", {}),
        ("adder", "adder", {}),
        ("awn", "adder", {"model.weight_norm": "adaptive"}),
    ):
        fit(recipe(method, **small | overrides), output=parent / name)
    return [parent / name for name in ("cnn", "adder", "awn")]


@pytest.fixture(scope="module")
def written(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("page") / "out"
    report = write_stability(output, folders, num_images=16, command="torchadder diagnose")
    return output, report


def test_numbers_are_those_of_the_runs(folders, written):
    output, report = written
    assert json.loads((output / "stability.json").read_text()) == report
    assert [run["label"] for run in report["runs"]] == ["CNN", "Adder net", "Adder net + AWN"]
    assert report["command"] == "torchadder diagnose"
    for folder, run in zip(folders, report["runs"], strict=True):
        rows = read_table(folder / "stability.csv")
        last = max(row[0] for row in rows)
        assert last == 3  # of 4 steps, of which the last tenth is one
        for quantity in ("output_var", "weight_var", "bn_mean_step_std", "grad_norm_used"):
            ends = {row[1]: row[3] for row in rows if row[0] == last and row[2] == quantity}
            want = {layer: ends[layer] for layer in INNER}
            assert run["at_end"][quantity] == want
            mean = math.prod(want.values()) ** (1 / 3)
            assert run["mean_at_end"][quantity] == pytest.approx(mean, rel=1e-9)
        assert [layer["layer"] for layer in run["predictions"]] == INNER
        for layer in run["predictions"]:
            assert layer["kind"] == ("conv" if folder.name == "cnn" else "adder")
            # After a few steps running statistics are far off, and layers may be dead.
            assert layer["measured"] >= 0
            if folder.name == "cnn" or layer["layer"] == "conv2":
                assert 0.7 < layer["correlated"] / layer["measured"] < 1.3
    with (output / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows[::3]] == ["CNN", "Adder net", "Adder net + AWN"]
    assert float(rows[4]["measured"]) == report["runs"][1]["predictions"][1]["measured"]


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    model = {"conv": "adder", "weight_norm": None}
    config = {"model": model, "method": "supervised"}
    paths = [tmp_path / name for name in ("a/seed0", "b/seed0", "b/seed1")]
    runs = [RunFolder(path, config, [], {}) for path in paths]
    runs.append(RunFolder(paths[0], config | {"model": model | {"conv": "conv"}}, [], {}))
    assert _labels(runs) == [
        "Adder net (a/seed0)",
        "Adder net (b/seed0)",
        "Adder net (seed1)",
        "CNN",
    ]


def test_page(written):
    output, report = written
    page = read_page(output / "stability.html")
    assert page.headings == [
        "At the end of training",
        "Weights",
        "Outputs before batch norm",
        "Movement of batch norm's statistics",
        "Gradients",
        "Predicted and measured",
        "Where these numbers come from",
    ]
    assert len(page.images) == len(FIGURES)
    for name in FIGURES:
        assert (output / f"{name}.png").stat().st_size > 5000
        assert (output / f"{name}-dark.png").is_file()
    conv, adder, awn = (run["mean_at_end"]["output_var"] for run in report["runs"])
    cells = [conv, adder, adder / conv, awn, awn / conv]
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["Variance of the outputs in a channel"] == [number(value) for value in cells]
    assert f"outputs vary {number(adder / conv)} times (Adder net)" in page.text
    assert "Adder net + AWN against Adder net: the variance of the weights is" in page.text
    first = report["runs"][1]["predictions"][0]
    assert rows["1. conv2"][0] == f"{first['num_taps']}"


def test_command_and_two_runs_of_a_kind(folders, tmp_path, capsys):
    other, output = tmp_path / "adder_too", tmp_path / "out"
    shutil.copytree(folders[1], other)
    argv = ["diagnose", "--stability", str(folders[1]), str(other), "--images", "8"]
    assert cli.main([*argv, "--threads", "1", "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "Variance of the weights" in out
    assert f"page: {output / 'stability.html'}" in out
    report = json.loads((output / "stability.json").read_text())
    labels = [run["label"] for run in report["runs"]]
    assert labels == ["Adder net (adder)", "Adder net (adder_too)"]
    assert "outputs vary 1.00 times" in (output / "stability.html").read_text()


def fails(capsys, *argv):
    assert cli.main(["diagnose", *map(str, argv)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix("torchadder: error: ").strip()


def test_bad_input(folders, tmp_path, capsys):
    conv, adder, _ = folders
    assert fails(capsys, "--stability", tmp_path) == (
        f"{str(tmp_path)!r} is no folder of a finished run: no config.yaml"
    )
    copy = tmp_path / "copy"
    shutil.copytree(adder, copy)
    table = copy / "stability.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if ",output" not in line))
    assert "no outputs in front of a batch norm were measured" in fails(capsys, "--stability", copy)
    table.write_text("".join(line for line in lines if ",conv1," in line or "step," in line))
    assert "none of its layers is an adder layer" in fails(capsys, "--stability", copy)
    table.unlink()
    assert "has no stability.csv; train with --trainer.record_stability" in fails(
        capsys, "--stability", adder, copy
    )
    shutil.copy(adder / "stability.csv", table)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("source: mnist", "source: elsewhere"))
    assert "runs of the same images are wanted" in fails(capsys, "--stability", adder, copy)
    assert fails(capsys, conv, adder) == "2 runs: one is wanted, or --stability to compare them"
    assert fails(capsys, "--stability", conv, "--layers", "x") == (
        "--layers: no option of --stability"
    )
    assert fails(capsys, "--stability", conv, "--images", 1) == "--images 1: at least 2 are wanted"


def test_numbers_in_words():
    assert geometric_mean([2.0, 8.0, 0.0, math.inf]) == pytest.approx(4)
    assert geometric_mean([0.0]) is None
    assert [number(value) for value in (1234567.0, 0.01234, 12.3456, 0.0, 1.234e-7, 999.9)] == [
        *("1,230,000", "0.0123", "12.3", "0", "1.23e-07", "1,000")
    ]
