import math

import lightning
import pytest
import torch
from torch.nn import functional as F

from torchadder import models
from torchadder.distill import AT, FSP, KD, PKKD, Snapshot
from torchadder.optim import AdaptiveLR
from torchadder.tasks import Classification, Distillation
from torchadder.tasks.length import RunLength


def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 1, 28, 28, generator=generator)
    return images, torch.arange(8)


def task(conv="adder", **options):
    torch.manual_seed(0)
    return Classification(models.lenet5_bn(conv=conv), num_classes=10, **options)


class Steps(torch.utils.data.Dataset):
    """A data set whose batches are all the same."""

    def __init__(self, num_batches):
        self.num_batches = num_batches

    def __len__(self):
        return self.num_batches

    def __getitem__(self, index):
        return batch()


def train(module, num_batches=3, epochs=2, loader=None, validation=None, **options):
    trainer = lightning.Trainer(
        **{"max_epochs": epochs, **options},
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    own = torch.utils.data.DataLoader(Steps(num_batches), batch_size=None)
    trainer.fit(
        module, own if loader is None else loader, own if validation is None else validation
    )
    return trainer


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:Found \d+ module.s. in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]


def test_a_step_is_that_of_plain_torch():
    module = task(lr=0.05, momentum=0.9, weight_decay=1e-3)
    torch.manual_seed(0)
    model = models.lenet5_bn(conv="adder")
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    AdaptiveLR(optimizer, model, 0.2)
    images, labels = batch()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    train(module, num_batches=3, epochs=1)
    for name, value in model.state_dict().items():
        assert torch.equal(module.plain_model.state_dict()[name], value), name


def test_eta_sets_the_gradient_norm_of_adder_layers_only():
    module = task(eta=0.3, weight_decay=0.0, momentum=0.0, lr=1.0)
    before = module.model.conv2.weight.detach().clone()
    train(module, num_batches=1, epochs=1)
    change = (module.model.conv2.weight.detach() - before).square().mean().sqrt()
    assert float(change) == pytest.approx(0.3, rel=1e-4)
    train(task(conv="conv"), num_batches=1, epochs=1)  # no adder layer: no adaptive rate


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({}, [1, 1, 1, 0.5, 0.5, 0.5, 0]),
        ({"interval": "step"}, [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873, 0]),
        ({"min_lr": 0.05}, [1, 1, 1, 0.75, 0.75, 0.75, 0.5]),
        ({"schedule": "constant"}, [1] * 7),
    ],
)
def test_schedules(options, factors):
    factor = task(lr=0.1, **options)._schedule_factor(RunLength(6, 3))
    assert [factor(step) for step in range(7)] == pytest.approx(factors)


