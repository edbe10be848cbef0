"""What a table says: means, spreads, differences, gains; and its three forms."""

import csv
import math

import pytest

from torchadder.reproduce import TABLES, Row, Table, make_plan
from torchadder.reproduce.drawing import draw
from torchadder.reproduce.results import Spread, collect
from torchadder.reproduce.tables import Printed
from torchadder.reproduce.writing import markdown, write_csv
from written_runs import ADDER, CONV, write_run

ACCURACIES = {CONV: [0.98, 0.99, 0.97], ADDER: [0.97, 0.985, 0.975]}
ORIGIN = {"command": "torchadder reproduce x", "date": "today", "versions": {"torch": "2"}}


@pytest.fixture
def table(tmp_path):
    rows = (
        Row(CONV, "CNN", "LeNet-5-BN", Printed(99.4, "A paper", 1)),
        Row(ADDER, "AdderNet", "LeNet-5-BN", baseline=CONV),
    )
    return Table("mine", "Mine", 30, rows, "A note.")


@pytest.fixture
def results(table, tmp_path):
    plan = make_plan(table, tmp_path / "out", budgets=[2], num_seeds=3)
    for job in plan.jobs:
        write_run(job, [0.999, ACCURACIES[job.row.recipe][job.seed]], teacher=0.5, seconds=3.0)
    return collect(table, plan.jobs)


def test_mean_and_sample_deviation():
    spread = Spread((1.0, 2.0, 4.0))
    assert spread.mean == pytest.approx(7 / 3)
    # ((4/3)^2 + (1/3)^2 + (5/3)^2) / 2 = 42 / 18
    assert spread.deviation == pytest.approx(math.sqrt(42 / 18))
    assert Spread((3.0,)).deviation is None


def test_a_line_is_the_mean_of_its_seeds_at_the_last_epoch(results):
    conv, adder = results.lines
    assert conv.spread("accuracy").mean == pytest.approx(98.0)
    assert conv.spread("accuracy").deviation == pytest.approx(1.0)
    assert conv.difference == pytest.approx(98.0 - 99.4)
    assert adder.difference is None
    assert adder.spread("teacher_accuracy").mean == pytest.approx(50.0)
    assert conv.spread("seconds").mean == pytest.approx(3.0)
    assert conv.runs[0].best_accuracy == 0.999


def test_gains_are_taken_seed_by_seed(results):
    conv, adder = results.lines
    assert conv.gain is None
    assert adder.gain.values == pytest.approx((-1.0, -0.5, 0.5))
    assert adder.gain.mean == pytest.approx(-1 / 3)
    # Paired, the spread is that of the differences: 0.764, not that of either row.
    assert adder.gain.deviation == pytest.approx(math.sqrt((4 / 9 + 1 / 36 + 25 / 36) / 2))


def test_seeds_without_a_partner_are_left_out_of_the_gain(table, tmp_path):
    plan = make_plan(table, tmp_path / "out", budgets=[1], num_seeds=2)
    for job in plan.jobs[:3]:  # conv 0, adder 0, conv 1
        write_run(job, [ACCURACIES[job.row.recipe][job.seed]])
    _, adder = collect(table, plan.jobs).lines
    assert adder.gain.values == pytest.approx((-1.0,))
    assert adder.status == "1 of 2 seeds finished"


def test_csv(results, tmp_path):
    write_csv(tmp_path, results)
    with (tmp_path / "table.csv").open() as file:
        conv, adder = csv.DictReader(file)
    assert float(conv["accuracy"]) == pytest.approx(98.0)
    assert float(conv["accuracy_deviation"]) == pytest.approx(1.0)
    assert (conv["printed"], conv["baseline"], conv["gain"]) == ("99.4", "", "")
    assert float(adder["gain"]) == pytest.approx(-1 / 3, rel=1e-5)
    assert float(adder["best_accuracy"]) == pytest.approx(99.9)
    assert (adder["epochs"], adder["seeds"], adder["finished"]) == ("2", "3", "3")
    with (tmp_path / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [float(run["accuracy"]) for run in runs[:3]] == [98.0, 99.0, 97.0]
    assert {run["device"] for run in runs} == {"Abacus"}


def test_markdown(results):
    text = markdown(results, ORIGIN)
    assert "## 2 epochs" in text
    assert "| CNN | 98.00 ± 1.00 | 99.4 | \N{MINUS SIGN}1.40 | - | 50.00 ± 0.00 | 3/3 |" in text
    assert "| AdderNet | 97.67 ± 0.76 | - | - | \N{MINUS SIGN}0.33 ± 0.76 |" in text
    assert "Gains are over the row CNN" in text
    for words in ("Budget: 2 epochs", "Seeds: 0, 1, 2", "A note.", "`torchadder reproduce x`"):
        assert words in text
    assert "Abacus (beads, 1 thread)" in text
    assert "printed figures: A paper" in text


def test_what_is_not_there_is_a_dash(table, tmp_path):
    plan = make_plan(table, tmp_path / "out", budgets=[2])
    write_run(plan.jobs[0], [0.5], status="interrupted")
    results = collect(table, plan.jobs, failures={plan.jobs[1].folder: "out of memory"})
    text = markdown(results, ORIGIN)
    assert "| CNN | - | 99.4 | - | - | - | 0/1 | - | - | - | - |" in text
    assert "lenet5bn_adder, 2 epochs, seed 0: failed after 0 epochs: out of memory" in text
    assert draw(tmp_path, results) == ()


def test_top5_stands_in_the_table_of_imagenet(tmp_path):
    plan = make_plan(TABLES["imagenet"], tmp_path / "out", budgets=[1], rows=["resnet18_conv"])
    write_run(plan.jobs[0], [0.7])
    text = markdown(collect(plan.table, plan.jobs), ORIGIN)
    assert "| row | accuracy | top-5 | printed (top-5) |" in text
    assert "70.00 | 99.90 | 69.8 (89.1) | +0.20 |" in text


def texts(figure):
    return {text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))}


def test_figures(results, table, tmp_path):
    from torchadder.report.style import LIGHT
    from torchadder.reproduce.drawing import curves, dots

    paths = draw(tmp_path, results)
    assert [path.name for path in paths] == ["table.png", "table-dark.png"]
    assert all(path.stat().st_size > 5000 for path in paths)
    figure = dots(results, LIGHT)
    assert {"CNN", "AdderNet", "LeNet-5-BN"} <= texts(figure)
    drawn = [c.get_offsets().data for c in figure.axes[0].collections if len(c.get_offsets()) == 3]
    assert sorted(drawn[0][:, 0]) == [97.0, 98.0, 99.0]
    plan = make_plan(table, tmp_path / "out", budgets=[1, 2], num_seeds=3)
    for job in plan.jobs:
        write_run(
            job, [ACCURACIES[job.row.recipe][job.seed] - 0.1 * (job.epochs == 1)] * job.epochs
        )
    figure = curves(collect(table, plan.jobs), LIGHT)
    line = figure.axes[0].get_lines()[0]
    assert list(line.get_xdata()) == [1, 2]
    assert list(line.get_ydata()) == pytest.approx([88.0, 98.0])
    assert {"CNN", "AdderNet", "budget in epochs"} <= texts(figure)
