"""A run whose exponent falls: what is trained, kept and resumed."""

from types import SimpleNamespace

import pytest
import torch

import torchadder as ta
from torchadder import recipes
from torchadder.tasks import Classification
from torchadder.training import RecipeError, fit, resume
from torchadder.training.diagnosis import open_distiller, open_pair
from torchadder.training.evaluation import evaluate
from torchadder.training.exponent import ExponentFall
from torchadder.training.graph import FastStep

SMALL = {"epochs": 4, "trainer.limit_train_batches": 4, "trainer.threads": 1, "lp.share": 0.5}
SMALL["trainer.limit_val_batches"] = 2


class StopAfter(ta.training.callbacks.Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epochs:
            raise KeyboardInterrupt


def small(**overrides):
    return recipes.load("mnist_lenet5bn_lp", SMALL | overrides)


def test_run_ends_as_a_plain_adder_net_and_resumes_exactly(tmp_path):
    result = fit(small(), output=tmp_path / "whole")
    assert [row["p"] for row in result.history] == [2.0, 1.5, 1.0, 1.0]
    assert type(result.model.conv2) is ta.nn.Adder2d
    assert result.metrics["best_epoch"] >= 3  # of the plain adder net
    best = max(row["val_accuracy"] for row in result.history[2:])
    assert result.metrics["best_val_accuracy"] == best
    plain = ta.energy.count(ta.models.lenet5_bn(), torch.zeros(1, 1, 28, 28))
    assert evaluate(result.best_checkpoint)["num_mul"] == plain.num_mul

    with pytest.raises(KeyboardInterrupt):
        fit(small(), output=tmp_path / "parts", callbacks=[StopAfter(2)])
    between = ta.load(tmp_path / "parts" / "checkpoints" / "last.safetensors")
    assert between.conv2.p == 1.5
    resumed = resume(tmp_path / "parts")
    for row, want in zip(resumed.history, result.history, strict=True):
        assert {**row, "seconds": 0} == {**want, "seconds": 0}
    whole, parts = (ta.load(each.last_checkpoint).state_dict() for each in (result, resumed))
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_a_change_of_the_exponent_forgets_what_was_compiled(monkeypatch):
    task = Classification(ta.models.lenet5_bn(), num_classes=10)
    task.fast_step = FastStep(task)
    closed = []
    monkeypatch.setattr(FastStep, "close", lambda self: closed.append(self))
    monkeypatch.setattr(Classification, "log", lambda *args, **kwargs: None)
    fall = ExponentFall(ta.lp.ExponentSchedule("step", share=0.5, num_steps=1), clip=False)
    limits = {"estimated_stepping_batches": 12, "num_training_batches": 3}
    limits |= {"accumulate_grad_batches": 1, "train_dataloader": []}
    for epoch, times in enumerate((0, 0, 1, 1)):
        trainer = SimpleNamespace(**limits, current_epoch=epoch, checkpoint_callbacks=[])
        fall.on_train_epoch_start(trainer, task)
        assert closed == [task.fast_step] * times


@pytest.mark.parametrize("opened", [open_distiller, open_pair])
def test_diagnosis_sees_the_net_that_was_kept(tmp_path, opened):
    changes = {"epochs": 3, "lp.schedule": "linear", "lp.share": 1.0}
    result = fit(recipes.load("mnist_lenet5bn_pkkd", SMALL | changes), output=tmp_path / "run")
    kept, images = ta.load(result.last_checkpoint).eval(), torch.randn(4, 1, 28, 28)
    distiller, _ = opened(tmp_path / "run")
    assert torch.equal(distiller.student(images), kept(images))


def test_cnn_has_no_exponent(tmp_path):
    with pytest.raises(RecipeError, match=r"lp.schedule = 'linear': .* has no Adder2d layers"):
        fit(small(**{"model.conv": "conv"}), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lp.start", 1.0, "lp.start = 1.0: above 1, up to 2 is wanted"),
        ("lp.share", 0.0, "lp.share = 0.0: a share above 0, up to 1 is wanted"),
        ("lp.steps", 0, "lp.steps = 0: at least 1 is wanted"),
        ("lp.schedule", "cosine", "lp.schedule = cosine"),
        ("trainer.patience", 3, "trainer.patience = 3: null, because lp.schedule is linear: a run"),
        ("method", "snapshot", "lp.schedule = 'linear': none, because method is snapshot, whose"),
    ],
)
def test_bad_values(key, value, message):
    with pytest.raises(RecipeError, match=message):
        small(**{key: value})