class Rates(lightning.Callback):
    """Keeps the rate of each step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def cosine(progress):
    return [(1 + math.cos(math.pi * share)) / 2 for share in progress]


@pytest.mark.parametrize(
    ("limits", "interval", "progress"),
    [
        ({"max_steps": 5}, "epoch", [0, 0, 0, 1 / 2, 1 / 2]),
        ({"max_steps": 5}, "step", [0, 0.2, 0.4, 0.6, 0.8]),
        ({"max_steps": 5, "max_epochs": 1000}, "epoch", [0, 0, 0, 1 / 2, 1 / 2]),
        ({"max_steps": 100, "max_epochs": 2}, "epoch", [0, 0, 0, 1 / 2, 1 / 2, 1 / 2]),
        (
            {"max_epochs": 2, "accumulate_grad_batches": 2},
            "step",
            [0, 0, 1 / 4, 2 / 4, 2 / 4, 3 / 4],
        ),
    ],
)
@pytest.mark.parametrize("kind", ["classification", "distillation"])
def test_the_rate_falls_over_the_run_whatever_ends_it(kind, limits, interval, progress):
    options = {"lr": 1.0, "interval": interval}
    module = task(**options)
    if kind == "distillation":
        nets = models.lenet5_bn(conv="adder"), models.lenet5_bn(conv="conv")
        module = Distillation(KD(*nets), num_classes=10, **options)
    rates = Rates()
    train(module, num_batches=3, callbacks=[rates], **({"epochs": None} | limits))
    assert rates.rates == pytest.approx(cosine(progress))


def test_cycles_cut_short_by_steps():
    rates = Rates()
    student = models.lenet5_bn(conv="adder")
    module = Distillation(Snapshot(student, cycles=2), num_classes=10, lr=1.0, interval="step")
    train(module, num_batches=2, epochs=None, max_steps=7, callbacks=[rates])  # four epochs
    assert rates.rates == pytest.approx(cosine([0, 1 / 4, 2 / 4, 3 / 4, 0, 1 / 3, 2 / 3]))
    assert module.distiller.has_snapshot


class Stream(torch.utils.data.IterableDataset):
    """Batches without an end."""

    def __iter__(self):
        while True:
            yield batch()


def test_runs_whose_length_is_not_known():
    second = "00:00:00:01"
    with pytest.raises(ValueError, match="schedule = 'cosine' needs the length of the run"):
        train(task(), epochs=None, max_time=second)
    snapshot = Snapshot(models.lenet5_bn(conv="adder"), cycles=2)
    module = Distillation(snapshot, num_classes=10, schedule="constant")
    with pytest.raises(ValueError, match="cycles = 2 need the number of epochs"):
        train(module, epochs=None, max_time=second)
    train(task(schedule="constant"), epochs=None, max_time=second)
    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    with pytest.raises(ValueError, match="interval = 'epoch' needs data of known length"):
        train(task(), loader=loader, epochs=None, max_steps=4)
    rates = Rates()
    module = task(lr=1.0, interval="step")
    train(module, loader=loader, epochs=None, max_steps=4, callbacks=[rates])
    assert rates.rates == pytest.approx(cosine([0, 1 / 4, 2 / 4, 3 / 4]))
    net = models.lenet5_bn(conv="adder"), models.lenet5_bn(conv="conv")
    module = Distillation(KD(*net), num_classes=10, schedule="constant")
    train(module, loader=loader, epochs=None, max_steps=2)


class MixedSteps(Steps):
    """Batches of images that belong to two classes each."""

    def __getitem__(self, index):
        images, labels = batch()
        first, second = F.one_hot(labels, 10), F.one_hot((labels + 1) % 10, 10)
        return images, 0.6 * first + 0.4 * second


@pytest.mark.parametrize("kind", ["classification", "distillation"])
def test_labels_may_be_probabilities_in_training_alone(kind):
    options = {"lr": 0.05, "eta": None}
    module = task(**options)
    if kind == "distillation":
        nets = models.lenet5_bn(conv="adder"), models.lenet5_bn(conv="conv")
        module = Distillation(KD(*nets, progressive=True), num_classes=10, **options)
    loader = torch.utils.data.DataLoader(MixedSteps(2), batch_size=None)
    images, mixed = loader.dataset[0]
    _, sums = module.loss_and_sums(images, mixed)
    with torch.no_grad():
        right = module.plain_model(images).argmax(1) == batch()[1]
    assert int(sums["train_accuracy"]) == int(right.sum())
    train(module, loader=loader)
    with pytest.raises(ValueError, match=r"class indices, shape \(N\), as labels; got \(8, 10\)"):
        train(module, loader=loader, validation=loader)


def test_metrics_are_means_over_images_not_over_batches():
    module = task(lr=1e-9)
    trainer = train(module, num_batches=2, epochs=1)
    module.eval()
    images, labels = batch()
    with torch.no_grad():
        want = F.cross_entropy(module(images), labels)
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(float(want), rel=1e-5)
    assert {"train_loss", "train_accuracy", "val_top5"} <= trainer.callback_metrics.keys()


def distillation(**options):
    torch.manual_seed(0)
    student, teacher = models.lenet5_bn(conv="adder"), models.lenet5_bn(conv="conv")
    return Distillation(PKKD(student, teacher, **options), num_classes=10)


def test_each_net_gets_the_gradient_of_its_own_loss():
    module = distillation(alpha=2.0, beta=3.0)
    images, labels = batch()
    module.objective(images, labels).backward()
    teacher = distillation().distiller.teacher
    F.cross_entropy(teacher(images), labels).backward()
    for got, want in zip(module.distiller.teacher.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(got.grad, want.grad)


def test_each_gradient_is_clipped_on_its_own():
    """The teacher's weights are those of a teacher whose student learns from the labels alone."""
    weights = []
    for alpha_and_beta in (0.0, 5.0):
        module = distillation(alpha=alpha_and_beta, beta=alpha_and_beta)
        train(module, num_batches=2, epochs=1, gradient_clip_val=0.5)
        weights.append([p.detach() for p in module.distiller.teacher.parameters()])
    for got, want in zip(*weights, strict=True):
        assert torch.equal(got, want)

    module = distillation()
    module.objective(*batch()).backward()
    module.configure_gradient_clipping(torch.optim.SGD(module.parameters(), lr=1.0), 0.5)
    of_teacher = list(module.distiller.teacher.parameters())
    others = [*module.distiller.student.parameters(), *module.distiller.own_parameters()]
    for part in (of_teacher, others):
        norm = torch.nn.utils.get_total_norm([p.grad for p in part if p.grad is not None])
        assert float(norm) == pytest.approx(0.5, rel=1e-4)


