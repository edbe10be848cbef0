"""Tables of several folders as one."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from torchadder.cli import main
from torchadder.reproduce import TABLES, drawing, make_plan
from torchadder.reproduce.join import join
from torchadder.reproduce.plan import ReproduceError
from torchadder.reproduce.running import reproduce
from written_runs import ADDER, CONV, write_run

RECORDED = Path(__file__).parents[2] / "results"
MNIST = TABLES["mnist"]
ACCURACIES = {(CONV, 0): 0.98, (CONV, 1): 0.99, (ADDER, 0): 0.97, (ADDER, 1): 0.985}
DRAW = drawing.draw


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures take longer than all else."""
    monkeypatch.setattr(drawing, "draw", lambda folder, results: ())


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


def edit(folder, line=0, file="runs.csv", **changes):
    """Changes cells of one line."""
    rows = cells(folder / file)
    rows[line] |= changes
    write_cells(folder / file, rows)


def write_cells(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def copied(folder, **changes):
    """A copy with other cells in its first run."""
    copy = shutil.copytree(folder, folder.with_name(f"{folder.name}-copy"))
    edit(copy, **changes)
    return copy


def page(folder):
    return (folder / "table.md").read_text()


def test_rows_of_two_folders_are_one_table(tmp_path, apart, monkeypatch):
    monkeypatch.setattr(drawing, "draw", DRAW)
    results = join(MNIST, apart, tmp_path / "both", command="torchadder reproduce mnist --join")
    together = written(tmp_path / "together", ["lenet5bn_conv", "lenet5bn_adder"])
    for name in ("table.csv", "runs.csv"):
        assert (tmp_path / "both" / name).read_text() == (together / name).read_text()
    adder = results.lines[1]
    assert adder.gain is None  # the mnist table compares with the adder net, which is this row
    assert adder.spread("accuracy").mean == pytest.approx(97.75)
    text = (tmp_path / "both" / "table.md").read_text()
    assert f"joined from `{apart[0]}`, `{apart[1]}`, whose runs were made by torchadder 0" in text
    assert "trained on Abacus (beads, 1 thread)" in text
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
    results = join(table, [recorded, copy], tmp_path / "both")
    assert not any(source.left_out for source in results.joined)
    for file in ("runs.csv", "table.csv"):
        got, want = (cells(folder / file) for folder in (tmp_path / "both", recorded))
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert other.keys() <= one.keys()
            for key, value in other.items():
                try:
                    assert float(one[key]) == pytest.approx(float(value), rel=1e-4, abs=1e-4), key
                except ValueError:
                    assert one[key] == value, key


def settings(folder, **changes):
    path = folder / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_column(name, file="runs.csv"):
    def change(folder):
        rows = cells(folder / file)
        write_cells(folder / file, [{k: v for k, v in row.items() if k != name} for row in rows])

    return change


def cut(name):
    """Takes the end from the last line of a file."""

    def change(folder):
        path = folder / name
        text = path.read_text().rstrip()
        path.write_text(text[: text.rindex(",", 0, text.rindex(","))])

    return change


def twice(folder):
    path = folder / "runs.csv"
    write_cells(path, cells(path)[:1] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: settings(folder, overrides={"optimizer.lr": 1}), r"lr is 1 there and the"),
        (lambda folder: settings(folder, overrides=[]), r"settings\.json: damaged"),
        (
            lambda folder: settings(folder, overrides={"optimizer.lrr": 1}),
            r"settings\.json: unknown key optimizer\.lrr",
        ),
        (lambda folder: edit(folder, recipe="x"), r"line 2: recipe = 'x' is no row of the table"),
        (lambda folder: edit(folder, status="gone"), r"runs\.csv, line 2: unknown status 'gone'"),
        (lambda folder: edit(folder, finished_epochs="two"), r"finished_epochs = 'two': a whole"),
        (lambda folder: edit(folder, accuracy="x"), r"line 2: accuracy = 'x': a number is wanted"),
        (twice, r"runs\.csv, line 3: the run of line 2 once more"),
        (without_column("recipe"), r"runs\.csv: damaged: it has no column 'recipe'"),
        (without_column("val_loss"), r"runs\.csv: damaged: it has no column 'val_loss'"),
        (without_column("recipe", "table.csv"), r"table\.csv: damaged: it has no column 'recipe'"),
        (cut("runs.csv"), r"runs\.csv, line 3: damaged: it has not as many cells as the header"),
        (cut("table.csv"), r"table\.csv, line 2: damaged: it has not as many cells as the"),
        (lambda folder: (folder / "runs.csv").write_text(""), r"it has no column 'recipe'"),
        (lambda folder: (folder / "runs.csv").write_text("recipe\n"), r"mnist has no run of the"),
        (lambda folder: (folder / "runs.csv").unlink(), r"no table, runs\.csv is missing"),
        (lambda folder: (folder / "table.csv").unlink(), r"no table, table\.csv is missing"),
        (lambda folder: (folder / "settings.json").unlink(), r"no table, settings\.json is mi"),
        (lambda folder: (folder / "settings.json").write_text("{"), r"settings\.json: damaged"),
    ],
)
def test_what_is_damaged_or_does_not_agree_is_refused(tmp_path, apart, change, message):
    copy = shutil.copytree(apart[0], tmp_path / "copy")
    change(copy)
    with pytest.raises(ReproduceError, match=message) as caught:
        join(MNIST, [apart[0], copy], tmp_path / "both")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "both").exists()


