"""`stability.csv` of real short runs: complete, the same after an interruption, without effect."""

import csv
import math
import os
import signal

import lightning
import pytest
import torch

from short_runs import recipe, weights
from torchadder.models import lenet5_bn
from torchadder.stability.table import read_table
from torchadder.training import RecipeError, fit, resume
from torchadder.training.folders import RUN_FILES

EVERY = {
    "trainer.record_stability": 3,
    "trainer.limit_train_batches": 5,
    "trainer.limit_val_batches": 1,
    "data.batch_size": 16,
}


class Interrupt(lightning.Callback):
    """Presses Ctrl-C after a step."""

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return fit(recipe(**EVERY), output=tmp_path_factory.mktemp("runs") / "measured").folder


def by_key(folder):
    return {row[:3]: row[3] for row in read_table(folder / "stability.csv")}


def test_every_file_of_a_run_folder_is_known(measured):
    # What is not known here keeps a table from beginning a killed run again.
    names = {path.name for path in measured.iterdir()}
    assert "stability.csv" in names
    assert names <= RUN_FILES


def test_measuring_changes_nothing(measured, tmp_path):
    plain = fit(recipe(**EVERY | {"trainer.record_stability": 0}), output=tmp_path / "run").folder
    assert not (plain / "stability.csv").exists()
    want, got = weights(plain), weights(measured)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(got[name], value), name


def test_rows(measured):
    rows = read_table(measured / "stability.csv")
    assert sorted({row[0] for row in rows}) == [0, 3, 6, 9]  # of 10 steps
    assert list(dict.fromkeys(row[1] for row in rows)) == ["conv1", "conv2", "conv3", "conv4", "fc"]
    found = by_key(measured)
    assert len(found) == len(rows) == 4 * 5 * 15
    for name, parameter in lenet5_bn().named_parameters():
        if name in ("conv2.weight", "conv3.weight", "conv4.weight"):
            want = 0.2 * math.sqrt(parameter.numel())
            key = (6, name.removesuffix(".weight"), "grad_norm_used")
            assert found[key] == pytest.approx(want, rel=1e-5)
    assert 0.9 < found[0, "conv2", "weight_var"] < 1.2  # N(0, 1)
    with (measured / "stability.csv").open() as file:
        assert next(csv.reader(file)) == ["step", "layer", "quantity", "value"]


def test_an_interrupted_run_goes_on_with_the_same_rows(measured, tmp_path):
    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt, match="interrupted after 1 of 2 epochs"):
        fit(recipe(**EVERY), output=folder, callbacks=[Interrupt()])
    table = folder / "stability.csv"
    # What was measured in the epoch that is made again is there until then.
    assert max(row[0] for row in read_table(table)) == 6
    with table.open("a") as file:
        file.write("9,conv1,weight_")  # a process killed while it wrote
    assert max(row[0] for row in read_table(table)) == 6
    resume(folder)
    assert table.read_bytes() == (measured / "stability.csv").read_bytes()


def test_of_accumulated_batches_the_last_is_measured(measured, tmp_path):
    accumulating = {"trainer.accumulate": 2, "trainer.limit_train_batches": 2, "epochs": 1}
    run = fit(recipe(**EVERY | accumulating), output=tmp_path / "run")
    found = by_key(run.folder)
    assert {key[0] for key in found} == {0}
    for layer in ("conv1", "conv4"):
        gap, step = found[0, layer, "bn_var_gap"], found[0, layer, "bn_var_step"]
        assert gap == pytest.approx(10 * step, rel=1e-3)  # one batch at momentum 0.1
    # The first step's second batch is another one than that of a run without accumulation.
    other = by_key(measured)[0, "conv1", "output_var"]
    assert found[0, "conv1", "output_var"] != pytest.approx(other, rel=1e-6)


def test_compiled_steps_are_measured_alike(measured, tmp_path, monkeypatch):
    real = torch.compile

    def without_code(function, **options):
        return real(function, backend="eager", fullgraph=True, dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", without_code)
    run = fit(recipe(**EVERY | {"trainer.compile": True}), output=tmp_path / "run")
    assert by_key(run.folder) == by_key(measured)


def test_bad_input(tmp_path):
    with pytest.raises(RecipeError, match=r"trainer.record_stability = -1: at least 0, or null"):
        recipe(**{"trainer.record_stability": -1})
    path = tmp_path / "stability.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="the columns step, layer, quantity, value are wanted"):
        read_table(path)
    path.write_text("step,layer,quantity,value\n1,conv1,weight_var,abc\n")
    with pytest.raises(ValueError, match=r"stability.csv: damaged: could not convert"):
        read_table(path)
