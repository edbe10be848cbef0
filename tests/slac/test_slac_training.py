"""Training with a SLAC head: what the task optimises, and a run from a recipe."""

import pytest
import torch

import torchadder as ta
from torchadder import recipes
from torchadder.slac import SlacHead, slac_loss
from torchadder.tasks import SlacClassification
from torchadder.training import RecipeError, fit
from torchadder.training.evaluation import evaluate


def task(**options):
    torch.manual_seed(0)
    return SlacClassification(ta.models.build("lenet5_bn", head="slac"), num_classes=10, **options)


def test_objective_is_the_loss_with_its_weights():
    module = task(nll_weight=0.5, ac_weight=0.25).eval()
    images, labels = torch.randn(8, 1, 28, 28), torch.arange(8)
    logits = module.model(images)
    want = slac_loss(logits, labels, module.head, nll_weight=0.5, ac_weight=0.25)
    torch.testing.assert_close(module.objective(images, labels), want.loss)
    sums = module.loss_and_sums(images, labels)[1]
    torch.testing.assert_close(sums["train_nll"], 8 * want.likelihood)


def test_sigma_has_a_learning_rate_of_its_own():
    module = task(lr=0.5, sigma_rate=0.01)
    rest, sigma = module.parameter_groups()
    assert sigma["params"] == [module.head.log_sigma]
    assert sigma["lr"] == pytest.approx(0.005)
    assert "lr" not in rest
    everything = {id(p) for p in module.model.parameters()}
    assert {id(p) for p in rest["params"]} == everything - {id(module.head.log_sigma)}


@pytest.mark.parametrize("name", ["mu", "sigma", "gamma"])
def test_fixed_parameters_are_not_trained(name):
    module = task(**{f"train_{name}": False})
    fixed = {"mu": "mu", "sigma": "log_sigma", "gamma": "gamma"}[name]
    trained = {id(p) for group in module.parameter_groups() for p in group["params"]}
    for parameter_name, parameter in module.head.named_parameters():
        assert (id(parameter) in trained) == (parameter_name != fixed)


def test_model_without_the_head_is_refused():
    with pytest.raises(ValueError, match="LeNet5BN has no SLAC head"):
        SlacClassification(ta.models.lenet5_bn(), num_classes=10)


def test_run_from_a_recipe(tmp_path):
    small = {"epochs": 2, "trainer.limit_train_batches": 20, "trainer.threads": 1}
    result = fit(recipes.load("mnist_lenet5bn_slac", small), output=tmp_path / "run")
    first, last = result.history
    assert last["train_lc"] < first["train_lc"]
    total = last["train_lc"] + 0.01 * last["train_nll"] + 0.1 * last["train_ac"]
    assert last["train_loss"] == pytest.approx(total, rel=1e-4)
    head = result.model.head
    assert isinstance(head, SlacHead)
    assert head.gamma.abs().max() > 0
    figures = evaluate(result.best_checkpoint)
    assert figures["accuracy"] == pytest.approx(result.metrics["best_val_accuracy"])
    assert figures["num_mul"] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "pkkd"}, "model.head = 'slac': null, because method is pkkd"),
        ({"model.kwargs": {"head": "adder"}}, "model.kwargs.head = 'adder': no second head"),
        ({"slac.nll_weight": -1.0}, "slac.nll_weight = -1.0: a finite number of at least 0"),
        ({"slac.sigma_rate": 0.0}, "slac.sigma_rate = 0.0: > 0 is wanted"),
        ({"model.head": "softmax"}, "model.head"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(RecipeError, match=message):
        recipes.load("mnist_lenet5bn_slac", values)
