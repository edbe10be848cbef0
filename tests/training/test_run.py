import csv
import json
import os
import shutil
import signal

import lightning
import pytest
import torch
import yaml

import torchadder
from short_runs import assert_same_state, write_digits
from torchadder import locks, recipes
from torchadder.checkpoint import CheckpointError, read_info
from torchadder.training import NonFiniteError, RecipeError, fit, resume
from torchadder.training import run as run_module
from torchadder.training.checkpoint_io import SafetensorsCheckpointIO, read_state
from torchadder.training.evaluation import evaluate, image_files, open_checkpoint, predict


def recipe(method="conv", **overrides):
    small = {"epochs": 4, "trainer.limit_train_batches": 6, "trainer.limit_val_batches": 2}
    fixed = {"trainer.threads": 1, "data.batch_size": 32, "data.augment": "crop"}
    return recipes.load(f"mnist_lenet5bn_{method}", small | fixed | overrides)


class Interrupt(lightning.Callback):
    """Presses Ctrl-C in an epoch."""

    def __init__(self, epoch, batch):
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            os.kill(os.getpid(), signal.SIGINT)


class Poison(lightning.Callback):
    """Lets something become NaN in one step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_step != self.step:
            return
        net = task.plain_model
        if self.what == "weight gradient":
            net.conv2.weight.register_hook(lambda gradient: gradient * float("nan"))
        elif self.what == "weight":
            net.conv3.weight.data[0] = float("inf")
        elif self.what == "buffer":
            net.bn2.running_mean[0] = float("nan")


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(file)
        ]


def training_state(folder):
    state = read_state(folder / "checkpoints" / "last.ckpt")
    # The paths in it are those of the run folder.
    callbacks = {k: v for k, v in state["callbacks"].items() if "BestAndLast" not in k}
    return state | {"callbacks": callbacks}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "adder"
    return fit(recipe("adder"), output=folder)


def test_run_folder_is_complete(finished):
    folder = finished.folder
    names = {"config.yaml", "metrics.csv", "tensorboard", "checkpoints", "summary.json"}
    assert {path.name for path in folder.iterdir()} == names
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert kept == {f"{n}.{s}" for n in ("best", "last") for s in ("ckpt", "safetensors")}
    table = rows(folder)
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4"]
    want = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5", "lr"]
    assert list(table[0])[:7] == want
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["seed"] == 0
    assert summary["hardware"]["torch_threads"] == 1
    assert summary["peak_rss_bytes"] > 1e7
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["metrics"]["best_val_accuracy"] == finished.metrics["best_val_accuracy"]
    assert any((folder / "tensorboard").glob("events*"))


def test_config_repeats_the_run(finished, tmp_path):
    again = recipes.load(str(finished.folder / "config.yaml"))
    assert again == recipe("adder")
    result = fit(again, output=tmp_path / "again")
    assert rows(result.folder) == rows(finished.folder)
    assert_same_state(training_state(result.folder), training_state(finished.folder))


def test_learning_rate_is_half_a_cosine_by_epoch(finished):
    got = [row["lr"] for row in finished.history]
    assert got == pytest.approx([0.1, 0.085355339, 0.05, 0.014644661])


def test_weights_are_a_plain_net_with_its_preprocessing(finished):
    info = read_info(finished.best_checkpoint)
    assert info.config["name"] == "lenet5_bn"
    assert info.metadata["class_names"] == [str(digit) for digit in range(10)]
    assert info.metadata["preprocess"]["channels"] == 1
    assert not torchadder.load(finished.last_checkpoint).training


@pytest.mark.parametrize(("method", "epoch", "batch"), [("adder", 2, 3), ("pkkd", 1, 5)])
def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path, method, epoch, batch):
    straight = fit(recipe(method), output=tmp_path / "straight")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"interrupted after {epoch} of 4 epochs"):
        fit(recipe(method), output=tmp_path / "cut", callbacks=[Interrupt(epoch, batch)])
    assert signal.getsignal(signal.SIGINT) is handler
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["status"] == "interrupted"
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "cut", moved)
    torch.manual_seed(99)  # whatever the process did before must not matter
    result = resume(moved)
    assert rows(result.folder) == rows(straight.folder)
    assert_same_state(training_state(moved), training_state(straight.folder))
    for name in ("best_checkpoint", "last_checkpoint"):
        got = torchadder.load(getattr(result, name)).state_dict()
        assert_same_state(got, torchadder.load(getattr(straight, name)).state_dict())
    assert result.metrics["best_epoch"] == straight.metrics["best_epoch"]


def test_two_processes_do_not_share_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "PATIENCE", 0.2)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(recipe(epochs=2), output=tmp_path / "run", callbacks=[StopAfter(1)])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with (
        locks.locked(tmp_path / "run"),
        pytest.raises(RecipeError, match="run': another process is training there") as caught,
    ):
        resume(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before

    class Look(lightning.Callback):
        def on_train_start(self, trainer, task):
            assert locks.is_locked(tmp_path / "run")

    resume(tmp_path / "run", callbacks=[Look()])
    assert not locks.is_locked(tmp_path / "run")


class StopAfter(lightning.Callback):
    """Stops a run after some epochs."""

    def __init__(self, num_epochs):
        self.num_epochs = num_epochs

    def on_train_epoch_start(self, trainer, task):
        if trainer.current_epoch == self.num_epochs:
            raise RuntimeError("stopped")


class StopAtTheEnd(lightning.Callback):
    """Stops a run between its last checkpoint and its summary."""

    def on_train_end(self, trainer, task):
        raise KeyboardInterrupt


def test_a_run_that_had_to_end_early_trains_no_further_epoch(tmp_path):
    """At a rate of nothing accuracy wanders; the first epoch that is no better is the last."""
    keys = {"trainer.patience": 1, "trainer.limit_train_batches": 1, "optimizer.lr": 1e-12}
    impatient = recipe(epochs=20, **keys)
    with pytest.raises(KeyboardInterrupt):
        fit(impatient, output=tmp_path / "run", callbacks=[StopAtTheEnd()])
    before = rows(tmp_path / "run")
    assert 1 < len(before) < 20
    resume(tmp_path / "run")
    assert rows(tmp_path / "run") == before
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["ended_early"]) == ("finished", True)


@pytest.mark.parametrize("streaming", [False, True])
def test_worker_processes_begin_with_the_right_epoch(tmp_path, monkeypatch, streaming):
    """Lightning lets them fetch batches before it knows the epoch that a run goes on with."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_digits(tmp_path / "data", {"train": slice(0, 5000, 80), "test": slice(1, 5000, 400)})
    options = {"data.source": str(tmp_path / "data"), "data.cache_mb": 0, "data.workers": 1}
    options |= {"data.streaming": streaming, "trainer.limit_train_batches": 1.0, "epochs": 2}
    straight = fit(recipe("adder", **options), output=tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        fit(recipe("adder", **options), output=tmp_path / "cut", callbacks=[Interrupt(1, 0)])
    resume(tmp_path / "cut")
    assert_same_state(training_state(tmp_path / "cut"), training_state(straight.folder))


def test_no_run_is_overwritten(finished, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    with pytest.raises(FileExistsError, match="is not empty; nothing in it is overwritten"):
        fit(recipe(), output=finished.folder)
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before
    monkeypatch.chdir(tmp_path)
    small = {"epochs": 1, "trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1}
    folders = {fit(recipe(**small)).folder for _ in range(2)}
    assert len(folders) == 2
    assert all(folder.parent.name == "runs" for folder in folders)


def test_a_recipe_that_cannot_run_leaves_no_folder(tmp_path):
    for overrides in (
        {"trainer.accelerator": "abacus"},
        {"model.name": "resnet21"},
        {"model.kwargs": {"depth": 3}},
        {"data.source": "./nowhere"},
        {"trainer.limit_train_batches": 0.001},
        {"trainer.limit_val_batches": 0.001},
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            fit(recipe(**overrides), output=tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "key", "num_outputs"),
    [
        ("adder", "model", 20),
        ("adder", "model", 9),
        ("pkkd", "distill.teacher", 20),
    ],
)
def test_a_net_has_one_output_for_each_class(tmp_path, method, key, num_outputs):
    argument = "model.kwargs" if key == "model" else "distill.teacher_kwargs"
    message = rf"^{key} = lenet5_bn has {num_outputs} outputs: 10 are wanted, one for each class"
    with pytest.raises(RecipeError, match=message):
        fit(recipe(method, **{argument: {"num_classes": num_outputs}}), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_has_one_output_for_each_class(finished, tmp_path):
    metadata = read_info(finished.best_checkpoint).metadata
    path = tmp_path / "wide.safetensors"
    torchadder.save(torchadder.models.lenet5_bn(num_classes=20), path, metadata=metadata)
    with pytest.raises(CheckpointError, match="has 20 outputs: 10 are wanted, one for each of its"):
        open_checkpoint(path)


def test_resume_refuses_what_it_cannot_continue(finished, tmp_path):
    with pytest.raises(RecipeError, match="the run is finished"):
        resume(finished.folder)
    with pytest.raises(RecipeError, match=r"no run folder, config.yaml is missing"):
        resume(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model"]["name"] = "resnet20"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match=r"of another recipe: model.name is 'lenet5_bn'"):
        resume(copy)
    checkpoint = copy / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"last.ckpt: truncated or damaged"):
        resume(copy)
    shutil.copy(copy / "checkpoints" / "best.safetensors", checkpoint)
    with pytest.raises(CheckpointError, match="not the state of a training run"):
        resume(copy)
    checkpoint.unlink()
    with pytest.raises(CheckpointError, match=r"last.ckpt is missing, though metrics.csv has"):
        resume(copy)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "metrics.csv is damaged, remove it to go on without"),
        (lambda text: text.replace("epoch", "time", 1), "its end or its column of epochs"),
        (lambda text: text.replace("\r\n2,", "\r\nx,"), "metrics.csv is damaged.*'x'"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, damage, message):
    with pytest.raises(RuntimeError, match="stopped"):
        fit(recipe(epochs=4), output=tmp_path / "run", callbacks=[StopAfter(3)])
    table = tmp_path / "run" / "metrics.csv"
    table.write_bytes(damage(table.read_bytes().decode()).encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        resume(tmp_path / "run")
    assert "\n" not in str(caught.value)
    table.unlink()
    assert [row["epoch"] for row in resume(tmp_path / "run").history] == [4]


def test_initial_weights_of_another_net_are_refused(finished, tmp_path):
    path = str(finished.best_checkpoint)
    with pytest.raises(CheckpointError, match=r"does not fit resnet20"):
        fit(recipe(**{"model.checkpoint": path, "model.name": "resnet20"}), output=tmp_path / "a")
    # The adder net's weights do not fit its CNN twin, though names and shapes are the same.
    with pytest.raises(CheckpointError, match=r"does not fit lenet5_bn"):
        fit(recipe(**{"model.checkpoint": path}), output=tmp_path / "a")


def test_a_fixed_teacher_is_not_changed(tmp_path):
    teacher = fit(recipe(epochs=1), output=tmp_path / "teacher")
    small = {"epochs": 1, "distill.progressive": False, "distill.taps": ["conv2"]}
    path = {"distill.teacher_checkpoint": str(teacher.best_checkpoint)}
    fit(recipe("pkkd", **small, **path), output=tmp_path / "student")
    state = read_state(tmp_path / "student" / "checkpoints" / "last.ckpt")["state_dict"]
    for name, value in torchadder.load(teacher.best_checkpoint).state_dict().items():
        assert torch.equal(state[f"model.teacher.{name}"], value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "weight gradient",
            r"step 8 \(epoch 2, batch 2\): the loss is finite, the gradient is not; "
            r"first non-finite gradient in backward order: weight of layer 'conv2'",
        ),
        (
            "weight",
            r"step 8 .*: the loss is nan; first non-finite in forward order: weight of "
            r"layer 'conv3'; first non-finite gradient in backward order: ",
        ),
        ("buffer", r"end of epoch 2: running_mean of layer 'bn2' is not finite"),
    ],
)
def test_nan_stops_training_and_keeps_the_last_good_checkpoint(tmp_path, what, message):
    with pytest.raises(NonFiniteError, match=message):
        fit(recipe(), output=tmp_path / "run", callbacks=[Poison(8, what)])
    state = read_state(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 1
    for name in ("best", "last"):
        net = torchadder.load(tmp_path / "run" / "checkpoints" / f"{name}.safetensors")
        assert all(torch.isfinite(value).all() for value in net.state_dict().values())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"].startswith("stopped: ")


class Kill(lightning.Callback):
    """Puts the activations of a layer below 0 for good, after the first epoch."""

    def on_train_epoch_start(self, trainer, task):
        if trainer.current_epoch == 1:
            torch.nn.init.constant_(task.plain_model.bn3.bias, -100.0)


@pytest.mark.parametrize(("method", "eval_batch"), [("conv", 32), ("pkkd", 32), ("conv", 999)])
def test_a_net_that_answers_the_same_for_all_images_is_warned_of(
    tmp_path, method, eval_batch, capsys
):
    # 1000 images: 999 leave a last batch of one, of which batch norm finds no statistics.
    some = {"epochs": 2, "data.eval_batch_size": eval_batch}
    fit(recipe(method, **some), output=tmp_path / "run", callbacks=[Kill()])
    lines = capsys.readouterr().out.splitlines()
    warnings = [number for number, line in enumerate(lines) if "get the same logits" in line]
    # PKKD's net answers the same after the first epoch, too, but with its running statistics only.
    (second,) = (number for number, line in enumerate(lines) if line.startswith("epoch 2/2  train"))
    assert warnings == [second + 1]


def test_nan_in_the_first_epoch_leaves_no_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match="there is no checkpoint"):
        fit(recipe(), output=tmp_path / "run", callbacks=[Poison(2, "weight")])
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_checkpoints_hold_no_pickle(finished, tmp_path):
    for path in (finished.folder / "checkpoints").iterdir():
        header = int.from_bytes(path.read_bytes()[:8], "little")
        json.loads(path.read_bytes()[8 : 8 + header])
    plugin = SafetensorsCheckpointIO()
    state = {"a": (1, [2.5, None, "x"]), "b": {3: torch.arange(4)[::2], "n": float("inf")}, "c": {}}
    plugin.save_checkpoint(state, tmp_path / "x.ckpt")
    assert_same_state(plugin.load_checkpoint(tmp_path / "x.ckpt"), state)
    with pytest.raises(TypeError, match=r"checkpoint.b.c holds a set, which only pickle"):
        plugin.save_checkpoint({"b": {"c": {1}}}, tmp_path / "y.ckpt")


def test_evaluate_gives_the_metrics_of_training(tmp_path):
    full = {"trainer.limit_val_batches": 1.0, "epochs": 2}
    result = fit(recipe("adder", **full), output=tmp_path / "run")
    best = result.history[int(result.metrics["best_epoch"]) - 1]
    found = evaluate(result.folder, threads=1)
    assert found["accuracy"] == best["val_accuracy"]
    assert found["loss"] == pytest.approx(best["val_loss"], rel=1e-5)
    assert found["num_images"] == 1000
    assert found["num_mul"] < found["num_add"]


def test_predict_reports_each_image(finished, tmp_path):
    import PIL.Image

    pixels = finished.data.val.split.pixels
    for index in (0, 500):
        PIL.Image.fromarray(pixels[index, 0]).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = {p.path.name: p for p in predict(finished.folder, image_files(tmp_path), top=3)}
    assert found["bad.png"].error.startswith("cannot be decoded")
    assert len(found["0.png"].names) == 3
    images, _ = finished.data.val[(0, 500)]
    with torch.no_grad():
        want = finished.model.eval()(images[None]).softmax(1).max()
    assert found["500.png"].probabilities[0] == pytest.approx(float(want), rel=1e-4)
