"""Figures of docs/stability.md are those of the functions and of results/."""

import json
import math
import re
from pathlib import Path

import pytest

from torchadder.report.stability import geometric_mean, number
from torchadder.stability import (
    QUANTITIES,
    Laplace,
    Normal,
    adder_output_moments,
    conv_output_moments,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/stability.md").read_text(encoding="utf-8")


def rows(start):
    """The cells of each table row that begins with a text, without it."""
    lines = [line for line in PAGE.splitlines() if line.startswith(f"| {start} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")[1:]] for line in lines]


@pytest.mark.parametrize(
    ("start", "moments"),
    [
        ("adder, normal and normal", adder_output_moments(Normal(), Normal(), 1)),
        (
            "adder, Laplace and Laplace",
            adder_output_moments(Laplace(0, math.sqrt(0.5)), Laplace(0, math.sqrt(0.5)), 1),
        ),
        ("convolution", conv_output_moments(Normal(), Normal(), 1)),
    ],
)
def test_variances_of_one_tap(start, moments):
    values = (moments.data_variance, moments.filter_variance, moments.variance / 2)
    assert rows(start) == [[f"{value:.3f}" for value in values]]


@pytest.mark.parametrize(
    ("start", "key"),
    [
        ("six numbers a layer", "theory"),
        ("each tap's distribution, independent", "independent"),
        ("with the taps' covariances", "correlated"),
    ],
)
def test_predictions_are_those_of_the_results(start, key):
    want = []
    for folder in ("stability_digits", "stability_cifar10"):
        report = json.loads((ROOT / f"results/{folder}/stability.json").read_text())
        shares = [
            [one[key] / one["measured"] for one in run["predictions"]] for run in report["runs"]
        ]
        want.append([number(geometric_mean(share)) for share in shares])
    assert rows(start) == want


def test_cost_is_what_the_benchmark_wrote():
    report = json.loads((ROOT / "results/bench_stability.json").read_text())
    assert f"{report['share_of_all_steps']:.2%}".replace("%", " %") in PAGE
    assert (report["model"], report["batch"], report["every"]) == ("resnet20", 256, 50)


def test_every_quantity_is_described():
    described = set(re.findall(r"`((?:weight|output|bn|grad)_\w+)`", PAGE))
    assert described == set(QUANTITIES)