def test_values_that_are_not_set_are_the_recipes_own(tmp_path, apart):
    settings(apart[1], overrides={"trainer.gradient_clip": None})
    with pytest.raises(ReproduceError, match=r"gradient_clip is None there and the recipe's own"):
        join(MNIST, apart, tmp_path / "both")
    # Where a run computed is no setting.
    settings(apart[1], overrides={"trainer.threads": 2})
    assert len(join(MNIST, apart, tmp_path / "both").lines) == 2


def test_settings_that_make_no_recipe_are_named(tmp_path, apart):
    for folder in apart:
        settings(folder, overrides={"optimizer.lr": -1.0})
    with pytest.raises(ReproduceError, match=r"row lenet5bn_.* optimizer\.lr = -1.0.*$"):
        join(MNIST, apart, tmp_path / "both")


@pytest.mark.parametrize("status", ["new", "begun", "interrupted", "failed: out of memory"])
def test_the_run_that_is_further_along_counts(tmp_path, apart, status):
    epochs = "1" if status in ("interrupted", "failed: out of memory") else "0"
    unfinished = {"status": status, "finished_epochs": epochs, "accuracy": "", "date": ""}
    copy = copied(apart[0], **unfinished)
    for folders in ([apart[0], copy], [copy, apart[0]]):
        results = join(MNIST, folders, tmp_path / "both")
        assert [run.stage for run in results.runs] == ["finished"] * 2
        assert not any(source.left_out for source in results.joined)
    edit(apart[0], status="new", finished_epochs="0", accuracy="", date="")
    results = join(MNIST, [apart[0], copy], tmp_path / "both")
    assert results.runs[0].stage == status.partition(":")[0]


def test_of_finished_runs_that_differ_the_first_folder_counts(tmp_path, apart, capsys):
    copy = copied(apart[0], accuracy="50", date="2026-02-03T00:00:00+00:00")
    run = "lenet5bn_conv, 2 epochs, seed 0"
    for folders, accuracy in (([apart[0], copy], 98.0), ([copy, apart[0]], 50.0)):
        results = join(MNIST, folders, tmp_path / "both")
        assert results.runs[0].accuracy == pytest.approx(accuracy)
        assert [source.left_out for source in results.joined] == [(), (run,)]
        assert f"left out of `{folders[1]}`, because another folder" in page(tmp_path / "both")
        assert f"before it: {run}\n" in page(tmp_path / "both")
    words = ["--join", f"{apart[0]},{copy}", "--output", str(tmp_path / "both")]
    assert main(["reproduce", "mnist", *words]) == 0
    assert f"before it: {run}\n" in capsys.readouterr().out


