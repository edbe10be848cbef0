"""The figures of docs/awn.md are those of results/, and its example runs."""

import csv
import json
import re
import statistics
from pathlib import Path

import pytest
import torch

import torchadder as ta
from torchadder.awn import AwnConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/awn.md").read_text(encoding="utf-8")
DIGITS, CIFAR = PAGE.split("### CIFAR-10")
ROWS = {
    "CNN": "conv",
    "AdderNet": "adder",
    "AWN, the defaults": "adder_awn",
    "axis: layer": "adder_awn_layeraxis",
    "scale: layer": "adder_awn_layerscale",
    "scale: fixed": "adder_awn_fixed",
    "init: 0.5": "adder_awn_init0.5",
    "init: keep (about 1)": "adder_awn_keep",
    "init: 4": "adder_awn_init4",
    "decay: false": "adder_awn_nodecay",
}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(("label", "row"), ROWS.items())
def test_figures_are_those_of_the_runs(label, row):
    lines = [cells(line) for line in DIGITS.splitlines() if "±" in line or "| CNN |" in line]
    (found,) = [line for line in lines if re.sub(r"[*`]", "", line[0]) == label]
    runs = []
    for path in sorted((ROOT / "results/awn_table/metrics").glob(f"mnist_lenet5bn_{row}-5-*.csv")):
        with path.open(newline="") as file:
            runs.append([100 * float(line["val_accuracy"]) for line in csv.DictReader(file)])
    assert len(runs) == 3
    means = [statistics.mean(values) for values in zip(*runs, strict=True)]
    assert found[1:5] == [f"{mean:.1f}" for mean in means[:4]]
    deviation = statistics.stdev([run[4] for run in runs])
    assert found[5] == f"{means[4]:.2f} ± {deviation:.2f}"
    text = (ROOT / "results/awn_table/table.md").read_text(encoding="utf-8")
    assert f"| {found[5]} | - | - | {found[6]} |" in text


@pytest.mark.parametrize(
    ("label", "row"), [("CNN", "conv"), ("AdderNet", "adder"), ("AdderNet + AWN", "adder_awn")]
)
def test_figures_of_cifar10_are_those_of_the_runs(label, row):
    (found,) = [cells(line) for line in CIFAR.splitlines() if line.startswith(f"| {label} |")]
    with (ROOT / f"results/cifar10_table_20/metrics/{row}.csv").open(newline="") as file:
        values = [100 * float(line["val_accuracy"]) for line in csv.DictReader(file)]
    assert found[1:-1] == [f"{values[epoch - 1]:.1f}" for epoch in (1, 5, 10, 15, 18)]
    assert found[-1] == f"{values[19]:.2f}"


def test_stability_on_cifar10_is_what_was_recorded():
    report = json.loads((ROOT / "results/stability_cifar10/stability.json").read_text())
    ends = [run["mean_at_end"] for run in report["runs"]]
    for quantity, label in (
        ("weight_var", "variance of the weights"),
        ("output_var", "variance of the outputs in a channel"),
        ("output_var_total", "variance of the outputs over all channels"),
        ("bn_mean_step_std", "step of the running means, in standard deviations"),
        ("bn_var_step", "step of the running variances, relative"),
    ):
        (found,) = [cells(line) for line in CIFAR.splitlines() if line.startswith(f"| {label} |")]
        written = [float(cell.replace(",", "")) for cell in found[1:]]
        # Two or three digits are written.
        assert written == pytest.approx([end[quantity] for end in ends], rel=0.04), label


def test_variances_are_those_of_the_runs():
    ends = {}
    for row in ("adder", "adder_awn", "adder_awn_layerscale"):
        path = ROOT / f"results/awn_stability/mnist_lenet5bn_{row}.csv"
        with path.open(newline="") as file:
            values = [
                float(line["value"])
                for line in csv.DictReader(file)
                if line["step"] == "126" and line["quantity"] == "weight_var"
                if line["layer"] in ("conv2", "conv3", "conv4")
            ]
        assert len(values) == 3
        ends[row] = f"between {min(values):.1f} and {max(values):.1f}"
    text = " ".join(PAGE.split())
    assert f"from 1 to {ends['adder']} within two epochs" in text
    assert f"begins at 4 and is {ends['adder_awn']} then" in text
    assert f"from 4 to {ends['adder_awn_layerscale']} in the same two" in text


def test_speed_is_what_the_benchmark_wrote():
    report = json.loads((ROOT / "results/bench_awn.json").read_text(encoding="utf-8"))
    text = " ".join(PAGE.split())
    assert f"with {report['batch']} images on one thread" in text
    assert f"{report['plain_ms']:.0f} ms plain and {report['awn_ms']:.0f} ms normalised" in text
    assert f"median ratio {report['ratio']:.3f} of {report['turns']} pairs" in text
    assert f"({report['ratio_of_fastest']:.3f} of the fastest steps" in text
    share = report["norm_ms"] / report["plain_ms"]
    assert f"{report['norm_ms']:.1f} ms, {100 * share:.1f} % of that step" in text


def test_the_defaults_are_in_bold():
    defaults = AwnConfig()
    for key in ("axis", "scale", "init", "eps", "decay"):
        value = getattr(defaults, key)
        text = {1e-6: "1e-6", True: "true"}.get(value, value)
        assert re.search(rf"^\| `{key}` \|.*\*\*`?{text}`?\*\*", PAGE, re.MULTILINE), key


def test_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    exec(compile(code, "docs/awn.md", "exec"), names)
    loaded = ta.load("net.safetensors")
    assert torch.equal(loaded.layer1[0].conv1.weight, names["net"].layer1[0].conv1.weight)
