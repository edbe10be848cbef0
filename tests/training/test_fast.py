"""What keeps a device busy changes nothing that is trained: cache, compiler, graph, rare checks."""

import copy
import csv
import functools
import json
import math
from types import SimpleNamespace

import lightning
import pytest
import torch

import torchadder
from short_runs import assert_rounding_only, batch, distance, distillation, recipe, weights
from torchadder import models
from torchadder.distill import METHODS
from torchadder.tasks import Classification, Distillation
from torchadder.training import NonFiniteError, RecipeError, fit, resume
from torchadder.training.checkpoint_io import read_state
from torchadder.training.graph import FastStep, record
from torchadder.training.guard import NonFiniteGuard
from torchadder.training.watch import FiniteWatch, Moment


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(file)
        ]


def assert_equal_weights(got, want):
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


# The data set on the device ---------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_run_from_the_device_cache_is_the_same_bit_by_bit(tmp_path, augment):
    want = fit(recipe(**{"data.augment": augment}), output=tmp_path / "host")
    cached = {"data.augment": augment, "data.device_cache": True}
    got = fit(recipe(**cached), output=tmp_path / "device")
    assert rows(got.folder) == rows(want.folder)
    assert_equal_weights(weights(got.folder), weights(want.folder))


def test_large_batches_in_validation_change_rounding_only(tmp_path):
    whole = {"trainer.limit_val_batches": 1.0, "epochs": 1}
    want = fit(recipe(**whole), output=tmp_path / "small").metrics
    large = {"data.eval_batch_size": 999, "data.device_cache": True}
    got = fit(recipe(**whole, **large), output=tmp_path / "large").metrics
    assert got["val_accuracy"] == want["val_accuracy"]
    # A mean of 1,000 terms, summed in another order.
    assert got["val_loss"] == pytest.approx(want["val_loss"], rel=1000 * 2**-24)


# Rare validation and checkpoints ----------------------------------------------------------------


class Saved(lightning.Callback):
    """Notes after which epochs a checkpoint was written."""

    def __init__(self):
        self.epochs = []

    def on_save_checkpoint(self, trainer, task, checkpoint):
        if not self.epochs or self.epochs[-1] != trainer.current_epoch + 1:
            self.epochs.append(trainer.current_epoch + 1)


def test_epochs_without_a_validation_have_empty_cells(tmp_path):
    saved = Saved()
    rare = {"epochs": 5, "trainer.check_val_every": 2}
    result = fit(recipe("pkkd", **rare), output=tmp_path / "run", callbacks=[saved])
    table = rows(result.folder)
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4", "5"]
    validated = [2, 4, 5]  # the last epoch in any case
    for name in ("val_loss", "val_accuracy", "teacher_val_accuracy", "sigma/conv2/student"):
        assert [n for n, row in enumerate(table, 1) if row[name]] == validated, name
    for name in ("train_loss", "train_kd", "teacher_train_accuracy", "lr"):
        assert all(row[name] for row in table), name
    assert saved.epochs == validated
    every = fit(recipe("pkkd", epochs=5), output=tmp_path / "every")
    for rare_row, row in zip(table, rows(every.folder), strict=True):
        assert rare_row == {n: v for n, v in row.items() if rare_row[n]} | {
            n: "" for n in row if not rare_row[n]
        }
    assert_equal_weights(weights(result.folder), weights(every.folder))