def test_the_same_figures_once_more_are_no_others(tmp_path, apart):
    copy = copied(apart[0], date="2026-02-03T00:00:00+00:00", seconds_per_epoch="77", threads="9")
    results = join(MNIST, [apart[0], copy], tmp_path / "both")
    assert not any(source.left_out for source in results.joined)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"accuracy": "nan"}, r"runs\.csv, line 2: accuracy = 'nan': a finite number is wanted"),
        ({"accuracy": ""}, r"line 2: accuracy is empty, though the run is finished"),
    ],
)
def test_a_finished_run_has_its_figure(tmp_path, apart, cell, message):
    edit(apart[0], **cell)
    with pytest.raises(ReproduceError, match=message):
        join(MNIST, apart, tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_table_has_a_name(tmp_path, apart):
    settings(apart[0], table=3)
    with pytest.raises(ReproduceError, match=r"settings\.json: damaged: a name as table"):
        join(MNIST, apart, tmp_path / "both")


def test_a_joined_table_is_not_trained_in(tmp_path, apart, capsys):
    join(MNIST, apart, tmp_path / "both")
    assert main(["reproduce", "mnist", "--budget", "1", "--output", str(tmp_path / "both")]) == 2
    assert "exists and holds a joined table; nothing in it" in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_the_same_loss(tmp_path, apart):
    edit(apart[0], val_loss="nan")
    results = join(MNIST, [apart[0], copied(apart[0])], tmp_path / "both")
    assert not any(source.left_out for source in results.joined)


def test_rows_may_be_chosen(tmp_path, apart):
    copy = copied(apart[0], accuracy="50")
    results = join(MNIST, [copy, apart[0]], tmp_path / "both", rows=["*_conv"])
    assert [line.row.recipe for line in results.lines] == [CONV]
    with pytest.raises(ReproduceError, match="mnist has no run of the rows that were asked for"):
        join(MNIST, apart, tmp_path / "both", rows=["*_conv"])
    with pytest.raises(ReproduceError, match="mnist has no row 'x'"):
        join(MNIST, apart, tmp_path / "both", rows=["x"])


def test_a_folder_of_another_table_brings_the_rows_they_share(tmp_path, apart):
    settings(apart[0], table="awn")
    edit(apart[0], line=1, recipe="mnist_lenet5bn_adder_awn_fixed", row="x")
    results = join(MNIST, apart[::-1], tmp_path / "both")
    assert [(line.row.recipe, len(line.runs)) for line in results.lines] == [(CONV, 1), (ADDER, 2)]
    assert f"`{apart[0]}` (of the table awn), whose runs" in page(tmp_path / "both")
    edit(apart[0], recipe="mnist_lenet5bn_adder_awn_keep")
    with pytest.raises(ReproduceError, match="its table awn has no run of the rows of the table"):
        join(MNIST, apart, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_recorded_rows_of_two_tables_are_compared(tmp_path):
    folders = [RECORDED / "cifar10_ablation_5", RECORDED / "cifar10_table"]
    results = join(TABLES["ablation"], folders, tmp_path / "both")
    lines = {line.row.recipe: line for line in results.lines}
    row, adder = (lines[f"cifar10_resnet20_{name}"] for name in ("pkkd_constscales", "adder"))
    want = row.spread("accuracy").mean - adder.spread("accuracy").mean
    assert row.row.baseline == "cifar10_resnet20_adder"
    assert row.gain.mean == pytest.approx(want)
    assert {run.stage for run in results.runs} == {"finished"}


def test_a_joined_table_can_be_joined(tmp_path, apart):
    join(MNIST, [apart[0], copied(apart[0])], tmp_path / "first")
    join(MNIST, [tmp_path / "first", apart[1]], tmp_path / "both")
    join(MNIST, apart, tmp_path / "straight")
    for name in ("runs.csv", "table.csv"):
        texts = [(tmp_path / folder / name).read_text() for folder in ("both", "straight")]
        assert texts[0] == texts[1]
    (tmp_path / "first" / "joined.json").write_text('{"table": "mnist"}')
    with pytest.raises(ReproduceError, match=r"joined\.json: damaged: it has no 'overrides'"):
        join(MNIST, [tmp_path / "first", apart[1]], tmp_path / "both")


def test_the_machine_is_named(tmp_path, apart):
    gpu = {"device": "NVIDIA H200", "threads": "16", "device_kind": "cuda", "num_devices": "2"}
    for line in (0, 1):
        edit(apart[0], line, **gpu)
    join(MNIST, apart, tmp_path / "both")
    assert "trained on 2 x NVIDIA H200; Abacus (beads, 1 thread)" in page(tmp_path / "both")
    assert cells(tmp_path / "both" / "runs.csv")[0].items() >= gpu.items()


def test_a_run_on_a_gpu_and_its_file(tmp_path):
    plan = make_plan(MNIST, tmp_path / "gpu", budgets=[1], rows=["*_conv"])
    path = write_run(plan.jobs[0], [0.9]) / "summary.json"
    summary = json.loads(path.read_text())
    for device, name in (("cuda:0", "NVIDIA H200"), ("cpu", "Abacus")):
        summary["hardware"] |= {"gpu": "NVIDIA H200", "device": device}
        path.write_text(json.dumps(summary))
        reproduce(plan, say=lambda text: None, command="torchadder")
        (row,) = cells(plan.output / "runs.csv")
        assert (row["device"], row["device_kind"]) == (name, device.partition(":")[0])
        assert (row["num_devices"], row["instruction_set"]) == ("1", "beads")


def test_folders_without_a_finished_run(tmp_path, apart):
    nothing = {"status": "new", "finished_epochs": "0", "accuracy": "", "best_accuracy": ""}
    nothing |= dict.fromkeys(("date", "device", "threads", "torch", "torchadder"), "")
    nothing |= dict.fromkeys(("device_kind", "num_devices", "instruction_set"), "")
    for folder in apart:
        for line in (0, 1):
            edit(folder, line, **nothing)
    (tmp_path / "both").mkdir()
    join(MNIST, apart, tmp_path / "both")
    assert f"* joined from `{apart[0]}`, `{apart[1]}`\n" in page(tmp_path / "both")
    assert "trained on nothing yet" in page(tmp_path / "both")


def test_no_folder(tmp_path):
    with pytest.raises(ReproduceError, match="no folder is given"):
        join(MNIST, [], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_other_folders_are_not_overwritten(tmp_path, apart):
    with pytest.raises(ReproduceError, match="given twice"):
        join(MNIST, [apart[0], tmp_path / "adder" / ".." / "cnn"], tmp_path / "both")
    with pytest.raises(ReproduceError, match="is one of the folders to join"):
        join(MNIST, apart, apart[0])
    other = shutil.copytree(apart[0], tmp_path / "other")
    before = page(other)
    for taken in (other, other / "table.md"):
        with pytest.raises(ReproduceError, match="holds no joined table; nothing in it is over"):
            join(MNIST, apart, taken)
    assert page(other) == before
    join(MNIST, apart, tmp_path / "both")
    (tmp_path / "both" / "mine.txt").write_text("mine")
    with pytest.raises(ReproduceError, match="holds no joined table"):
        join(MNIST, apart, tmp_path / "both")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"table": "awn", "overrides": {}}', "holds the joined table 'awn', not 'mnist'"),
        ("{", r"joined\.json: damaged"),
        ("[]", r"joined\.json: damaged: it has no 'table'"),
    ],
)
def test_another_joined_table_is_not_overwritten(tmp_path, apart, content, message):
    join(MNIST, apart, tmp_path / "both")
    (tmp_path / "both" / "joined.json").write_text(content)
    before = page(tmp_path / "both")
    with pytest.raises(ReproduceError, match=message):
        join(MNIST, apart, tmp_path / "both")
    assert page(tmp_path / "both") == before


def test_a_killed_join_can_be_done_again(tmp_path, apart):
    for name in (".joined.json.42.tmp", ".runs.csv.42.tmp"):
        (tmp_path / "both").mkdir(exist_ok=True)
        (tmp_path / "both" / name).write_text("{")
        join(MNIST, apart, tmp_path / "both")
        assert not (tmp_path / "both" / name).exists()


def test_a_figure_of_runs_that_are_gone_is_gone(tmp_path, apart):
    join(MNIST, apart, tmp_path / "both")
    (tmp_path / "both" / "table.png").write_bytes(b"old")
    join(MNIST, apart, tmp_path / "both")
    assert not (tmp_path / "both" / "table.png").exists()


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
