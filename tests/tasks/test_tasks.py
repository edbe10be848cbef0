import lightning
import pytest
import torch
from torch.nn import functional as F

from torchadder import models
from torchadder.distill import PKKD
from torchadder.optim import AdaptiveLR
from torchadder.tasks import Classification, Distillation


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


def train(module, num_batches=3, epochs=2, **options):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loader = torch.utils.data.DataLoader(Steps(num_batches), batch_size=None)
    trainer.fit(module, loader, loader)
    return trainer


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found 14 module.s. in eval mode at the start of training"),
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
    factor = task(lr=0.1, **options)._schedule_factor(6, 2)
    assert [factor(step) for step in range(7)] == pytest.approx(factors)


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


def test_a_fixed_teacher_stays_as_it_is():
    module = distillation(progressive=False)
    before = {name: value.clone() for name, value in module.distiller.teacher.state_dict().items()}
    train(module, num_batches=2, epochs=1)
    for name, value in module.distiller.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
