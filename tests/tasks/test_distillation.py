"""Ramps, cycles and what is logged; whole runs on a few batches of real digits."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

import torchadder
from torchadder import models, recipes
from torchadder.checkpoint import CheckpointError
from torchadder.distill import KD, METHODS, PKKD, Snapshot, options_of, term_gradients
from torchadder.tasks import Distillation, Ramp
from torchadder.tasks.length import RunLength
from torchadder.training import RecipeError, fit, resume
from torchadder.training.callbacks import read_metrics
from torchadder.training.diagnosis import open_distiller, some_training_images
from torchadder.training.recipe import DistillConfig, Recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]


RUNS = ("whole", "part")
SMALL = {
    "data.batch_size": 32,
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 1,
    "trainer.threads": 1,
}


def nets():
    return models.lenet5_bn(conv="adder"), models.lenet5_bn(conv="conv")


def small(method, epochs=2, **keys):
    """A run of two batches of real digits an epoch."""
    values = SMALL | {"method": method, "epochs": epochs}
    if METHODS[method].wants_teacher:
        values["distill.progressive"] = True
    keys = {f"distill.{key}": value for key, value in keys.items()}
    return recipes.load("mnist_lenet5bn_adder", values | keys)


def test_ramps():
    assert Ramp().strength(0) == 1.0
    epochs = Ramp("epochs", epochs=4)
    assert [epochs.strength(epoch) for epoch in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert Ramp("epochs", epochs=0.5).strength(0.25) == 0.5
    teacher = Ramp("teacher", accuracy=0.9)
    assert teacher.strength(0, None, 0.1) == 0
    strengths = [teacher.strength(1, accuracy, 0.1) for accuracy in (0.05, 0.1, 0.5, 0.9, 0.99)]
    assert strengths == pytest.approx([0, 0, 0.5, 1, 1])


def test_bad_ramps():
    with pytest.raises(ValueError, match="ramp must be by none, epochs or teacher, got 'steps'"):
        Ramp("steps")
    with pytest.raises(ValueError, match="epochs of a ramp must be above 0, got 0"):
        Ramp("epochs", epochs=0)
    with pytest.raises(ValueError, match=r"accuracy of a ramp .* got 1\.5"):
        Ramp("teacher", accuracy=1.5)
    with pytest.raises(ValueError, match="needs a progressive teacher"):
        Distillation(KD(*nets()), num_classes=10, ramp=Ramp("teacher"))


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_the_rate_falls_once_in_each_cycle(interval):
    student, _ = nets()
    task = Distillation(Snapshot(student, cycles=2), num_classes=10, interval=interval)
    factor = task._schedule_factor(RunLength(12, 3))  # three steps an epoch, two epochs a cycle
    first = [factor(step) for step in range(6)]
    progress = [0, 0, 0, 0.5, 0.5, 0.5] if interval == "epoch" else [i / 6 for i in range(6)]
    assert first == pytest.approx([(1 + math.cos(math.pi * p)) / 2 for p in progress])
    assert [factor(step) for step in range(6, 12)] == pytest.approx(first)
    assert factor(12) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("kd", "train_kd"),
        ("at", "train_at"),
        ("sp", "train_sp"),
        ("fsp", "train_fsp"),
        ("fitnet", "train_hint"),
        ("dropout", "train_ce"),
    ],
)
def test_every_method_trains_and_logs_its_parts(tmp_path, method, part):
    result = fit(small(method, epochs=1), output=tmp_path / "run")
    row = result.history[-1]
    assert math.isfinite(row[part])
    has_teacher = METHODS[method].wants_teacher
    assert ("teacher_val_accuracy" in row) == has_teacher
    assert [n for n in row if n.startswith("alignment/")] == (
        [f"alignment/{name}" for name in (result_taps(method) if has_teacher else [])]
    )
    assert all(-0.5 <= row[n] <= 1 for n in row if n.startswith("alignment/"))


def result_taps(method):
    return {"kd": ["conv2", "conv3", "conv4"]}.get(method, ["bn2", "bn3", "bn4"])


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("snapshot", {"cycles": 2}),
        ("pkkd", {"ramp": "teacher", "ramp_accuracy": 0.3}),
        (
            "pkkd",
            {"kernel": "laplacian", "ramp": "epochs", "ramp_epochs": 1.0, "shared_init": True},
        ),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, method, keys):
    recipe = small(method, epochs=4, **keys)
    whole = fit(recipe, output=tmp_path / "whole")

    class StopAfter(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe, output=tmp_path / "part", callbacks=[StopAfter()])
    resumed = resume(tmp_path / "part")
    want, got = (load_file(tmp_path / f"{name}/checkpoints/last.safetensors") for name in RUNS)
    assert all(torch.equal(got[name], value) for name, value in want.items())
    got = read_metrics(tmp_path / "part/metrics.csv")
    for row, wanted in zip(got, whole.history, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in wanted.items() if k != "seconds"
        }
    strengths = [row["distill_strength"] for row in resumed.history]
    assert strengths == [row["distill_strength"] for row in whole.history]
    if keys.get("ramp") == "epochs":
        assert strengths == [1 / 8, 3 / 8, 5 / 8, 7 / 8]  # of the second of two batches an epoch
    elif "ramp" in keys:
        assert strengths[0] == 0 < strengths[-1]


@pytest.mark.parametrize(
    ("epochs", "length", "wanted"), [(1, 0.125, [0, 1]), (2, 2, [0, 0.25, 0.5, 0.75])]
)
def test_a_ramp_grows_from_batch_to_batch(tmp_path, epochs, length, wanted):
    """A share of the run may come to less than one epoch."""
    strengths = []

    class Note(Callback):
        def on_train_batch_end(self, trainer, task, *args):
            strengths.append(float(task.distiller.strength))

    recipe = small("kd", epochs, ramp="epochs", ramp_epochs=length)
    result = fit(recipe, output=tmp_path / "run", callbacks=[Note()])
    assert strengths == wanted
    assert [row["distill_strength"] for row in result.history] == wanted[1::2]


def test_snapshot_run_learns_from_the_second_cycle_on(tmp_path):
    result = fit(small("snapshot", epochs=4, cycles=2), output=tmp_path / "run")
    assert ["train_kd" in row for row in result.history] == [False, False, True, True]
    assert [row["lr"] for row in result.history] == pytest.approx([0.1, 0.05, 0.1, 0.05])
    distiller, data = open_distiller(tmp_path / "run")
    pulls = term_gradients(distiller, *some_training_images(data, 16))
    assert {pull.term for pull in pulls} == {"ce", "kd"}


def test_a_fixed_teacher_is_loaded(tmp_path):
    first = fit(recipes.load("mnist_lenet5bn_conv", SMALL | {"epochs": 1}), output=tmp_path / "cnn")
    checkpoint = str(first.last_checkpoint)
    recipe = small("pkkd", epochs=1, progressive=False, teacher_checkpoint=checkpoint)
    row = fit(recipe, output=tmp_path / "student").history[-1]
    assert row["teacher_val_accuracy"] == first.history[-1]["val_accuracy"]
    assert "teacher_train_loss" not in row


def test_a_run_goes_on_without_the_files_it_began_with(tmp_path):
    """A table may be moved, and a teacher deleted: the state of the run holds all weights."""
    files = {kind: str(tmp_path / f"{kind}.safetensors") for kind in ("adder", "conv")}
    for kind, path in files.items():
        torchadder.save(models.lenet5_bn(conv=kind), path)
    recipe = small("kd", progressive=False, teacher_checkpoint=files["conv"])
    recipe.model.checkpoint = files["adder"]
    whole = fit(recipe, output=tmp_path / "whole")

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe, output=tmp_path / "part", callbacks=[Stop()])
    for path in files.values():
        Path(path).unlink()
    config = tmp_path / "part" / "config.yaml"
    config.write_text(config.read_text().replace("conv.safetensors", "moved.safetensors"))
    resumed = resume(tmp_path / "part")
    want, got = (load_file(run.last_checkpoint) for run in (whole, resumed))
    assert all(torch.equal(got[name], value) for name, value in want.items())
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        fit(recipe, output=tmp_path / "new")


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        (
            "runs/mnist_lenet5bn_conv/checkpoints/last.safetensors",
            "; train it first: torchadder train mnist_lenet5bn_conv "
            "--output runs/mnist_lenet5bn_conv",
        ),
        (
            "runs/teacher/checkpoints/best.safetensors",
            "; train it first: torchadder train RECIPE --output runs/teacher",
        ),
        ("teacher.safetensors", ""),
    ],
)
def test_a_missing_teacher_is_named_with_the_command_that_trains_it(
    tmp_path, monkeypatch, path, advice
):
    monkeypatch.chdir(tmp_path)
    recipe = small("kd", progressive=False, teacher_checkpoint=path)
    with pytest.raises(CheckpointError) as caught:
        fit(recipe, output=tmp_path / "run")
    message = f"distill.teacher_checkpoint = {path}: no such checkpoint{advice}"
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()


def test_options_of_methods_are_keys_of_recipes():
    keys = set(DistillConfig.__dataclass_fields__)
    for method in METHODS:
        assert set(options_of(method)) <= keys, method


def test_defaults_are_those_of_the_method():
    assert Recipe(method="pkkd").distill.alpha == 5.0
    at = small("at").distill
    assert (at.alpha, at.beta, at.kernel) == (0.0, 1000.0, None)
    assert Recipe(method="dropout").distill.dropout == 0.2
    supervised = Recipe().distill
    assert (supervised.alpha, supervised.progressive) == (None, None)


def test_files_from_before_there_were_other_methods_can_be_read():
    before = {
        "alpha": 5.0,
        "beta": 5.0,
        "temperature": 1.0,
        "taps": None,
        "kernel": True,
        "linear_map": True,
        "progressive": True,
        "teacher_conv": "conv",
        "teacher_checkpoint": None,
    }
    assert Recipe(distill=DistillConfig(**before)).distill == DistillConfig()
    pkkd = Recipe(method="pkkd", distill=DistillConfig(**before)).distill
    assert pkkd == Recipe(method="pkkd").distill


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"distill.alpha": -1.0},
            r"distill\.alpha = -1\.0: a finite number of at least 0 is wanted",
        ),
        ({"distill.beta": float("nan")}, r"distill\.beta = nan: a finite number"),
        ({"method": "pkdd"}, "method: unknown method 'pkdd'; did you mean 'pkkd'"),
        (
            {"method": "kd", "distill.progressive": True, "distill.kernel": False},
            r"distill\.kernel = False: method kd does not know this key; it is known to pkkd",
        ),
        (
            {"method": "kd", "distill.beta": 5.0},
            r"distill\.beta = 5\.0: method kd does not know this key; it is known to pkkd",
        ),
        (
            {"method": "supervised", "distill.alpha": 5.0},
            r"distill\.alpha = 5\.0: method supervised does not know this key",
        ),
        (
            {"distill.shared_init": True, "model.checkpoint": "net.safetensors"},
            r"distill\.shared_init = True: false, because model\.checkpoint has the student's",
        ),
        (
            {"method": "supervised", "distill.cycles": 3},
            r"distill\.cycles = 3: method supervised does not .* known to snapshot",
        ),
        (
            {"method": "snapshot", "distill.teacher_checkpoint": "x"},
            r"teacher_checkpoint = 'x': method snapshot does not .* known to pkkd, kd, at, sp, fsp",
        ),
        (
            {"method": "dropout", "distill.ramp": "epochs"},
            r"distill\.ramp = 'epochs': method dropout does not .* known to pkkd, kd, ",
        ),
        (
            {"method": "kd"},
            r"distill\.teacher_checkpoint = None: a file of trained weights \(distill\.progressive "
            r"is false, so the teacher is not trained\) is wanted$",
        ),
        (
            {"method": "snapshot", "distill.ramp": "teacher"},
            r"ramp = 'teacher': none or epochs \(a fixed teacher makes no progress\) is wanted",
        ),
        ({"method": "snapshot", "epochs": 3}, r"distill\.cycles = 4: 2 \.\. epochs = 3 is wanted"),
        (
            {"distill.kernel": "sobolev"},
            r"distill\.kernel = sobolev: one of true, false, paper, gaussian, laplacian, none, null"
            " is wanted$",
        ),
        ({"distill.exponent_limit": 0.0}, r"exponent_limit = 0\.0: a number above 0, up to 30"),
        ({"distill.exponent_limit": 31.0}, r"exponent_limit = 31\.0: a number above 0, up to 30"),
        (
            {"distill.learned_scales": "Student"},
            r"distill\.learned_scales = Student: one of both, student, none, null is wanted$",
        ),
        (
            {"distill.ramp": "steps"},
            r"distill\.ramp = steps: one of none, epochs, teacher is wanted$",
        ),
        (
            {"distill.ramp_epochs": 5.0},
            r"distill\.ramp_epochs = 5\.0: a whole number of epochs, such as 5, or a share of the "
            r"run in \(0, 1\], such as 0\.125, is wanted$",
        ),
        ({"distill.ramp_epochs": 0}, "ramp_epochs = 0: a whole number of epochs, such as 5"),
        ({"distill.ramp_epochs": 1.5}, r"ramp_epochs = 1\.5: a whole number of epochs, such"),
        ({"distill.ramp_accuracy": 0.0}, "ramp_accuracy = 0.0: a share above 0, up to 1"),
    ],
)
def test_bad_keys(values, message):
    with pytest.raises(RecipeError, match=message):
        recipes.load("mnist_lenet5bn_pkkd", values)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"taps": ["conv9"]},
            r"method pkkd: taps names layer 'conv9', which the student does not have; the student "
            r"is LeNet5BN with conv1 \(6, 1, 5, 5\), .*the teacher LeNet5BN with conv1",
        ),
        ({"taps": ["layer*"]}, r"method pkkd: taps: no layer fits the pattern 'layer\*'"),
        (
            {"teacher_kwargs": {"feature_dim": 2}, "taps": ["embedding.0"]},
            r"'embedding\.0', which the student does not have",
        ),
        (
            {"teacher_model": "resnet20", "taps": None},
            r"distill\.teacher = resnet20 on images of 1x28x28|no layer to compare",
        ),
    ],
)
def test_teachers_that_do_not_fit(tmp_path, keys, message):
    with pytest.raises(RecipeError, match=message):
        fit(small("pkkd", epochs=1, **keys), output=tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("method", ["at", "fitnet"])
def test_maps_that_do_not_fit_are_found_before_the_run(tmp_path, method):
    keys = {"model.name": "resnet20", "distill.teacher_model": "resnet18"}
    keys |= {"method": method, "distill.progressive": True}
    recipe = recipes.load("mnist_lenet5bn_adder", SMALL | keys)
    wanted = r"compares layers of maps of the same size; .* layer1 \(1, 16, 28, 28\), .*teacher has"
    with pytest.raises(RecipeError, match=f"method {method}: .*{wanted}"):
        fit(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pkkd_logs_scales_and_parts(tmp_path):
    row = fit(small("pkkd", epochs=1), output=tmp_path / "run").history[-1]
    assert {"train_ce", "train_kd", "train_mid", "distill_strength"} <= set(row)
    assert row["sigma/conv2/student"] > 0
    loss = row["train_ce"] + 5 * row["train_kd"] + 5 * row["train_mid"]
    assert row["train_loss"] == pytest.approx(loss, rel=1e-5)


def test_a_task_takes_a_method_of_ones_own():
    student, teacher = nets()
    task = Distillation(PKKD(student, teacher), num_classes=10)
    assert task.plain_model is student
    assert len(task.parameter_groups()) == 2
