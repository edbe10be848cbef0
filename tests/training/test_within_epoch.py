"""Going on in the middle of an epoch: every kind of run ends as if nothing had happened."""

import csv
import itertools
import json
import os
import signal
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import torchadder
from short_runs import SMALL, assert_same_state, write_digits
from short_runs import recipe as short_recipe
from torchadder import models, recipes
from torchadder.tasks import Classification
from torchadder.training import NonFiniteError, RecipeError, fit, resume
from torchadder.training.checkpoint_io import SafetensorsCheckpointIO, read_state
from torchadder.training.checkpoints import BestAndLast
from torchadder.training.environment import quiet
from torchadder.training.stability import StabilityTable

EVERY_STEP = {"trainer.checkpoint_minutes": 0}
NEVER = {"trainer.checkpoint_minutes": None}


def recipe(method="adder", **overrides):
    return short_recipe(method, **{"trainer.limit_train_batches": 6} | overrides)


class Interrupt(lightning.Callback):
    """Presses Ctrl-C after a batch."""

    def __init__(self, epoch, batch):
        self.moment = (epoch, batch)

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.moment:
            os.kill(os.getpid(), signal.SIGINT)


class Seen(lightning.Callback):
    """Lists the steps that are made, and counts the epochs that begin."""

    def __init__(self):
        self.steps, self.num_epochs = [], 0

    def on_train_epoch_start(self, trainer, task):
        self.num_epochs += 1

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        self.steps.append((trainer.current_epoch, batch_idx))


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_end(got, want):
    """Weights, momenta, schedule, random numbers and metrics of two runs."""
    states = [read_state(folder / "checkpoints" / "last.ckpt") for folder in (got, want)]
    random = "RunState"
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same_state(states[0][part], states[1][part], part)
    assert_same_state(states[0]["callbacks"][random], states[1]["callbacks"][random], random)
    assert rows(got) == rows(want)


def begin_or_go_on(recipe, folder, *callbacks):
    if folder.exists():
        return resume(folder, callbacks=callbacks)
    return fit(recipe, output=folder, callbacks=callbacks)


def interrupted(make, folder, *moments, batches):
    """A run that is interrupted at each of the moments and gone on with; what was seen after."""
    for moment, num_batches in zip(moments, batches, strict=True):
        words = f"interrupted after {moment[0]} of 2 epochs and {num_batches} batch"
        with pytest.raises(KeyboardInterrupt, match=words):
            begin_or_go_on(make(**EVERY_STEP), folder, Interrupt(*moment))
    seen = Seen()
    torch.manual_seed(99)  # whatever the process did before must not matter
    resume(folder, callbacks=[seen])
    return seen


