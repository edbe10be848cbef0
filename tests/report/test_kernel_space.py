"""Distances against known values; diagnosis of nets and of a run."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg

import torchadder
from torchadder import models, recipes
from torchadder.cli import main
from torchadder.distill import PKKD
from torchadder.report import distances
from torchadder.report.diagnosis import write_diagnosis
from torchadder.report.kernel_space import Sample, compare_sides, sample_layers
from torchadder.report.kernel_space_figure import kernel_space
from torchadder.report.statistics import Fit, fit_laplace, fit_normal
from torchadder.report.style import LIGHT
from torchadder.training.diagnosis import open_pair

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pkkd():
    torch.manual_seed(0)
    return PKKD(models.lenet5_bn(conv="adder"), models.lenet5_bn(conv="conv"))


def sample(values, stage="before", side="student"):
    return Sample("conv2", side, side == "student", "features", stage, np.asarray(values, float))


def test_distribution_functions_by_hand():
    fit = Fit(1.0, 2.0, 0.0)
    assert distances.laplace_cdf([1.0, 3.0], fit) == pytest.approx([0.5, 1 - math.exp(-1) / 2])
    assert distances.normal_cdf([1.0, 3.0], fit) == pytest.approx([0.5, 0.8413447])
    points = distances.midpoints(9)
    for cdf, quantile in (
        (distances.laplace_cdf, distances.laplace_quantile),
        (distances.normal_cdf, distances.normal_quantile),
    ):
        assert cdf(quantile(points, fit), fit) == pytest.approx(points)


def test_distances_by_hand():
    assert distances.ks_to_fit([0.0, 1.0], [0.25, 0.5]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="2 values and 1 of their distribution function"):
        distances.ks_to_fit([0.0, 1.0], [0.5])
    assert distances.wasserstein_to_fit([4.0, 1.0], [0.0, 2.0]) == pytest.approx((1 + 2) / 2)
    assert distances.ks_between([0.0, 2.0], [1.0, 3.0]) == pytest.approx(0.5)
    assert distances.wasserstein_between([0.0, 4.0], [1.0, 2.0]) == pytest.approx((1 + 2) / 2)
    assert distances.standardised([1.0, 3.0]) == pytest.approx([-1, 1])
    with pytest.raises(ValueError, match="3 equal values"):
        distances.standardised([2.0, 2.0, 2.0])


@pytest.mark.parametrize(("name", "other"), [("laplace", "normal"), ("normal", "laplace")])
def test_a_sample_is_nearest_to_its_own_kind(name, other):
    row = sample(getattr(RANDOM, name)(3.0, 5.0, 50_000)).describe()
    assert row["nearer"] == name
    # The KS distance of 50,000 draws to their own distribution is below 1.63 / sqrt(n) in 99 %.
    assert row[f"{name}_ks"] < 1.63 / math.sqrt(50_000)
    assert row[f"{other}_ks"] > 0.03
    assert row[f"{name}_w1"] < 0.03 < row[f"{other}_w1"]


def test_w1_to_a_fit_of_the_other_kind_is_the_integral():
    # Laplace with b = 1 / sqrt(2) against the standard normal: integral of |F - G| = 0.12.
    grid = np.linspace(-20, 20, 400_001)
    gap = np.abs(
        distances.laplace_cdf(grid, Fit(0, math.sqrt(0.5), 0))
        - distances.normal_cdf(grid, Fit(0, 1, 0))
    )
    want = gap.mean() * 40
    draws = distances.laplace_quantile(distances.midpoints(200_000), Fit(0, math.sqrt(0.5), 0))
    got = distances.wasserstein_to_fit(
        draws, distances.normal_quantile(distances.midpoints(200_000), Fit(0, 1, 0))
    )
    assert got == pytest.approx(want, rel=1e-3)
    assert fit_laplace(draws).scale == pytest.approx(math.sqrt(0.5), rel=1e-3)
    assert fit_normal(draws).scale == pytest.approx(1, rel=1e-3)


def test_sides_are_compared_after_standardising():
    values = RANDOM.normal(0, 1, 1000)
    (row,) = compare_sides([sample(values), sample(7 - 3 * -values, side="teacher")])
    assert row["ks"] == pytest.approx(0, abs=1e-2)
    assert row["w1"] == pytest.approx(0, abs=1e-9)
    (row,) = compare_sides([sample(values), sample(np.exp(values), side="teacher")])
    assert row["w1"] > 0.3
    assert compare_sides([sample(values)]) == []


def test_samples_of_two_nets(pkkd):
    images = torch.randn(16, 1, 28, 28)
    samples = sample_layers(pkkd, images, max_values=5000)
    keys = [(s.layer, s.side, s.kind, s.stage) for s in samples]
    assert len(set(keys)) == len(keys) == 3 * 2 * (3 + 2)
    assert all(s.is_adder == (s.side == "student") for s in samples)
    assert max(len(s.values) for s in samples) == 5000
    by_key = dict(zip(keys, samples, strict=True))
    with torch.no_grad():
        net = pkkd.student
        x = net.pool(net.relu(net.bn1(net.conv1(images))))
        output = net.conv2(x)
    centred = output - output.mean((0, 2, 3), keepdim=True)
    got = by_key["conv2", "student", "features", "before"].values
    assert got.std() == pytest.approx(float(centred.std()), rel=0.05)
    # Without training the scale is that of the batch: 2 sigma^2 is the mean absolute deviation.
    kernel = torch.exp((centred / centred.abs().mean()).clamp(-6, 6))
    got = by_key["conv2", "student", "features", "kernel"].values
    assert np.median(got) == pytest.approx(float(kernel.median()), rel=0.1)
    weights = by_key["conv2", "teacher", "weights", "before"].values
    assert np.sort(weights) == pytest.approx(
        np.sort(pkkd.teacher.conv2.weight.detach().numpy().ravel())
    )
    pairs = by_key["conv2", "student", "weights", "kernel"].values
    assert len(pairs) == 16 * 15 // 2
    filters = pkkd.student.conv2.weight.detach().flatten(1)
    rows, columns = np.triu_indices(16, 1)
    exponents = -(filters[rows] - filters[columns]).abs().sum(1)
    exponents -= exponents.mean()
    assert np.log(pairs) == pytest.approx(
        (exponents / exponents.abs().mean()).numpy(), rel=1e-3, abs=1e-3
    )


def test_samples_are_made_with_the_kernels_of_the_run():
    nets = [models.lenet5_bn(conv=kind) for kind in ("adder", "conv")]
    pkkd = PKKD(*nets, kernel="gaussian", exponent_limit=1.5)
    samples = sample_layers(pkkd, torch.randn(4, 1, 28, 28), ["conv2"])
    behind = [s for s in samples if s.stage == "kernel"]
    assert len(behind) == 4
    for one in behind:
        assert np.abs(np.log(one.values)).max() == pytest.approx(1.5, rel=1e-5)
        assert 0 < one.describe()["clamped"] < 1
    # The adder layer's filters are compared by their products, as the Gaussian kernel has it.
    filters = nets[0].conv2.weight.detach().flatten(1)
    products = (filters @ filters.T).numpy()[np.triu_indices(16, 1)]
    products -= products.mean()
    exponents = (products / np.abs(products).mean()).clip(-1.5, 1.5)
    (got,) = (s.values for s in behind if (s.side, s.kind) == ("student", "weights"))
    assert np.log(got) == pytest.approx(exponents, rel=1e-3, abs=1e-3)


def test_share_at_the_bounds():
    values = [math.exp(6), math.exp(-6), 1.0, 2.0]
    assert sample(values, "kernel").describe()["clamped"] == 0.5
    assert sample(values).describe()["clamped"] is None


@pytest.mark.parametrize("limit", [1e-3, 0.5, 6.0, 30.0])
def test_share_at_bounds_of_any_size(limit):
    """As the kernel computes them, in float32; beside the bounds values well inside of them."""
    exponents = torch.tensor([1.0, -1.0, 0.9, -0.99]) * limit
    values = exponents.clamp(-limit, limit).exp().double().numpy()
    one = Sample("conv2", "student", True, "features", "kernel", values, limit)
    assert one.describe()["clamped"] == 0.5


def test_figure_shows_whole_curves_and_labels_apart():
    rng = np.random.default_rng(1)
    wide, flat = 400 * rng.laplace(size=5000), rng.uniform(-1, 1, 5000)
    sides = (("student", wide), ("teacher", flat))
    samples = [sample(values, "before", side) for side, values in sides]
    samples += [sample(np.exp(np.clip(v, -6, 6)), "kernel", side) for side, v in sides]
    figure = kernel_space(samples, "features", LIGHT)
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == 4
    for axes in figure.axes:
        for line in axes.get_lines():
            assert line.get_ydata().max() < axes.get_ylim()[1]
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = [tick.label1.get_window_extent() for tick in ticks]
        assert len(boxes) > 1
        for left, right in itertools.pairwise(boxes):
            assert left.x1 + 5 < right.x0


def test_files(pkkd, tmp_path):
    samples = sample_layers(pkkd, torch.randn(8, 1, 28, 28), ["conv4"])
    report = write_diagnosis(tmp_path / "new", samples, {"student": "run"}, "a command")
    assert report == json.loads((tmp_path / "new/diagnosis.json").read_text())
    assert {"facts", "shapes", "student_teacher", "date", "command"} <= set(report)
    with (tmp_path / "new/shapes.csv").open() as file:
        assert [row["layer"] for row in csv.DictReader(file)] == ["conv4"] * 10
    for name in ("features", "weights"):
        assert (tmp_path / f"new/kernel_space_{name}.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no layer to diagnose"):
        write_diagnosis(tmp_path, [], {})


def test_command_on_a_distilled_run(pkkd_run, capsys):
    folder = pkkd_run.folder
    assert main(["diagnose", str(folder), "--images", "32", "--layers", "conv?"]) == 0
    assert "conv4" in capsys.readouterr().out
    report = json.loads((folder / "diagnosis/diagnosis.json").read_text())
    assert report["facts"]["num_images"] == 32
    assert {row["layer"] for row in report["shapes"]} == {"conv2", "conv3", "conv4"}


def test_command_on_two_runs(adder_run, tmp_path, capsys):
    assert main(["diagnose", str(adder_run.folder)]) == 2
    assert "method supervised has no teacher" in capsys.readouterr().err
    words = [str(adder_run.folder), "--teacher", str(adder_run.folder), "--images", "16"]
    assert main(["diagnose", *words, "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out/diagnosis.json").read_text())["student_teacher"]
    assert all(row["w1"] == 0 for row in rows if row["stage"] != "mapped")


def test_nets_of_different_depths_are_compared_where_they_agree(tmp_path):
    folders = [tmp_path / net for net in ("resnet20", "resnet32")]
    recipe = recipes.load("mnist_lenet5bn_adder").to_dict()
    for folder, kind in zip(folders, ("adder", "conv"), strict=True):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
        net = models.build(folder.name, conv=kind, in_channels=1)
        torchadder.save(net, folder / "checkpoints" / "last.safetensors")
    pkkd, _ = open_pair(*folders)
    assert len(pkkd.taps) == 20
    assert {name.split(".")[1] for name in pkkd.taps} == {"0", "1", "2"}
    deeper, _ = open_pair(*reversed(folders))
    assert deeper.taps == pkkd.taps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "'nowhere': no run folder, config.yaml is missing"),
        (["nowhere", "--weights", "first"], "last or best is wanted"),
        (["nowhere", "--images", "1"], "at least 2 are wanted"),
    ],
)
def test_bad_input(words, message, capsys):
    assert main(["diagnose", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
