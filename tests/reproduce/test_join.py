"""Tables of several folders as one."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from torchadder.cli import main
from torchadder.reproduce import TABLES, make_plan
from torchadder.reproduce.join import join
from torchadder.reproduce.plan import ReproduceError
from torchadder.reproduce.running import reproduce
from written_runs import ADDER, CONV, write_run

RECORDED = Path(__file__).parents[2] / "results"
MNIST = TABLES["mnist"]
ACCURACIES = {(CONV, 0): 0.98, (CONV, 1): 0.99, (ADDER, 0): 0.97, (ADDER, 1): 0.985}


def written(output, rows, budgets=(2,), num_seeds=2, **overrides):
    """A table of runs that are written, not trained."""
    options = {"budgets": list(budgets), "num_seeds": num_seeds, "overrides": overrides}
    plan = make_plan(MNIST, output, rows=rows, **options)
    for job in plan.jobs:
        write_run(job, [0.5] * (job.epochs - 1) + [ACCURACIES[job.row.recipe, job.seed]])
    reproduce(plan, say=lambda text: None, command="torchadder reproduce mnist")
    return output


def cells(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def apart(tmp_path):
    """CNN and adder net, each trained in a folder of its own; only the tables were kept."""
    folders = [tmp_path / name for name in ("cnn", "adder")]
    for folder, row in zip(folders, ("lenet5bn_conv", "lenet5bn_adder"), strict=True):
        shutil.rmtree(written(folder, [row]) / "runs")
    return folders


def test_rows_of_two_folders_are_one_table(tmp_path, apart):
    results = join(MNIST, apart, tmp_path / "both", command="torchadder reproduce mnist --join")
    together = written(tmp_path / "together", ["lenet5bn_conv", "lenet5bn_adder"])
    for name in ("table.csv", "runs.csv"):
        assert (tmp_path / "both" / name).read_text() == (together / name).read_text()
    adder = results.lines[1]
    assert adder.gain is None  # the mnist table compares with the adder net, which is this row
    assert adder.spread("accuracy").mean == pytest.approx(97.75)
    text = (tmp_path / "both" / "table.md").read_text()
    assert f"joined from `{apart[0]}`, `{apart[1]}`, whose runs were made by torchadder 0" in text
    assert "trained on Abacus (1 thread)" in text
    assert (tmp_path / "both" / "table.png").stat().st_size > 10_000
    assert not (tmp_path / "both" / "runs").exists()


def test_budgets_of_two_folders_are_a_curve(tmp_path):
    rows = ["lenet5bn_conv", "lenet5bn_adder"]
    folders = [written(tmp_path / str(n), rows, budgets=[n]) for n in (2, 4)]
    results = join(MNIST, folders, tmp_path / "both")
    assert results.budgets == [2, 4]
    assert [line.num_finished for line in results.lines] == [2] * 4
    # Once more, in the other order: a joined table may be written anew.
    again = join(MNIST, folders[::-1], tmp_path / "both")
    assert [line.spread("accuracy") for line in again.lines] == [
        line.spread("accuracy") for line in results.lines
    ]
    assert json.loads((tmp_path / "both" / "joined.json").read_text())["folders"] == [
        str(folder) for folder in folders[::-1]
    ]


@pytest.mark.parametrize("name", ["cifar10_table", "mnist_table", "neudet_table", "awn_table"])
def test_a_recorded_table_joined_with_itself_is_that_table(tmp_path, name):
    recorded = RECORDED / name
    copy = shutil.copytree(recorded, tmp_path / "copy")
    table = TABLES[json.loads((recorded / "settings.json").read_text())["table"]]
    join(table, [recorded, copy], tmp_path / "both")
    for file in ("runs.csv", "table.csv"):
        got, want = (cells(folder / file) for folder in (tmp_path / "both", recorded))
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert one.keys() == other.keys()
            for key, value in other.items():
                try:
                    assert float(one[key]) == pytest.approx(float(value), rel=1e-4, abs=1e-4), key
                except ValueError:
                    assert one[key] == value, key


def break_run(folder):
    path = folder / "runs.csv"
    path.write_text(path.read_text().replace("98,", "98.5,", 1))


def other_table(folder):
    path = folder / "settings.json"
    path.write_text(path.read_text().replace('"mnist"', '"awn"'))


def other_rate(folder):
    path = folder / "settings.json"
    path.write_text(path.read_text().replace('"overrides": {}', '"overrides": {"optimizer.lr": 1}'))


def unknown_row(folder):
    path = folder / "runs.csv"
    path.write_text(path.read_text().replace("mnist_lenet5bn_conv", "mnist_lenet5bn_cnn"))


def no_number(folder):
    path = folder / "runs.csv"
    path.write_text(path.read_text().replace("finished,2", "finished,two"))


def no_columns(folder):
    (folder / "runs.csv").write_text("row\nlenet5bn_conv\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_run, r"runs\.csv, line 2: lenet5bn_conv, 2 epochs, seed 0 is another run in"),
        (other_table, r"settings\.json: the table is 'awn', not 'mnist'"),
        (other_rate, r"optimizer\.lr is 1 there and None in .*share their settings"),
        (unknown_row, r"runs\.csv, line 2: no run of table mnist: 'mnist_lenet5bn_cnn'"),
        (no_number, r"runs\.csv, line 2: no run of table mnist: .*'two'"),
        (no_columns, r"runs\.csv, line 2: no run of table mnist: 'recipe'"),
        (lambda folder: (folder / "runs.csv").unlink(), r"no table, runs\.csv is missing"),
        (lambda folder: (folder / "table.csv").unlink(), r"no table, table\.csv is missing"),
        (lambda folder: (folder / "settings.json").unlink(), r"no table, settings\.json is mi"),
        (lambda folder: (folder / "settings.json").write_text("{"), r"settings\.json: damaged"),
    ],
)
def test_what_does_not_agree_is_refused(tmp_path, apart, change, message):
    copy = shutil.copytree(apart[0], tmp_path / "copy")
    change(copy)
    with pytest.raises(ReproduceError, match=message) as caught:
        join(MNIST, [apart[0], copy], tmp_path / "both")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "both").exists()


def test_other_folders_are_not_overwritten(tmp_path, apart):
    with pytest.raises(ReproduceError, match="given twice"):
        join(MNIST, [apart[0], tmp_path / "adder" / ".." / "cnn"], tmp_path / "both")
    before = (apart[0] / "table.md").read_text()
    for taken in (apart[0], apart[0] / "table.md"):
        with pytest.raises(ReproduceError, match="holds no joined table; nothing in it is over"):
            join(MNIST, apart, taken)
    assert (apart[0] / "table.md").read_text() == before
    join(MNIST, apart, tmp_path / "both")
    (tmp_path / "both" / "mine.txt").write_text("mine")
    with pytest.raises(ReproduceError, match="holds no joined table"):
        join(MNIST, apart, tmp_path / "both")


def test_command(tmp_path, apart, capsys):
    folders = ",".join(map(str, apart))
    words = ["reproduce", "mnist", "--join", folders]
    assert main([*words, "--output", str(tmp_path / "both")]) == 0
    shown = capsys.readouterr().out
    assert "AdderNet" in shown
    assert f"table: {tmp_path / 'both' / 'table.md'}" in shown
    for options, message in (
        ([], "--join wants --output"),
        (["--output", "x", "--budget", "3"], "--join trains nothing: --budget has no meaning"),
        (["--output", "x", "--optimizer.lr", "1"], "--optimizer.lr has no meaning there"),
        (["--output", "x", "--join", str(apart[0])], "folders of at least two tables are wanted"),
    ):
        assert main([*words, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["reproduce", "detection-energy", "--join", folders]) == 2
    assert "--join has no meaning there" in capsys.readouterr().err