KINDS = {
    "adder": {},
    "conv": {},
    "momentum of a warm-up": {"schedule.warmup": 5, "schedule.interval": "step"},
    "pkkd": {},
    "pkkd that ramps by batches": {"distill.ramp": "epochs", "distill.ramp_epochs": 0.75},
    "pkkd that ramps by its teacher": {"distill.ramp": "teacher"},
    "pkkd with a scale of its batches": {"distill.scale": "batch"},
    "kd_progressive": {},
    "lp": {"lp.share": 1.0},
    "slac": {},
    "adder_awn": {},
    "adder_pgd": {"adversarial.iterations": 1, "adversarial.val_iterations": 0},
    "adder in worker processes": {"data.cache_mb": 0, "data.workers": 2},
    "adder on the device": {"data.device_cache": True},
    "adder in float64": {"trainer.precision": "64-true"},
    "adder that is seldom validated": {"trainer.check_val_every": 5},
    "pkkd_nokernel": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_bit_by_bit(tmp_path, kind):
    def make(**overrides):
        return recipe("adder" if kind.startswith("momentum") else kind.split()[0], **overrides)

    options = KINDS[kind]
    straight = fit(make(**options, **NEVER), output=tmp_path / "straight")
    seen = interrupted(
        lambda **more: make(**options, **more),
        tmp_path / "cut",
        (0, 2),
        (1, 3),
        batches=(2, 3),
    )
    assert seen.steps == [(1, 3), (1, 4), (1, 5)]
    assert seen.num_epochs == 0  # Lightning's way: an epoch begins once
    assert_same_end(tmp_path / "cut", straight.folder)


def test_gradients_that_are_still_summed_are_not_cut(tmp_path):
    """A checkpoint is written where a step was made, after every third batch here."""

    def make(**overrides):
        return recipe(**{"trainer.accumulate": 3, "trainer.limit_train_batches": 8} | overrides)

    straight = fit(make(**NEVER), output=tmp_path / "straight")
    seen = interrupted(make, tmp_path / "cut", (0, 5), (1, 4), batches=(3, 3))
    assert seen.steps == [(1, batch) for batch in range(3, 8)]
    assert_same_end(tmp_path / "cut", straight.folder)


def test_random_numbers_of_a_step_go_on(tmp_path, monkeypatch):
    """Dropout draws in every step."""
    plain = models.build

    def with_dropout(name, **options):
        model = plain(name, **options)
        model.fc = nn.Sequential(nn.Dropout(0.5), model.fc)
        return model

    monkeypatch.setattr(models, "build", with_dropout)
    straight = fit(recipe("conv", **NEVER), output=tmp_path / "straight")
    interrupted(
        lambda **more: recipe("conv", **more), tmp_path / "cut", (0, 1), (1, 4), batches=(1, 4)
    )
    assert_same_end(tmp_path / "cut", straight.folder)


def test_a_snapshot_stays_that_of_the_cycle_before(tmp_path):
    options = SMALL | {"method": "snapshot", "distill.cycles": 2, "trainer.limit_train_batches": 6}

    def make(**more):
        return recipes.load("mnist_lenet5bn_adder", options | more)

    straight = fit(make(**NEVER), output=tmp_path / "straight")
    interrupted(make, tmp_path / "cut", (0, 1), (1, 3), batches=(1, 3))
    assert_same_end(tmp_path / "cut", straight.folder)


def test_a_compiled_step_goes_on(tmp_path, monkeypatch):
    real = torch.compile

    def without_code(function, **options):
        return real(function, backend="eager", fullgraph=True, dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", without_code)
    options = {"trainer.compile": True}
    straight = fit(recipe("pkkd", **options, **NEVER), output=tmp_path / "straight")
    interrupted(
        lambda **more: recipe("pkkd", **options, **more), tmp_path / "cut", (0, 2), batches=(2,)
    )
    assert_same_end(tmp_path / "cut", straight.folder)


def test_measured_steps_are_not_lost(tmp_path, monkeypatch):
    """Not even where nothing is written at the end, as by a process that is killed."""
    monkeypatch.setattr(StabilityTable, "on_exception", lambda *_: None)
    options = {"trainer.record_stability": 2}
    fit(recipe(**options, **NEVER), output=tmp_path / "straight")
    interrupted(
        lambda **more: recipe(**options, **more), tmp_path / "cut", (0, 3), (1, 2), batches=(3, 2)
    )
    tables = [tmp_path / name / "stability.csv" for name in ("cut", "straight")]
    assert tables[0].read_bytes() == tables[1].read_bytes()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize(("streaming", "workers"), [(True, 0), (True, 3), (False, 3)])
def test_images_that_are_read_in_the_epoch(tmp_path, monkeypatch, streaming, workers):
    """Whoever reads a batch goes on where it would have been, a stream's reader in its own row."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_digits(tmp_path / "data", {"train": slice(0, 5000, 80), "test": slice(1, 5000, 400)})
    options = {"data.source": str(tmp_path / "data"), "data.cache_mb": 0, "data.batch_size": 8}
    options |= {"data.streaming": streaming, "data.workers": workers, "data.shuffle_buffer": 5}
    options |= {"trainer.limit_train_batches": 1.0}
    straight = fit(recipe(**options, **NEVER), output=tmp_path / "straight")
    seen = interrupted(
        lambda **more: recipe(**options, **more), tmp_path / "cut", (0, 2), (1, 5), batches=(2, 5)
    )
    assert seen.steps == [(1, 5), (1, 6), (1, 7)]
    assert_same_end(tmp_path / "cut", straight.folder)


def test_what_is_not_finite_is_not_kept(tmp_path):
    """Running statistics do not reach the loss of a batch: only a look at them finds them."""

    class Poison(lightning.Callback):
        def __init__(self, step):
            self.step = step

        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            if trainer.global_step == self.step:
                task.plain_model.bn2.running_mean[0] = float("nan")

    message = r"step 9, epoch 2: running_mean of layer 'bn2' is not finite; the last good checkpo"
    with pytest.raises(NonFiniteError, match=message):
        fit(recipe(**EVERY_STEP), output=tmp_path / "run", callbacks=[Poison(9)])
    state = read_state(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert state["global_step"] == 8
    resume(tmp_path / "run")

    message = r"step 1, epoch 1: running_mean of layer 'bn2' is not finite; there is no checkpoint"
    with pytest.raises(NonFiniteError, match=message):
        fit(recipe(**EVERY_STEP), output=tmp_path / "first", callbacks=[Poison(1)])


class Clock:
    """A keeper of checkpoints in a world where a batch takes as long as one says."""

    def __init__(self, folder, monkeypatch, world_size):
        self.now, self.asked, self.saved = 0.0, [], []
        self.keeper = BestAndLast(folder, "val_accuracy", within=600.0)
        self.trainer = SimpleNamespace(
            num_training_batches=100_000,
            is_last_batch=False,
            world_size=world_size,
            global_step=0,
            strategy=SimpleNamespace(broadcast=self._broadcast),
            fit_loop=SimpleNamespace(_should_accumulate=lambda: False),
        )
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr(self.keeper, "_monitor_candidates", lambda trainer: {})
        monkeypatch.setattr(self.keeper, "_save_last_checkpoint", self._save)

    def _broadcast(self, value):
        self.asked.append(self.now)
        return value

    def _save(self, *_):
        self.saved.append(self.now)

    def batches(self, number, seconds):
        for _ in range(number):
            self.now += seconds
            self.keeper.on_train_batch_end(self.trainer, None, None, None, 0)


@pytest.mark.parametrize("world_size", [1, 2])
def test_time_between_checkpoints(tmp_path, monkeypatch, world_size):
    """An hour of batches of a second each: a checkpoint after every ten minutes, few questions."""
    clock = Clock(tmp_path, monkeypatch, world_size)
    clock.batches(3605, 1.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *clock.saved])]
    assert len(gaps) in (5, 6)
    assert all(600 <= gap <= 602 for gap in gaps)
    assert len(clock.asked) <= (0 if world_size == 1 else 20 * len(gaps))


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_that_become_slow_do_not_put_a_checkpoint_off(tmp_path, monkeypatch, world_size):
    clock = Clock(tmp_path, monkeypatch, world_size)
    clock.batches(200, 0.01)
    clock.batches(1500, 1.0)
    assert 600 <= clock.saved[0] <= 1000


def test_a_run_that_a_callback_ends_is_whole(tmp_path):
    """The step after which it ends was saved as one within an epoch before."""

    class Enough(lightning.Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            trainer.should_stop = batch_idx == 2

    result = fit(recipe(**EVERY_STEP), output=tmp_path / "run", callbacks=[Enough()])
    assert result.best_checkpoint.is_file()
    state = read_state(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 1


def test_a_plain_trainer_goes_on_with_the_right_batches(tmp_path):
    """The data module says where, not the run folder of a recipe."""

    class Look(lightning.Callback):
        def __init__(self):
            self.labels = []

        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            self.labels.append(batch[1].tolist())

    def train(look, checkpoint=None):
        data = torchadder.data.ImageData("mnist", batch_size=500, workers=1, cache_mb=0)
        data.setup()
        task = Classification(models.lenet5_bn(conv="conv"), num_classes=10)
        keeper = ModelCheckpoint(tmp_path, "at-{step}", every_n_train_steps=3, save_top_k=-1)
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            callbacks=[keeper, look],
            plugins=[SafetensorsCheckpointIO()],
        )
        with quiet():
            trainer.fit(task, data, ckpt_path=checkpoint)

    straight, rest = Look(), Look()
    train(straight)
    train(rest, tmp_path / "at-step=12.ckpt")
    assert len(straight.labels) == 16
    assert rest.labels == straight.labels[12:]


def test_the_data_of_a_result_have_whole_epochs(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(recipe(**EVERY_STEP), output=tmp_path / "run", callbacks=[Interrupt(0, 3)])
    data = resume(tmp_path / "run").data
    assert sum(1 for _ in data.train_dataloader()) == len(data.train_dataloader()) == 125


def test_the_readers_of_a_stream_stay_the_same(tmp_path, monkeypatch):
    """`data.workers` is not named, and the machine that goes on has more CPUs."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_digits(tmp_path / "data", {"train": slice(0, 5000, 80), "test": slice(1, 5000, 400)})
    options = {"data.source": str(tmp_path / "data"), "data.streaming": True, "data.batch_size": 8}
    options |= {"data.shuffle_buffer": 5, "trainer.limit_train_batches": 1.0}
    monkeypatch.setattr("torchadder.data.module.os.cpu_count", lambda: 1)
    straight = fit(recipe(**options, **NEVER), output=tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt, match="1 of 2 epochs and 3 batches"):
        fit(recipe(**options, **EVERY_STEP), output=tmp_path / "cut", callbacks=[Interrupt(1, 3)])
    monkeypatch.setattr("torchadder.data.module.os.cpu_count", lambda: 2)
    resume(tmp_path / "cut")
    assert_same_end(tmp_path / "cut", straight.folder)


def test_by_default_a_short_epoch_is_not_interrupted_by_writing(tmp_path):
    written = []

    class Watch(lightning.Callback):
        def on_save_checkpoint(self, trainer, task, checkpoint):
            written.append(trainer.global_step)

    fit(recipe(), output=tmp_path / "run", callbacks=[Watch()])
    assert set(written) == {6, 12}


def test_how_often_may_change_when_a_run_goes_on(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt, match="interrupted after 1 of 2 epochs; continue with"):
        fit(recipe(**NEVER), output=tmp_path / "run", callbacks=[Interrupt(1, 3)])
    message = "interrupted after 1 of 2 epochs and 4 batches of the next; continue with: torchadder"
    with pytest.raises(KeyboardInterrupt, match=message):
        resume(tmp_path / "run", place={"checkpoint_minutes": 0.0}, callbacks=[Interrupt(1, 4)])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["epochs"]) == ("interrupted", 1)
    capsys.readouterr()
    resume(tmp_path / "run")
    assert "\ngoes on after 1 of 2 epochs and 4 batches of the next\n" in capsys.readouterr().out


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
def test_a_time_that_is_none(value):
    with pytest.raises(RecipeError, match=r"trainer\.checkpoint_minutes = .*: 0 or more minutes"):
        recipe(**{"trainer.checkpoint_minutes": value})


def test_weights_of_an_unfinished_epoch_can_be_loaded(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(recipe(**EVERY_STEP), output=tmp_path / "run", callbacks=[Interrupt(0, 3)])
    kept = torchadder.load(tmp_path / "run" / "checkpoints" / "last.safetensors").state_dict()
    state = read_state(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in kept.items())
