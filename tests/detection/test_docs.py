"""The figures of docs/detection.md are those of results/."""

import csv
import itertools
import json
from pathlib import Path

import pytest

from torchadder.reproduce.writing import energy

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/detection.md").read_text(encoding="utf-8")
ROWS = {
    "conv, FPN": "conv",
    "conv, FPN, frozen BN": "conv_frozen",
    "conv, R-PAFPN": "conv_r_pafpn",
    "B, FPN of convolutions": "adder_b",
    "B+N, FPN": "adder_bn_fpn",
    "B+N, PAFPN": "adder_bn_pafpn",
    "B+N, PAFPN with shortcuts": "adder_bn_pafpn_shortcut",
    "**B+N, R-PAFPN**": "adder_bn",
    "B+N, R-PAFPN, clipped gradient": "adder_bn_clip",
    "B+N, R-PAFPN, frozen BN": "adder_bn_frozen",
}


def table(name):
    """Rows of a recorded table by their key."""
    with (ROOT / f"results/{name}_table/table.csv").open(newline="") as file:
        return {row["row"].removeprefix("fcos_r18_"): row for row in csv.DictReader(file)}


@pytest.mark.parametrize(("label", "row"), ROWS.items())
def test_figures_are_those_of_the_runs(label, row):
    (found,) = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith(f"| {label} |")
    ]
    wanted = []
    for name in ("neudet", "bccd"):
        recorded = table(name)[row]
        assert recorded["finished"] == recorded["seeds"]
        wanted += [f"{float(recorded[key]):.1f}" for key in ("ap", "ap50")]
        wanted += [energy(float(recorded["energy_pj"]))]
        wanted += [f"{float(recorded['seconds_per_epoch']):.0f}"]
    assert found[1:] == wanted


def test_every_row_stands_in_the_documentation():
    assert set(table("neudet")) == set(table("bccd")) == set(ROWS.values())


def test_scenes_of_digits_are_what_was_recorded():
    folder = ROOT / "results/digits_fcos_adder_bn"
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    text = " ".join(PAGE.split())
    ap50, ap = (100 * summary["metrics"][f"val_{name}"] for name in ("ap50", "ap"))
    assert f"reaches {ap50:.1f} % AP50, {ap:.1f} % AP on 200 held-out scenes" in text
    assert f"in {summary['seconds'] / 60:.1f} minutes on one thread of an AMD EPYC" in text
    first = next(n for n, row in enumerate(epochs) if float(row["val_ap50"]) >= 0.8)
    minutes = sum(float(row["seconds"]) for row in epochs[: first + 1]) / 60
    assert first == 2
    reached = 100 * float(epochs[first]["val_ap50"])
    assert f"{reached:.1f} % AP50 came with the third epoch, after {minutes:.1f} minutes" in text


def test_second_seeds_are_what_was_recorded():
    with (ROOT / "results/bccd_table/two_seeds/table.csv").open(newline="") as file:
        rows = {row["row"].removeprefix("fcos_r18_"): row for row in csv.DictReader(file)}
    text = " ".join(PAGE.split())
    for words, row in (
        ("conv", "conv"),
        ("B+N with FPN", "adder_bn_fpn"),
        ("with PAFPN and shortcuts", "adder_bn_pafpn_shortcut"),
        ("with R-PAFPN", "adder_bn"),
    ):
        assert rows[row]["finished"] == "2"
        mean, deviation = float(rows[row]["ap"]), float(rows[row]["ap_deviation"])
        assert f"{words} {mean:.1f} ± {deviation:.1f}" in text


def last(path):
    with (ROOT / "results" / path).open(newline="") as file:
        return list(csv.DictReader(file))[-1]


def test_rows_that_began_at_zero_are_what_was_recorded():
    def ap(row):
        return f"{100 * float(last(f'neudet_table/zero_start/{row}.csv')['val_ap']):.1f}"

    text = " ".join(PAGE.split())
    assert f"and it ended at {ap('adder_bn_pafpn')} AP" in text
    ends = [
        last(f"neudet_table/zero_start/{row}.csv") for row in ("adder_bn_pafpn", "adder_bn_fpn")
    ]
    stuck, usual = (float(end["train_bbox_regression_loss"]) for end in ends)
    assert f"its box loss ends at {stuck:.2f}, FPN's at {usual:.2f}" in text
    assert (
        f"conv {ap('conv')}, B {ap('adder_b')}, B+N with FPN {ap('adder_bn_fpn')}, with R-PAFPN "
        f"{ap('adder_bn')}, with the clipped gradient {ap('adder_bn_clip')}."
    ) in text


def test_zeros_are_what_was_recorded():
    def zeros(*rows):
        levels = ("c3", "c4", "c5")
        tables = itertools.product(("neudet", "bccd"), rows)
        ends = [last(f"{name}_table/metrics/{row}.csv") for name, row in tables]
        shares = [100 * float(end[f"val_zeros_{level}"]) for end in ends for level in levels]
        return f"{min(shares):.0f} to {max(shares):.0f} %"

    wanted = f"C3 to C5 hold {zeros('adder_bn')} zeros, the CNN's {zeros('conv')}."
    others = zeros("adder_bn_fpn", "adder_bn_pafpn", "adder_bn_pafpn_shortcut")
    assert f"{wanted} With other necks it is {others}." in PAGE
