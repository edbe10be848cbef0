"""A table whose trainings run in a process for each device."""

import json
import shlex
import sys

import pytest

from torchadder import cli
from torchadder.reproduce import reproduce
from torchadder.training import launch
from written_runs import CONV, interrupt, write_run


def quiet(words):
    """Says nothing."""


TWO = {"trainer.devices": 2, "trainer.accelerator": "cpu"}


@pytest.fixture
def launched(monkeypatch):
    """Calls of `launch`, which does nothing and ends as `verdict` says."""

    class Launch:
        def __init__(self):
            self.calls = []
            self.verdict = (0, None)
            self.then = quiet

        def __call__(self, command, num_processes):
            self.calls.append((list(command), num_processes))
            self.then(command)
            return self.verdict

    stand_in = Launch()
    monkeypatch.setattr(launch, "launch", stand_in)
    return stand_in


def test_each_training_is_the_command_that_dry_run_prints(plan, trainer, launched):
    both = plan(rows=["lenet5bn_conv", "lenet5bn_adder"], budgets=[1], overrides=TWO)
    left = {job.arguments: job for job in both.jobs}
    launched.then = lambda command: write_run(left[tuple(command[4:])], [0.5])
    results = reproduce(both, say=quiet)
    train = [sys.executable, "-m", "torchadder", "train"]
    assert launched.calls == [([*train, *job.arguments], 2) for job in both.jobs]
    for job in both.jobs:
        assert shlex.split(job.command) == ["torchadder", *train[3:], *job.arguments]
    assert [run.stage for run in results.runs] == ["finished"] * 2
    assert trainer.calls == []


def test_a_run_of_one_device_goes_on_with_two(plan, trainer, launched):
    one = plan(rows=["lenet5bn_conv"], budgets=[4])
    interrupt(one.jobs[0])
    place = TWO | {"trainer.threads": None}
    reproduce(plan(rows=["lenet5bn_conv"], budgets=[4], overrides=place), say=quiet)
    ((command, num_processes),) = launched.calls
    place = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.threads=null"]
    assert command[3:] == ["train", "--resume", str(one.jobs[0].folder), *place]
    assert num_processes == 2


def test_a_process_that_fails_fails_its_row(plan, trainer, launched):
    both = plan(rows=["lenet5bn_conv", "lenet5bn_adder"], budgets=[1], overrides=TWO)
    (both.output / "runs").mkdir(parents=True)
    launched.verdict = (2, "rank 1 (process 7) of 2 ended before the others")
    results = reproduce(both, say=quiet)
    assert [run.stage for run in results.runs] == ["failed", "failed"]
    assert "rank 1 (process 7) of 2 ended" in results.runs[0].reason


def test_ctrl_c_in_the_processes_ends_the_table(plan, trainer, launched):
    launched.verdict = (130, "interrupted after 3 of 4 epochs")
    with pytest.raises(KeyboardInterrupt, match="in lenet5bn_conv, 1 epoch, seed 0; the same"):
        reproduce(plan(budgets=[1], overrides=TWO), say=quiet)
    assert len(launched.calls) == 1


def test_torchrun_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["reproduce", "mnist", "--output", str(tmp_path / "table")]) == 2
    assert "without torchrun, with --trainer.devices N" in capsys.readouterr().err
    assert not (tmp_path / "table").exists()


def test_two_processes_train_a_row(tmp_path):
    options = ["--rows=lenet5bn_conv", "--budget=1", "--devices=2", "--accelerator=cpu"]
    options += ["--threads=1", "--limit-train-batches=2", "--limit-val-batches=1"]
    table = tmp_path / "table"
    assert cli.main(["reproduce", "mnist", *options, f"--output={table}"]) == 0
    run = table / "runs" / f"{CONV}-1-epochs-seed-0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["hardware"]["num_devices"] == 2
    assert "1/1" in (table / "table.md").read_text()
