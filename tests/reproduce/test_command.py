"""`torchadder reproduce` from the command line, with real trainings of a few steps on digits."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

import torchadder
from torchadder import cli
from torchadder.reproduce import TABLES
from written_runs import contents, write_run

TINY = ["--limit-train-batches=3", "--limit-val-batches=2", "--threads=1"]
ROWS = "lenet5bn_conv,lenet5bn_adder,lenet5bn_pkkd_fixed"


def reproduce(*options):
    return cli.main(["reproduce", *map(str, options)])


def fails(capsys, *options):
    """The one line of an error."""
    capsys.readouterr()
    assert reproduce(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith("torchadder: error: ")
    assert error.count("\n") == 1
    return error


def accuracies(folder):
    with (folder / "runs.csv").open() as file:
        return {(r["row"], r["epochs"], r["seed"]): r["accuracy"] for r in csv.DictReader(file)}


def weights(folder):
    """Final weights of every run below a folder."""
    return {
        path.parent.parent.name: torchadder.load(path).state_dict()
        for path in sorted(folder.rglob("last.safetensors"))
    }


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "table"
    options = [f"--rows={ROWS}", "--budget", "2", "--output", folder, *TINY]
    assert reproduce("mnist", *options) == 0
    return folder


def test_a_table_is_complete(straight, capsys):
    assert {path.name for path in straight.iterdir()} == {
        ".lock",
        "runs",
        "runs.csv",
        "settings.json",
        "table.csv",
        "table.md",
        "table.png",
        "table-dark.png",
    }
    with (straight / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["CNN", "AdderNet", "AdderNet + PKKD, fixed teacher"]
    assert all(row["status"] == "finished" for row in rows)
    assert [row["num_mul"] for row in rows] == ["416520", "118440", "118440"]
    conv, _, fixed = rows
    # The teacher is the net of the CNN's row and is not trained on.
    assert fixed["teacher_accuracy"] == conv["accuracy"]
    options = [f"--rows={ROWS}", "--budget", "2", "--output", straight, *TINY]
    capsys.readouterr()
    before = contents(straight / "runs")
    assert reproduce("mnist", *options) == 0
    out = capsys.readouterr().out
    assert "all trainings are finished" in out
    assert "AdderNet + PKKD" in " ".join(out.split())
    assert contents(straight / "runs") == before


def test_changed_settings_are_one_line_and_overwrite_nothing(straight, capsys):
    before = contents(straight)
    common = ["mnist", f"--rows={ROWS}", "--budget=2", "--output", straight, *TINY]
    error = fails(capsys, *common, "--optimizer.lr", "0.05")
    assert "optimizer.lr is the recipe's own there and 0.05 now; nothing was overwritten" in error
    error = fails(capsys, *common[:-3], "--limit-train-batches=4", *TINY[1:])
    assert "trainer.limit_train_batches is 3 there and 4 now" in error
    assert contents(straight) == before


def test_killed_and_restarted_it_goes_on(straight, tmp_path):
    folder = tmp_path / "table"
    options = [f"--rows={ROWS}", "--budget=2", f"--output={folder}", *TINY]
    code = "import sys; from torchadder import cli; sys.exit(cli.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "reproduce", "mnist", *options],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checkpoint = "mnist_lenet5bn_adder-2-epochs-seed-0/checkpoints/last.ckpt"
    for _ in range(6000):
        if (folder / "runs" / checkpoint).exists():
            break
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "runs" / "mnist_lenet5bn_pkkd_fixed-2-epochs-seed-0").exists()
    assert reproduce("mnist", *options) == 0
    assert accuracies(folder) == accuracies(straight)
    got, want = weights(folder), weights(straight)
    assert got.keys() == want.keys()
    assert len(got) == 3
    for name, state in want.items():
        assert all((got[name][key] == value).all() for key, value in state.items()), name


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--data.source=2024", "--data.source=2024"),
        ("--data.source=2024-01-01", "--data.source=2024-01-01"),
        ("--data.source=3e5", "--data.source=3e5"),
        ("--data.val_split=null", "--data.val_split=null"),
        ("--optimizer.lr=1e-3", "--optimizer.lr=0.001"),
        ("--optimizer.nesterov=true", "--optimizer.nesterov=true"),
        ("--limit-train-batches=3", "--trainer.limit_train_batches=3"),
        ("--trainer.limit_train_batches=0.5", "--trainer.limit_train_batches=0.5"),
    ],
)
def test_values_are_read_as_train_reads_them(tmp_path, capsys, option, wanted):
    out = tmp_path / "table"
    words = ["mnist", "--rows=lenet5bn_conv", f"--output={out}", option, "--dry-run"]
    assert reproduce(*words) == 0
    assert f" {wanted} " in capsys.readouterr().out


def test_dry_run_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reproduce("cifar10", "--budget=5", "--rows", "resnet20_pkkd_fixed", "--dry-run") == 0
    out = capsys.readouterr().out
    assert not any(tmp_path.iterdir())
    folder = "runs/reproduce-cifar10/runs/cifar10_resnet20_conv-5-epochs-seed-0"
    assert f"torchadder train cifar10_resnet20_conv --epochs=5 --seed=0 --output={folder}" in out
    assert f"--distill.teacher_checkpoint={folder}/checkpoints/last.safetensors" in out
    assert "2 trainings left; not measured: cifar10_resnet20_conv" in out


def test_cost_is_taken_from_what_was_measured(tmp_path, capsys, monkeypatch):
    from pathlib import Path

    from torchadder.reproduce import make_plan
    from torchadder.reproduce.estimates import estimate, measurements

    monkeypatch.chdir(tmp_path)
    plan = make_plan(TABLES["mnist"], Path("new"), budgets=[10], rows=["*_conv", "*_adder"])
    earlier = make_plan(TABLES["mnist"], Path("results/x"), budgets=[1], rows=["*_conv"]).jobs[0]
    write_run(earlier, [0.5], seconds=3.0).rename(tmp_path / "results" / "conv")
    found = estimate(plan, measurements(plan))
    assert (found.num_left, found.seconds) == (2, 30.0)
    assert found.unmeasured == ("mnist_lenet5bn_adder",)
    assert str(found).startswith("2 trainings left; about 30 s on Abacus (1 thread); not measured")
    write_run(plan.jobs[0], [0.5] * 10, seconds=1.0)
    found = estimate(plan, measurements(plan))
    assert (found.num_left, found.seconds) == (1, 0.0)


def test_a_failed_row_makes_the_exit_code_1(tmp_path, capsys, trainer):
    trainer.errors["mnist_lenet5bn_adder"] = RuntimeError("out of memory")
    options = ["mnist", f"--rows={ROWS}", "--budget=1", "--output", tmp_path / "x"]
    assert reproduce(*options) == 1
    out = capsys.readouterr().out
    assert "1 of 3 trainings failed" in out
    assert "lenet5bn_adder, 1 epoch, seed 0: out of memory" in out
    assert "finished" in (tmp_path / "x" / "table.csv").read_text()


def test_several_budgets_make_a_curve(tmp_path, trainer):
    trainer.accuracies = {"mnist_lenet5bn_conv": [0.9, 0.8]}
    options = ["--budget", "2,1", "--seeds", "2", "--rows=lenet5bn_conv"]
    assert reproduce("mnist", *options, "--output", tmp_path / "x") == 0
    text = (tmp_path / "x" / "table.md").read_text()
    assert text.index("## 1 epoch\n") < text.index("## 2 epochs\n")
    assert text.count("85.00 ± 7.07") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no table given; one of mnist, cifar10"),
        (["cifar11"], "unknown table 'cifar11'; did you mean 'cifar10'?"),
        (["mnist", "cifar10"], "one table is wanted, got mnist and cifar10"),
        (["mnist", "--budget=many"], "--budget = 'many': whole numbers of epochs are wanted"),
        (["mnist", "--budget=0"], "budget = 0: epochs >= 1 are wanted"),
        (["mnist", "--seed=3"], "unknown option '--seed'; did you mean '--seeds'?"),
        (["mnist", "--dry-run=true"], "--dry-run is a flag and takes no value, got 'true'"),
        (["mnist", "--optimizer.lr=2024-01-01"], "optimizer.lr = 2024-01-01: float is wanted"),
        (["mnist", f"--output={__file__}"], "exists and holds no table; nothing in it is"),
        (["mnist", "--seeds=0"], "seeds = 0: at least 1 is wanted"),
        (["mnist", "--rows=x"], "mnist has no row 'x'"),
        (["mnist", "--budgte=1"], "unknown option '--budgte'; did you mean '--budget'?"),
        (["mnist", "--optimizer.lrr=1"], "unknown key optimizer.lrr; the nearest known key"),
        (["mnist", "--data.source=./nowhere"], "no such folder"),
        (["mnist", "--budget"], "--budget: a value is wanted"),
        (["mnist", "--devices=0,1"], "trainer.devices = '0,1': a number is wanted"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing_that_binds(tmp_path, capsys, options, message):
    folder = tmp_path / "table"
    output = [] if not options else ["--output", folder]
    assert message in fails(capsys, *output, *options)
    assert not (folder / "runs").exists()


def test_list_and_help(capsys):
    assert reproduce("--list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].startswith("mnist ")
    with pytest.raises(SystemExit):
        reproduce("--help")
    words = " ".join(capsys.readouterr().out.split())
    assert "The same command goes on where it was interrupted or killed" in words


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("table", "budget"),
    [
        ("cifar10", 1),
        ("imagenet", 1),
        ("distillers", 4),
        ("ablation", 1),
        ("ablation-mnist", 1),
        ("cnn-distillation", 1),
        ("deeper", 1),
    ],
)
def test_every_row_of_a_table_trains(tmp_path, monkeypatch, table, budget):
    """The digits stand in for the images; nets, methods and settings are those of the rows."""
    monkeypatch.setattr("torchadder.reproduce.drawing.draw", lambda folder, results: ())
    images = ["--data.source=mnist", "--data.image_size=32", "--data.mean=null", "--data.std=null"]
    images += ["--data.val_split=null", "--data.augment=crop", "--batch-size=8"]
    # Teachers of a few steps put out anything; at the papers' rate some students would overflow.
    images += ["--optimizer.lr=0.001"]
    options = [f"--budget={budget}", "--output", tmp_path / "x", *images, *TINY]
    assert reproduce(table, *options, "--limit-train-batches=2", "--limit-val-batches=1") == 0
    with (tmp_path / "x" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["recipe"] for row in rows] == [row.recipe for row in TABLES[table].rows]
    assert {row["status"] for row in rows} == {"finished"}
    assert all(int(row["num_add"]) > 0 for row in rows)
