"""The tables of docs/robustness.md are those of results/."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results/robustness_cifar10"
PAGE = (ROOT / "docs/robustness.md").read_text(encoding="utf-8")

COLUMNS = [
    ("conv", "true"),
    ("adder", "surrogate"),
    ("adder", "sign"),
    ("adder_awn", "surrogate"),
    ("adder_awn", "sign"),
]
SOURCES = {"conv": "adder", "adder": "conv", "adder_awn": "conv"}
ATTACKS = {"Square-300": "square", "MI-FGSM-5": "mim5", "R-FGSM-5": "rfgsm5"}


def measured(folder, statistics, row, gradient, epsilon=None):
    """The accuracy in a recorded file; attacks without a gradient serve every gradient."""
    with (RESULTS / folder / "robustness.csv").open() as file:
        (found,) = [
            line["accuracy"]
            for line in csv.DictReader(file)
            if (line["row"], line["batch_norm"]) == (row, statistics)
            and line["gradient"] in (gradient, "none")
            and (epsilon is None or float(line["epsilon"]) == epsilon)
        ]
    return f"{100 * float(found):.1f}"


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_tables_are_those_of_the_results(statistics):
    table = PAGE.partition(f"| {statistics} BN |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == {"running": 7, "batch": 11}[statistics]
    for line in table:
        label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.split(", ", label):
            radius = re.fullmatch(r"PGD at (\d)/255", name)
            row = "curve" if radius else ATTACKS.get(name, name.lower().replace("-", ""))
            epsilon = int(radius[1]) / 255 if radius else None
            for (net, gradient), cell in zip(COLUMNS, cells, strict=True):
                if name == "transfer" and gradient == "sign":
                    assert not cell
                    continue
                folder = f"{net}_from_{SOURCES[net]}" if name == "transfer" else net
                assert cell == measured(folder, statistics, row, gradient, epsilon), (name, net)