def test_the_best_epoch_is_one_that_was_validated(tmp_path):
    rare = {"epochs": 5, "trainer.limit_val_batches": 1.0, "trainer.check_val_every": 2}
    result = fit(recipe("conv", **rare), output=tmp_path / "run")
    scores = {r["epoch"]: r["val_accuracy"] for r in result.history if "val_accuracy" in r}
    assert len(set(scores.values())) > 1
    best = max(scores, key=lambda epoch: scores[epoch])
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["metrics"]["best_epoch"] == best
    assert summary["metrics"]["best_val_accuracy"] == scores[best]
    kept = read_state(result.folder / "checkpoints" / "best.ckpt")
    assert kept["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == best


class Stop(lightning.Callback):
    """Stops with an error in an epoch."""

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.current_epoch == 3 and batch_idx == 1:
            raise RuntimeError("stopped")


def test_a_run_with_rare_checkpoints_goes_on_bit_by_bit(tmp_path):
    rare = recipe(epochs=5, **{"trainer.check_val_every": 2})
    straight = fit(rare, output=tmp_path / "straight")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(rare, output=tmp_path / "cut", callbacks=[Stop()])
    assert len(rows(tmp_path / "cut")) == 3
    result = resume(tmp_path / "cut")  # from the end of epoch 2
    assert rows(result.folder) == rows(straight.folder)
    assert_equal_weights(weights(result.folder), weights(straight.folder))


def test_long_epochs_are_kept_without_a_validation(tmp_path, monkeypatch):
    from torchadder.training import run

    keeper = run.BestAndLast
    monkeypatch.setattr(
        run, "BestAndLast", lambda *args, **options: keeper(*args, **options, seconds=0.0)
    )
    saved = Saved()
    rare = {"epochs": 3, "trainer.check_val_every": 3}
    fit(recipe("conv", **rare), output=tmp_path / "run", callbacks=[saved])
    assert saved.epochs == [1, 2, 3]


# The guard that does not wait -------------------------------------------------------------------


def test_the_watch_keeps_the_first_bad_batch():
    watch = FiniteWatch(torch.device("cpu"))
    good, bad = torch.tensor([1.0, -2.0]), torch.tensor([1.0, math.inf])
    for step in range(3):
        watch.begin(*batch(step), Moment(step, 0, step))
        watch.end([good.clone(), good.double()])
    assert watch.first_bad() is None
    for step in range(3, 9):
        size = 8 if step % 2 else 3
        watch.begin(*batch(step, size), Moment(step, 1, step - 3))
        values = bad if step in (5, 7) else good
        watch.end([values.clone()])
        assert float(watch.flag) == float(step >= 5)
    moment, images, labels = watch.first_bad()
    assert moment == Moment(5, 1, 2)
    assert torch.equal(images, batch(5)[0])
    assert torch.equal(labels, batch(5)[1])


class Poison(lightning.Callback):
    """Spoils a gradient or a weight before a step, and every step after it."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_step != self.step:
            return
        net = task.plain_model
        if self.what == "gradient":
            net.conv2.weight.register_hook(lambda gradient: gradient * float("nan"))
        else:
            net.conv3.weight.data[0] = float("inf")


class KeepWeights(lightning.Callback):
    """Copies the weights before a step."""

    def __init__(self, step):
        self.step, self.weights = step, None

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if trainer.global_step == self.step:
            self.weights = [p.detach().clone() for p in task.parameters()]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "gradient",
            r"^step 6 \(epoch 2, batch 2\): the loss is finite, the gradient is not; "
            r"first non-finite gradient in backward order: weight of layer 'conv2'; the last good",
        ),
        (
            "weight",
            r"^step 6 \(epoch 2, batch 2\): the loss is nan; first non-finite in forward order: "
            r"weight of layer 'conv3'; first non-finite gradient",
        ),
    ],
)
def test_the_flag_names_step_and_layer_and_keeps_the_weights(tmp_path, monkeypatch, what, message):
    from torchadder.training import run

    monkeypatch.setattr(run, "NonFiniteGuard", lambda **_: NonFiniteGuard(deferred=True))
    tasks = []
    build = run.build_task

    def build_fused(*arguments):
        tasks.append(build(*arguments))
        tasks[0].fused = True
        return tasks[0]

    monkeypatch.setattr(run, "build_task", build_fused)
    kept = KeepWeights(6)
    # Steps 6 and 7 are bad; the flag is read at the end of the epoch.
    with pytest.raises(NonFiniteError, match=message):
        fit(recipe("conv"), output=tmp_path / "run", callbacks=[kept, Poison(6, what)])
    now = list(tasks[0].parameters())
    if what == "gradient":
        for value, before in zip(now, kept.weights, strict=True):
            assert torch.equal(value, before)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["epochs"] == 1


def test_a_fused_run_is_the_same_up_to_rounding(tmp_path, monkeypatch):
    from torchadder.training import run

    want = fit(recipe("conv"), output=tmp_path / "plain")
    monkeypatch.setattr(run, "NonFiniteGuard", lambda **_: NonFiniteGuard(deferred=True))
    monkeypatch.setattr(Classification, "_is_fused", lambda self: True)
    got = fit(recipe("conv"), output=tmp_path / "fused")
    for name, value in weights(want.folder).items():
        torch.testing.assert_close(weights(got.folder)[name], value, rtol=1e-3, atol=1e-5)
    monkeypatch.undo()
    state = read_state(got.folder / "checkpoints" / "last.ckpt")
    assert state["optimizer_states"][0]["param_groups"][0]["fused"]


@pytest.mark.parametrize(
    ("device", "precision", "fused"),
    [("cuda", "32-true", True), ("cuda", "16-mixed", None), ("cpu", "32-true", None)],
)
@pytest.mark.parametrize("before", [True, None])
def test_a_run_goes_on_with_the_optimizer_of_its_device(device, precision, fused, before):
    """Lightning loads the checkpoint while the net is still on the CPU."""
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer = SimpleNamespace(strategy=strategy, precision=precision)
    module = Classification(torchadder.models.lenet5_bn(conv="conv"), num_classes=10)
    module.trainer = trainer
    state = {"optimizer_states": [{"param_groups": [{"fused": before}]}]}
    module.on_load_checkpoint(state)
    assert state["optimizer_states"][0]["param_groups"][0]["fused"] is fused


# Compiled and recorded steps --------------------------------------------------------------------


def steps(task, step, num_steps=5, sizes=(8, 8, 3)):
    """Losses and parameters of a few plain SGD steps through `step`."""
    optimizer = torch.optim.SGD(task.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for number in range(num_steps):
        loss, sums = step(*batch(number, sizes[number % len(sizes)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((float(loss.detach()), {n: float(v) for n, v in sums.items()}))
    return losses, [p.detach().clone() for p in task.parameters()]


def test_a_compiled_step_computes_the_same(monkeypatch):
    compiled = []
    real = torch.compile

    def without_code(function, **options):
        compiled.append(options)
        return real(function, backend="eager", fullgraph=True, dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", without_code)
    task = distillation()
    want = steps(task, task.loss_and_sums)
    task = distillation()
    fast = FastStep(task, compile="max-autotune-no-cudagraphs")
    got = steps(task, fast)
    fast.close()
    assert got[0] == want[0]
    for value, expected in zip(got[1], want[1], strict=True):
        assert torch.equal(value, expected)
    wanted = {"mode": "max-autotune-no-cudagraphs", "dynamic": False, "fullgraph": True}
    assert compiled == [wanted]
    assert not any(module._forward_hooks for module in task.modules())


def without_code(monkeypatch):
    """Lets `torch.compile` trace a function, but run the traced graph as it is."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(real, backend="eager"))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_step_of_every_method_is_one_graph(monkeypatch, method):
    without_code(monkeypatch)
    torch.manual_seed(0)
    nets = [models.lenet5_bn()]
    if METHODS[method].wants_teacher:
        nets.append(models.lenet5_bn(conv="conv"))
    task = Distillation(METHODS[method](*nets), num_classes=10)
    plain = copy.deepcopy(task)
    fast = FastStep(task, compile=True)
    for _ in range(3):
        torch.manual_seed(1)
        want = plain.loss_and_sums(*batch())[0]
        torch.manual_seed(1)
        got = fast(*batch())[0]
        assert torch.equal(got, want)
    assert fast._compiled is not None
    fast.close()
    assert not any(module._forward_pre_hooks for module in task.modules())


def test_the_first_size_of_a_batch_is_compiled(monkeypatch):
    without_code(monkeypatch)
    task = distillation()
    fast = FastStep(task, compile=True)
    images, labels = batch()
    fast(images, labels)  # as it is: the scales of the kernels are not known
    fast(images[:3], labels[:3])
    assert fast._compiled is None
    fast(images, labels)
    assert fast._compiled is not None
    fast.close()


class Asking(torch.nn.Module):
    """A layer that looks at a value, which no graph can hold."""

    def forward(self, x):
        return -x if float(x.detach().sum()) == 1.0 else x


def test_a_step_of_several_graphs_is_refused():
    task = distillation()
    task.model.student.relu = Asking()
    step = FastStep(task, compile=True)
    step(*batch())  # as it is: the scales of the kernels are not known
    with pytest.raises(RecipeError, match=r"trainer.compile = True: .* one graph \(.+\); false"):
        step(*batch())
    step.close()


@pytest.mark.parametrize("method", ["adder", "pkkd"])
def test_channels_last_computes_the_same(tmp_path, method):
    # In float64, since torch's batch norm sums less carefully in this layout: 1e-5 in float32.
    double = {"trainer.precision": "64-true"}
    seen = []

    class Look(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                layer = pl_module.plain_model.get_submodule("conv2")
                layer.register_forward_hook(
                    lambda _, args, output: seen.append(
                        output.is_contiguous(memory_format=torch.channels_last)
                    )
                )

    want = fit(recipe(method, **double), output=tmp_path / "plain")
    got = fit(
        recipe(method, **double, **{"trainer.channels_last": True}),
        output=tmp_path / "last",
        callbacks=[Look()],
    )
    assert seen
    assert all(seen)
    assert distance(weights(got.folder), weights(want.folder)) < 1e-9


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["adder", "pkkd"])
def test_compiled_steps_differ_by_rounding_only(tmp_path, method):
    got = assert_rounding_only(tmp_path, method, **{"trainer.compile": True})
    assert "compile: true" in (got.folder / "config.yaml").read_text()


def fake_recorder(calls):
    """Stands in for torch.cuda.make_graphed_callables: runs the step, returns it as it is."""

    def make_graphed_callables(module, sample_args, **options):
        calls.append((sample_args[0].shape, options, torch.is_autocast_cache_enabled()))
        parameters = [p for p in module.parameters() if p.requires_grad]
        for _ in range(3):
            loss, _ = module(*sample_args)
            torch.autograd.grad(loss, parameters, allow_unused=True)
        return module

    return make_graphed_callables


class OnCpu(FastStep):
    """Records although there is no CUDA device."""

    def _is_recorded(self, images):
        return self.cuda_graph


def test_recording_changes_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fake_recorder(calls))
    task = distillation()
    task.loss_and_sums(*batch())
    before = {name: value.clone() for name, value in task.state_dict().items()}
    images, labels = batch(1)
    step = record(task.loss_and_sums, task.model, images, labels)
    assert_equal_weights(task.state_dict(), before)
    assert all(p.grad is None for p in task.parameters())
    assert calls[0][2] is False
    assert torch.is_autocast_cache_enabled()
    assert set(step(images, labels)[1]) == set(task.loss_and_sums(images, labels)[1])


