"""Adversarial training: what a step sees and leaves alone, that runs resume, that it helps."""

import pytest
import torch
from torch.nn import functional as F

from short_runs import recipe, weights
from torchadder import models
from torchadder.robustness import Normalised, batch_statistics, input_gradient, pgd
from torchadder.tasks import AdversarialClassification
from torchadder.training import fit, resume
from torchadder.training.recipe import RecipeError

MEAN, STD = (0.13,), (0.31,)
ATTACK = {"adversarial.attack": "pgd", "adversarial.epsilon": 0.1, "adversarial.iterations": 3}


def task(conv="adder", **options):
    torch.manual_seed(0)
    model = models.lenet5_bn(conv=conv).train()
    return AdversarialClassification(
        model, num_classes=10, mean=MEAN, std=STD, epsilon=0.1, iterations=3, **options
    )


def batch(size=8):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(size, 1, 28, 28, generator=generator)
    return pixels, (pixels - MEAN[0]) / STD[0], torch.arange(size)


@pytest.mark.parametrize("gradient", ["sign", "surrogate"])
def test_the_step_is_taken_on_what_the_attack_finds(gradient):
    module = task(gradient=gradient)
    pixels, images, labels = batch()
    loss = module.training_step((images, labels), 3)

    plain = task().model.eval()
    model = Normalised(plain, MEAN, STD).eval()
    options = {"epsilon": 0.1, "step": 2.5 * 0.1 / 3, "iterations": 3, "seed": 3}
    pixels = (images * STD[0] + MEAN[0]).clamp(0, 1)
    with batch_statistics(model):
        if gradient == "sign":
            with input_gradient(model, "sign"):
                found = pgd(model, pixels, labels, everything=True, **options)
        else:
            found = pgd(model, pixels, labels, everything=True, **options)
    want = F.cross_entropy(plain.train()((found.images - MEAN[0]) / STD[0]), labels)
    assert torch.allclose(loss, want, rtol=1e-4)
    assert loss.item() > F.cross_entropy(task().model(images), labels).item()
    clean = float((~found.wrong_before).float().mean())
    assert float(module.train_totals.means()["train_clean_accuracy"]) == pytest.approx(clean)


def test_the_attack_changes_neither_statistics_nor_modes_nor_gradients():
    module = task()
    module.model.bn1.eval()  # a frozen part stays frozen
    _, images, labels = batch()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    modes = [part.training for part in module.model.modules()]
    module.attacked(images, labels, 3, 0)
    after = module.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [part.training for part in module.model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in module.model.parameters())


def test_attacked_images_are_within_epsilon_and_differ_by_batch_epoch_and_process():
    module = task()
    pixels, images, labels = batch()
    first = module.attacked(images, labels, 1, 0).images
    assert float((first - pixels).abs().max()) <= 0.1 + 1e-6
    assert torch.equal(module.attacked(images, labels, 1, 0).images, first)
    assert not torch.equal(module.attacked(images, labels, 1, 1).images, first)
    seeds = {module._seed_of(index, epoch) for index in range(50) for epoch in range(50)}
    assert len(seeds) == 2500


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_runs_are_exact(tmp_path, monkeypatch, accumulate):
    changes = ATTACK | {"trainer.accumulate": accumulate, "adversarial.iterations": 1}
    changes |= {"adversarial.val_iterations": 1, "trainer.limit_val_batches": 1}
    whole = fit(recipe(**changes), output=tmp_path / "whole")
    columns = {"train_accuracy", "train_clean_accuracy", "val_accuracy", "val_adversarial_accuracy"}
    assert columns <= whole.history[-1].keys()

    class StopError(Exception):
        pass

    original = AdversarialClassification.training_step

    def stopping(self, images, index):
        if self.current_epoch == 1 and index == 2:
            raise StopError
        return original(self, images, index)

    monkeypatch.setattr(AdversarialClassification, "training_step", stopping)
    with pytest.raises(StopError):
        fit(recipe(**changes), output=tmp_path / "part")
    monkeypatch.undo()
    resume(tmp_path / "part")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial.epsilon": -0.1}, "adversarial.epsilon = -0.1: above 0"),
        ({"adversarial.iterations": 0}, "adversarial.iterations = 0: at least 1"),
        ({"adversarial.step": 0.0}, "adversarial.step = 0.0: a positive number"),
        ({"adversarial.val_iterations": -1}, "at least 0"),
        ({"model.head": "slac"}, "adversarial.attack = 'pgd': none, unless method is supervised"),
        ({"method": "kd"}, "adversarial.attack = 'pgd': none, unless"),
    ],
)
def test_bad_recipes(changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**ATTACK | changes)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="attack must be 'pgd' or 'fgsm', got 'bim'"):
        task(attack="bim")
    with pytest.raises(ValueError, match="gradient must be 'sign' or 'surrogate'"):
        task(gradient="clip")


@pytest.mark.slow
def test_it_raises_the_accuracy_under_pgd(tmp_path):
    found = {}
    for name in ("none", "pgd"):
        changes = ATTACK | {
            "adversarial.attack": name,
            "epochs": 3,
            "adversarial.val_iterations": 0,
            "trainer.limit_train_batches": 40,
            "trainer.limit_val_batches": 1.0,
            "data.augment": "none",
            "data.batch_size": 64,
        }
        result = fit(recipe(**changes), output=tmp_path / name)
        data = result.data
        pixels, labels = data.val.cache[::8].float() / 255, data.val.labels[::8]
        model = Normalised(result.model, data.preprocess.mean, data.preprocess.std).eval()
        with input_gradient(model, "sign"):
            attack = pgd(model, pixels, labels, epsilon=0.1, step=0.025, iterations=10)
        found[name] = attack.accuracy
    assert found["pgd"] > found["none"] + 0.2