def test_both_nets_and_the_loss_train_in_one_optimizer():
    module = distillation()
    before = {name: value.clone() for name, value in module.distiller.named_parameters()}
    trainer = train(module, num_batches=2, epochs=1)
    moved = {
        n for n, value in module.distiller.named_parameters() if not torch.equal(value, before[n])
    }
    assert moved == set(before)
    logged = trainer.callback_metrics.keys()
    assert {"train_kd", "train_mid", "teacher_val_accuracy", "sigma/conv2/student"} <= logged
    assert module.plain_model is module.distiller.student
    groups = module.parameter_groups()
    assert groups[1]["weight_decay"] == 0.0
    assert {id(p) for p in groups[1]["params"]} == {
        id(p) for p in module.distiller.own_parameters()
    }


class SideBranch(torch.nn.Module):
    """A net of which one layer runs in training alone."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 4, 3)
        self.side = torch.nn.Conv2d(4, 4, 3)
        self.pairs = Pairs()
        self.last = torch.nn.Conv2d(4, 4, 3)
        self.fc = torch.nn.Linear(4, num_classes)

    def forward(self, images):
        features = self.pairs(self.first(images))[0]
        if self.training:
            features = features + 0 * self.side(features).mean()
        return self.fc(self.last(features).mean((2, 3)))


class Pairs(torch.nn.Module):
    """A layer whose output is no tensor."""

    def forward(self, features):
        return features, None


def test_layers_that_cannot_be_compared_are_left_out_of_the_log():
    module = Distillation(KD(SideBranch(), SideBranch()), num_classes=10)
    logged = train(module).logged_metrics
    named = {name for name in logged if name.startswith("alignment/")}
    assert named == {"alignment/last"}


def test_a_teacher_of_features_may_have_other_classes():
    nets = models.lenet5_bn(conv="adder"), models.lenet5_bn(conv="conv", num_classes=7)
    module = Distillation(AT(*nets), num_classes=10)
    logged = train(module).logged_metrics
    assert {"train_at", "val_accuracy"} <= set(logged)
    assert "teacher_val_accuracy" not in logged


@pytest.mark.parametrize("method", [AT, PKKD, FSP])
def test_a_progressive_teacher_may_not(method):
    student = models.lenet5_bn(conv="adder")
    teacher = models.lenet5_bn(conv="conv", num_classes=7)
    distiller = method(student, teacher, alpha=0.0, progressive=True)
    message = r"logits of the same shape, got \(1, 10\) and \(1, 7\)"
    with pytest.raises(ValueError, match=message):
        distiller.check_agreement(torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match=r"same shape, got \(8, 10\) and \(8, 7\)"):
        distiller(*batch())


def test_a_fixed_teacher_stays_as_it_is():
    module = distillation(progressive=False)
    before = {name: value.clone() for name, value in module.distiller.teacher.state_dict().items()}
    train(module, num_batches=2, epochs=1)
    for name, value in module.distiller.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