def test_a_recorded_step_computes_the_same(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fake_recorder(calls))
    task = distillation()
    want = steps(task, task.loss_and_sums)
    task = distillation()
    got = steps(task, OnCpu(task, cuda_graph=True))
    assert got[0] == want[0]
    for value, expected in zip(got[1], want[1], strict=True):
        assert torch.equal(value, expected)
    # The first batch, which sets PKKD's scales, is not recorded; then once for each size.
    assert [shape[0] for shape, *_ in calls] == [8, 3]


def test_a_step_that_does_other_things_is_recorded_anew(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fake_recorder(calls))
    task = distillation()
    step = OnCpu(task, cuda_graph=True)
    for needs_teacher in (True, True, True, False, False, True):
        monkeypatch.setattr(
            type(task.distiller), "needs_teacher", property(lambda _, value=needs_teacher: value)
        )
        step(*batch())
    assert len(calls) == 3


def test_a_step_that_cannot_be_recorded_is_refused(monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("CUDA error: operation not permitted\n when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    task = distillation()
    with pytest.raises(RecipeError, match=r"trainer.cuda_graph = True: .* when stream is cap.*fal"):
        record(task.loss_and_sums, task.model, *batch())


def test_the_graph_has_no_effect_on_a_cpu(tmp_path):
    want = fit(recipe("conv", epochs=1), output=tmp_path / "plain")
    got = fit(recipe("conv", epochs=1, **{"trainer.cuda_graph": True}), output=tmp_path / "graph")
    assert_equal_weights(weights(got.folder), weights(want.folder))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer.check_val_every": 0}, r"trainer.check_val_every = 0: at least 1"),
        ({"data.eval_batch_size": 0}, r"data.eval_batch_size = 0: at least 1"),
        ({"trainer.compile": "fast"}, r"trainer.compile = fast"),
        ({"data.device_cache": "maybe"}, r"data.device_cache = maybe"),
        ({"trainer.accumulate": 2}, r"trainer.accumulate = 2: 1 \(a replayed step"),
        ({"trainer.compile": "reduce-overhead"}, r"trainer.compile = 'reduce-overhead': a mode"),
    ],
)
def test_recipes_that_cannot_be_run_are_refused(overrides, message):
    with pytest.raises(RecipeError, match=message) as caught:
        recipe(**{"trainer.cuda_graph": True} | overrides)
    assert "\n" not in str(caught.value)


def test_runs_may_go_on_with_another_compiler_and_cache(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        fit(recipe("conv", epochs=5), output=tmp_path / "run", callbacks=[Stop()])
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text()
    assert "device_cache: auto" in text
    # A run of an earlier version knows neither key.
    old = [
        line
        for line in text.splitlines()
        if line.split(":")[0].strip()
        not in (
            "device_cache",
            "eval_batch_size",
            "check_val_every",
            "compile",
            "channels_last",
            "cuda_graph",
        )
    ]
    config.write_text("\n".join(old) + "\n")
    with pytest.raises(RuntimeError, match="stopped"):
        resume(tmp_path / "run", callbacks=[Stop()])
    config.write_text(text.replace("device_cache: auto", "device_cache: true"))
    assert len(resume(tmp_path / "run").history) == 5
