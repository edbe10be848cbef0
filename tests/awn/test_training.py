"""Runs with normalised weights: what is trained, what is kept, and how they go on."""

import copy

import pytest
import torch
from torch import nn

import torchadder as ta
from torchadder import recipes
from torchadder.awn import AwnConfig
from torchadder.checkpoint import CheckpointError, load_into, read_info
from torchadder.training import RecipeError, fit, resume
from torchadder.training.assembly import build_task
from torchadder.training.callbacks import Callback
from torchadder.training.checkpoint_io import read_state
from torchadder.training.evaluation import evaluate
from torchadder.training.localise import first_non_finite

SMALL = {
    "epochs": 2,
    "trainer.limit_train_batches": 3,
    "trainer.limit_val_batches": 1,
    "trainer.threads": 1,
    "data.batch_size": 32,
}
INNER = ["conv2", "conv3", "conv4"]


def small(name="mnist_lenet5bn_adder_awn", **overrides):
    return recipes.load(name, SMALL | overrides)


class Images:
    """What the assembly asks of the images."""

    image_shape = (1, 28, 28)
    num_classes = 10


class Stop(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


class Look(Callback):
    """Keeps what there is at the start of training."""

    def on_train_start(self, trainer, pl_module):
        self.groups = [dict(group) for group in trainer.optimizers[0].param_groups]
        self.model = pl_module.plain_model


NO_DECAY = {"model.weight_norm": {"decay": False}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    look = Look()
    folder = tmp_path_factory.mktemp("run") / "whole"
    return fit(small(**NO_DECAY), output=folder, callbacks=[look]), look


def test_a_run_keeps_the_plain_net(finished):
    result, look = finished
    trained = look.model
    assert list(ta.awn.normalised_layers(trained)) == INNER
    loaded = ta.load(result.last_checkpoint)
    assert type(loaded.conv2) is ta.nn.Adder2d
    assert ta.awn.normalised_layers(loaded) == {}
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(images), trained.cpu().eval()(images))
    assert list(loaded.state_dict()) == list(ta.models.lenet5_bn().state_dict())
    assert type(result.model.conv2) is ta.nn.Adder2d
    figures = evaluate(result.best_checkpoint)
    plain = ta.energy.count(ta.models.lenet5_bn(), torch.zeros(1, 1, 28, 28))
    assert figures["num_add"] == plain.num_add


def test_the_state_of_a_run_keeps_the_parametrization(finished):
    result, _ = finished
    state = read_state(result.folder / "checkpoints" / "last.ckpt")["state_dict"]
    assert "model.conv2.parametrizations.weight.original" in state
    scale = state["model.conv2.parametrizations.weight.0.scale"]
    deviation = ta.load(result.last_checkpoint).conv2.weight.flatten(1).std(1, correction=0)
    torch.testing.assert_close(scale.abs(), deviation.detach(), rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_goes_on_bit_by_bit(finished, tmp_path):
    result, _ = finished
    with pytest.raises(KeyboardInterrupt):
        fit(small(**NO_DECAY), output=tmp_path / "parts", callbacks=[Stop()])
    resumed = resume(tmp_path / "parts")
    for row, want in zip(resumed.history, result.history, strict=True):
        assert {**row, "seconds": 0} == {**want, "seconds": 0}
    states = [read_state(each.folder / "checkpoints" / "last.ckpt") for each in (result, resumed)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(states[1]["state_dict"][name], value), name
    momenta = [state["optimizer_states"][0]["state"] for state in states]
    for key, value in momenta[0].items():
        assert torch.equal(momenta[1][key]["momentum_buffer"], value["momentum_buffer"])


def test_scales_without_weight_decay(finished):
    _, look = finished
    assert [group["weight_decay"] for group in look.groups] == [5e-4, 0.0]
    norms = [ta.awn.weight_norm(look.model.get_submodule(name)) for name in INNER]
    assert [id(p) for p in look.groups[1]["params"]] == [id(norm.scale) for norm in norms]


@pytest.mark.parametrize("conv", ["conv", "adder"])
def test_the_same_layers_in_both_kinds_of_net(conv):
    task = build_task(small(**{"model.conv": conv}), Images)
    assert list(ta.awn.normalised_layers(task.model)) == INNER


def test_a_distilled_student_is_normalised_and_its_teacher_is_not():
    recipe = small("mnist_lenet5bn_pkkd", **{"model.weight_norm": {"axis": "layer"}})
    task = build_task(recipe, Images)
    student, teacher = task.distiller.student, task.distiller.teacher
    assert list(ta.awn.normalised_layers(student)) == INNER
    assert ta.awn.normalised_layers(teacher) == {}
    task.objective(torch.randn(8, 1, 28, 28), torch.arange(8)).backward()
    assert student.conv2.parametrizations.weight.original.grad.abs().max() > 0
    assert ta.awn.weight_norm(student.conv2).scale.grad.abs().max() > 0


def test_shared_initial_values_are_normalised_afterwards():
    recipe = small(
        "mnist_lenet5bn_pkkd", **{"model.weight_norm": "adaptive", "distill.shared_init": True}
    )
    task = build_task(recipe, Images)
    original = task.distiller.student.conv2.parametrizations.weight.original.detach()
    theirs = task.distiller.teacher.conv2.weight.detach()
    ratio = original / theirs
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=1e-3)


def test_weights_to_start_from_are_loaded_before(tmp_path):
    start = ta.models.lenet5_bn()
    path = ta.save(start, tmp_path / "start.safetensors")
    keep = {"model.checkpoint": str(path), "model.weight_norm": {"init": "keep"}}
    task = build_task(small(**keep), Images)
    layer = task.model.conv2
    assert torch.equal(layer.parametrizations.weight.original, start.conv2.weight)
    centred = start.conv2.weight - start.conv2.weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(layer.weight, centred)


def test_random_numbers_are_not_touched():
    states = []
    for weight_norm in (None, "adaptive"):
        torch.manual_seed(3)
        build_task(small(**{"model.weight_norm": weight_norm}), Images)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_save_stores_the_plain_net_and_leaves_the_model(tmp_path):
    model = ta.models.lenet5_bn()
    ta.awn.apply_(model, AwnConfig(init=0.5))
    before = copy.deepcopy(model.state_dict())
    path = ta.save(model, tmp_path / "net.safetensors")
    assert list(model.state_dict()) == list(before)
    assert read_info(path).operators["conv2"]["type"] == "Adder2d"
    loaded = ta.load(path)
    ta.awn.bake_(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_save_stores_any_model(tmp_path):
    model = nn.Sequential(ta.nn.Adder2d(2, 4, 3), nn.BatchNorm2d(4))
    ta.awn.apply_(model)
    path = ta.save(model, tmp_path / "net.safetensors")
    plain = nn.Sequential(ta.nn.Adder2d(2, 4, 3), nn.BatchNorm2d(4))
    load_into(plain, path)
    assert torch.equal(plain[0].weight, model[0].weight)


def test_a_file_does_not_fit_normalised_weights(tmp_path):
    model = ta.models.lenet5_bn()
    path = ta.save(model, tmp_path / "net.safetensors")
    ta.awn.apply_(model)
    with pytest.raises(CheckpointError, match="conv2 are normalised, and checkpoints hold plain"):
        load_into(model, path)


def test_what_is_not_finite_is_found_behind_normalised_weights():
    task = build_task(small(), Images)
    images = torch.randn(2, 1, 28, 28)
    task.model.conv3.bias = nn.Parameter(torch.full((120,), float("nan")))
    assert first_non_finite(task, images, torch.arange(2))[1] == "bias of layer 'conv3'"
    task = build_task(small(), Images)
    ta.awn.weight_norm(task.model.conv3).scale.data[0] = float("inf")
    output = first_non_finite(task, images, torch.arange(2))[1]
    assert output == "scale of layer 'conv3.parametrizations.weight.0'"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("spectral", "model.weight_norm = 'spectral': 'adaptive', a mapping or None is wanted"),
        ({"axis": "channel"}, r"model.weight_norm = .*: axis must be one of filter, layer, got"),
        ({"axes": "layer"}, "model.weight_norm = .*: unknown key 'axes'; known are axis, scale"),
        ({"eps": -1.0}, r"model.weight_norm = .*: eps must be positive and finite, got -1.0"),
        ({"eps": None}, "model.weight_norm = .*: eps must be a number, got None"),
    ],
)
def test_bad_values(value, message):
    with pytest.raises(RecipeError, match=message) as caught:
        small(**{"model.weight_norm": value})
    assert "\n" not in str(caught.value)


def test_no_exponent_beside_it():
    with pytest.raises(RecipeError, match=r"model.weight_norm = 'adaptive': null, because lp.sche"):
        small("mnist_lenet5bn_lp", **{"model.weight_norm": "adaptive"})
