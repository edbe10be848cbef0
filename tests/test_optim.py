"""AdaptiveLR against the formula, in every regime in which a step can be taken.

Beside it stands the rate as the original has it, inside the backward pass: each regime test shows
that it gives another result there.
"""

import copy
import io
import math
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

from torchadder.nn import Adder2d, AdderLinear, AdderModule
from torchadder.optim import AdaptiveLR

ETA = 0.2
LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
# float64 throughout; the two sides differ by the order of a few sums.
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def build():
    # GroupNorm, so that a batch in two halves is the batch.
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        Adder2d(4, 6, 3, stride=2),
        nn.GroupNorm(2, 6),
        nn.Flatten(),
        AdderLinear(24, 5, bias=False),
        nn.GroupNorm(1, 5),
        nn.Linear(5, 3),
    ).double()


def batches(count, size=4):
    generator = torch.Generator().manual_seed(7)
    for _ in range(count):
        images = torch.randn(size, 2, 7, 7, generator=generator, dtype=torch.float64)
        yield images, torch.randint(3, (size,), generator=generator)


def loss_of(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def scaled(gradient, eta=ETA):
    return gradient * (eta * math.sqrt(gradient.numel()) / gradient.norm().clamp(min=1e-12))


def is_adder_weight(model, name):
    module, _, attribute = name.rpartition(".")
    return isinstance(model.get_submodule(module), AdderModule) and attribute == "weight"


def trained_by_formula(steps, clip=None):
    """SGD with momentum and weight decay written out, on whole batches."""
    model = build()
    velocity = {}
    for batch in batches(steps):
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss_of(model, batch), list(parameters.values()))
        if clip is not None:
            total = torch.stack([g.norm() for g in gradients]).norm()
            gradients = [g * (clip / (total + 1e-6)).clamp(max=1.0) for g in gradients]
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            if is_adder_weight(model, name):
                gradient = scaled(gradient)
            gradient = gradient + DECAY * parameter.detach()
            velocity[name] = MOMENTUM * velocity.get(name, 0.0) + gradient
            parameter.data -= LR * velocity[name]
    return model


def sgd(model, **options):
    return torch.optim.SGD(
        model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, **options
    )


def adaptive(optimizer, model):
    AdaptiveLR(optimizer, model, ETA)


def in_backward(optimizer, model):
    """The original's place for the rate: on the gradient that a backward pass delivers."""
    for module in model.modules():
        if isinstance(module, AdderModule):
            module.weight.register_hook(scaled)


def same(model, other):
    return all(
        torch.allclose(a, b, **CLOSE)
        for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def adder_gradients(model):
    return [m.weight.grad for m in model.modules() if isinstance(m, AdderModule)]


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("rate", [adaptive, in_backward])
def test_plain_steps_follow_the_formula(options, rate):
    model = build()
    optimizer = sgd(model, **options)
    rate(optimizer, model)
    for batch in batches(3):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    assert same(model, trained_by_formula(3))


@pytest.mark.parametrize(("rate", "right"), [(adaptive, True), (in_backward, False)])
def test_gradient_accumulation_gives_the_whole_batch(rate, right):
    model = build()
    optimizer = sgd(model)
    rate(optimizer, model)
    for images, labels in batches(3):
        optimizer.zero_grad()
        for part in (slice(0, 1), slice(1, 4)):
            share = len(labels[part]) / len(labels)
            (loss_of(model, (images[part], labels[part])) * share).backward()
        optimizer.step()
    assert same(model, trained_by_formula(3)) is right


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize(("rate", "right"), [(adaptive, True), (in_backward, False)])
def test_grad_scaler(rate, right, options, unscale_first):
    model = build()
    optimizer = sgd(model, **options)
    rate(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for batch in batches(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert same(model, trained_by_formula(3)) is right


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW])
def test_fused_adam_with_grad_scaler_is_adam_without(optimizer_class):
    results = []
    for fused in (False, True):
        model = build()
        # A large eps, because without it Adam's step does not depend on the gradient's size.
        optimizer = optimizer_class(model.parameters(), lr=0.1, eps=0.5, fused=fused)
        AdaptiveLR(optimizer, model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=fused)
        for batch in batches(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(model)
    assert same(*results)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_skips_a_step_with_infinite_gradients(fused):
    model = build()
    optimizer = sgd(model, fused=fused)
    AdaptiveLR(optimizer, model, ETA)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    steps = list(batches(3))
    for index, batch in enumerate([steps[0], steps[0], steps[1], steps[2]]):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        if index == 1:
            before = copy.deepcopy(model.state_dict())
            model[3].weight.grad[0, 0, 0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        if index == 1:
            torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
            assert scaler.get_scale() == 2.0**15
    assert same(model, trained_by_formula(3))


@pytest.mark.parametrize(("rate", "right"), [(adaptive, True), (in_backward, False)])
def test_clipping_comes_before(rate, right):
    """A norm over all parameters is the norm of the true gradients, and the rate outlives it."""
    model = build()
    optimizer = sgd(model)
    rate(optimizer, model)
    for batch in batches(3):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        lengths = [g.square().mean().sqrt() for g in adder_gradients(model)]
        hit = all(torch.isclose(x, torch.tensor(ETA, dtype=x.dtype)) for x in lengths)
        assert hit is right
    assert same(model, trained_by_formula(3, clip=0.05)) is right


DDP_WORKER = """
import contextlib, importlib.util, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

def load(path):
    spec = importlib.util.spec_from_file_location("cases_of_optim", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def work(rank, path, rendezvous, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    t = load(path)
    results = {}
    for rate in (t.adaptive, t.in_backward):
        for accumulate in (False, True):
            model = t.build()
            parallel = DistributedDataParallel(model)
            optimizer = t.sgd(model)
            rate(optimizer, parallel)
            for images, labels in t.batches(3):
                optimizer.zero_grad()
                mine = list(range(2 * rank, 2 * rank + 2))
                parts = [mine[:1], mine[1:]] if accumulate else [mine]
                for part in parts:
                    last = part is parts[-1]
                    with contextlib.nullcontext() if last else parallel.no_sync():
                        loss = t.loss_of(parallel, (images[part], labels[part])) / len(parts)
                        loss.backward()
                optimizer.step()
            results[rate.__name__, accumulate] = model.state_dict()
    if rank == 0:
        torch.save(results, out)

work(int(sys.argv[1]), *sys.argv[2:])
dist.barrier()  # neither rank closes its end while the other one still talks
dist.destroy_process_group()  # after the nets are gone, whose reducers hold the group, too
"""


def test_data_parallel_is_the_single_process(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(DDP_WORKER)
    out = tmp_path / "results.pt"
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), __file__, f"file://{tmp_path}/rendezvous", out],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    results = torch.load(out)
    expected = trained_by_formula(3)
    for (rate, _), state in results.items():
        model = build()
        model.load_state_dict(state)
        assert same(model, expected) is (rate == "adaptive")


@pytest.mark.parametrize("keyword", [False, True])
def test_closure(keyword):
    model = build()
    optimizer = sgd(model)
    AdaptiveLR(optimizer, model, ETA)
    for batch in batches(3):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert loss.item() > 0
    assert same(model, trained_by_formula(3))


def test_several_groups_and_parameters_outside_the_optimizer():
    model = build()
    loss_of(model, next(batches(1))).backward()
    true = [g.clone() for g in adder_gradients(model)]
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": [model[3].weight], "lr": 0.5}], lr=0.1
    )
    AdaptiveLR(optimizer, model)
    other = model[8].weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(model[3].weight.grad, scaled(true[0]))
    assert torch.equal(model[6].weight.grad, true[1])
    assert torch.equal(model[8].weight.grad, other)
    assert model[0].weight.grad.abs().max() > 0

    optimizer.add_param_group({"params": [model[6].weight]})
    optimizer.step()
    torch.testing.assert_close(model[6].weight.grad, scaled(true[1]))


def test_two_optimizers_on_one_model():
    model = build()
    first = torch.optim.SGD([model[3].weight], lr=0.1)
    second = torch.optim.SGD([model[6].weight], lr=0.1)
    AdaptiveLR(first, model, eta=0.2)
    AdaptiveLR(second, model, eta=0.4)
    loss_of(model, next(batches(1))).backward()
    first.step()
    second.step()
    lengths = [g.square().mean().sqrt().item() for g in adder_gradients(model)]
    assert lengths == pytest.approx([0.2, 0.4])


class Shared(nn.Module):
    """One layer called twice, and its weight once more under another layer's name."""

    def __init__(self):
        super().__init__()
        self.twice = Adder2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(1, 3)
        self.tied = Adder2d(3, 3, 3, padding=1, bias=False)
        self.tied.weight = self.twice.weight

    def forward(self, x):
        x = self.norm(self.twice(x))
        x = self.norm(self.twice(x))
        return self.tied(x)


def test_shared_weights_are_scaled_once():
    model = Shared().double()
    target = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    loss = (model(torch.randn_like(target)) - target).square().mean()
    (true,) = torch.autograd.grad(loss, [model.twice.weight], retain_graph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    AdaptiveLR(optimizer, model)
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(model.twice.weight.grad, scaled(true))


def test_frozen_missing_and_zero_gradients():
    model = build()
    model[3].weight.requires_grad_(False)
    optimizer = sgd(model)
    AdaptiveLR(optimizer, model)
    optimizer.step()  # no gradients at all
    frozen = model[3].weight.clone()
    loss_of(model, next(batches(1))).backward()
    model[6].weight.grad.zero_()
    optimizer.step()
    assert torch.equal(model[3].weight, frozen)
    assert model[3].weight.grad is None
    assert torch.equal(model[6].weight.grad, torch.zeros_like(model[6].weight))


def test_sparse_gradients():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    AdaptiveLR(optimizer, model)
    weight = model[6].weight
    dense = torch.zeros_like(weight)
    dense[0, 1], dense[2, 3] = 3.0, -4.0
    half = (dense / 2).to_sparse()
    weight.grad = torch.cat([half, torch.zeros_like(half)]).to_dense()[:5].to_sparse() + half
    optimizer.step()
    torch.testing.assert_close(weight.grad.to_dense(), scaled(dense))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_low_precision_gradients_of_any_size(dtype, size):
    layer = Adder2d(64, 64, 3).to(dtype)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    AdaptiveLR(optimizer, layer)
    gradient = (torch.randn(layer.weight.shape) * size).to(dtype)
    layer.weight.grad = gradient.clone()
    optimizer.step()
    assert layer.weight.grad.dtype == dtype
    torch.testing.assert_close(layer.weight.grad, scaled(gradient.double()).to(dtype))


def test_half_precision_weights_under_a_fused_grad_scaler_are_refused():
    layer = Adder2d(3, 3, 3).half()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
    AdaptiveLR(optimizer, layer)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.grad_scale = torch.tensor(2.0)
    with pytest.raises(ValueError, match="float16"):
        optimizer.step()


def test_an_optimizer_that_is_handed_the_scaler_is_refused():
    class Unscaling(torch.optim.SGD):
        def step(self, closure=None, grad_scaler=None):
            return super().step(closure)

    model = build()
    optimizer = Unscaling(model.parameters(), lr=0.1)
    AdaptiveLR(optimizer, model)
    with pytest.raises(RuntimeError, match="GradScaler"):
        optimizer.step(grad_scaler=torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_calls_the_step_of_its_base_class(fused):
    """Both are hooked by torch; scaling twice is scaling once."""

    class Announcing(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    sgd(build())  # from its first instance on, torch hooks SGD.step itself
    model = build()
    optimizer = Announcing(
        model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, fused=fused
    )
    AdaptiveLR(optimizer, model, ETA)
    scaler = torch.amp.GradScaler("cpu")
    for batch in batches(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert same(model, trained_by_formula(3))


def test_lbfgs_sees_scaled_gradients_at_every_evaluation():
    model = build()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=3)
    AdaptiveLR(optimizer, model)
    batch = next(batches(1))
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        calls.append(loss.item())
        return loss

    optimizer.step(closure)
    assert len(calls) > 1
    lengths = [g.square().mean().sqrt().item() for g in adder_gradients(model)]
    assert lengths == pytest.approx([ETA, ETA])


def test_layers_added_later_take_part():
    model = build()
    optimizer = sgd(model)
    AdaptiveLR(optimizer, model)
    model.append(AdderLinear(3, 3, bias=False).double())
    optimizer.add_param_group({"params": model[9].parameters()})
    loss_of(model, next(batches(1))).backward()
    optimizer.step()
    assert model[9].weight.grad.square().mean().sqrt().item() == pytest.approx(ETA)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_parametrized_and_pruned_weights():
    model = build()
    parametrize.register_parametrization(model[3], "weight", Doubled())
    prune.l1_unstructured(model[6], "weight", amount=0.5)
    optimizer = sgd(model)
    AdaptiveLR(optimizer, model)
    loss_of(model, next(batches(1))).backward()
    originals = model[3].parametrizations.weight.original, model[6].weight_orig
    true = [p.grad.clone() for p in originals]
    optimizer.step()
    for parameter, gradient in zip(originals, true, strict=True):
        torch.testing.assert_close(parameter.grad, scaled(gradient))
    assert int((model[6].weight_orig.grad == 0).sum()) == 60


def test_weight_norm_scales_both_originals():
    layer = nn.utils.parametrizations.weight_norm(Adder2d(3, 4, 3, bias=False))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    AdaptiveLR(optimizer, layer)
    layer(torch.randn(2, 3, 6, 6)).square().mean().backward()
    optimizer.step()
    for parameter in layer.parameters():
        assert parameter.grad.square().mean().sqrt().item() == pytest.approx(ETA, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_weight_norm_scales_both_originals():
    layer = nn.utils.weight_norm(Adder2d(3, 4, 3, bias=False))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    AdaptiveLR(optimizer, layer)
    layer(torch.randn(2, 3, 6, 6)).square().mean().backward()
    optimizer.step()
    for parameter in (layer.weight_g, layer.weight_v):
        assert parameter.grad.square().mean().sqrt().item() == pytest.approx(ETA, rel=1e-5)


def test_compiled_model():
    model = build()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = sgd(model)
    AdaptiveLR(optimizer, compiled, ETA)
    for batch in batches(3):
        optimizer.zero_grad()
        loss_of(compiled, batch).backward()
        optimizer.step()
    assert same(model, trained_by_formula(3))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*num_workers")
@pytest.mark.parametrize("clip", [None, 0.05])
def test_lightning_automatic_optimization(clip, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = build()

        def training_step(self, batch, _):
            return loss_of(self.net, batch)

        def configure_optimizers(self):
            optimizer = sgd(self)
            AdaptiveLR(optimizer, self, ETA)
            return optimizer

    halves = [
        (images[part], labels[part])
        for images, labels in batches(3)
        for part in (slice(0, 2), slice(2, 4))
    ]
    task = Task()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=2,
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loader = torch.utils.data.DataLoader(halves, batch_size=None)
    trainer.fit(task, loader)
    assert trainer.global_step == 3
    assert same(task.net, trained_by_formula(3, clip=clip))


def test_remove():
    model = build()
    optimizer = sgd(model)
    rate = AdaptiveLR(optimizer, model)
    loss_of(model, next(batches(1))).backward()
    true = [g.clone() for g in adder_gradients(model)]
    rate.remove()
    rate.remove()
    assert "removed" in repr(rate)
    optimizer.step()
    for gradient, other in zip(adder_gradients(model), true, strict=True):
        assert torch.equal(gradient, other)
    AdaptiveLR(optimizer, model)


def test_the_optimizers_state_dict_and_pickle_are_the_plain_ones():
    model = build()
    optimizer = sgd(model)
    AdaptiveLR(optimizer, model)
    loss_of(model, next(batches(1))).backward()
    optimizer.step()
    plain = sgd(model)
    plain.load_state_dict(optimizer.state_dict())
    assert plain.state_dict().keys() == optimizer.state_dict().keys()

    restored = pickle.loads(pickle.dumps(optimizer))
    assert not restored._optimizer_step_pre_hooks
    stream = io.BytesIO()
    torch.save(optimizer.state_dict(), stream)
    stream.seek(0)
    optimizer.load_state_dict(torch.load(stream))
    optimizer.zero_grad()
    loss_of(model, next(batches(1))).backward()
    optimizer.step()
    assert adder_gradients(model)[0].square().mean().sqrt().item() == pytest.approx(ETA)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("removed", [False, True])
def test_copies_of_all_three_together_stay_connected(duplicate, removed):
    model = build()
    model.rate = None
    optimizer = sgd(model)
    rate = AdaptiveLR(optimizer, model)
    model.rate = rate  # a cycle, as when a LightningModule keeps it
    if removed:
        rate.remove()
    new_rate = duplicate(rate)
    assert new_rate.optimizer is not optimizer
    assert new_rate.model.rate is new_rate
    loss_of(new_rate.model, next(batches(1))).backward()
    new_rate.optimizer.step()
    length = adder_gradients(new_rate.model)[0].square().mean().sqrt().item()
    assert (length == pytest.approx(ETA)) is not removed


@pytest.mark.parametrize("eta", [0, -0.1, math.nan, math.inf])
def test_eta_out_of_range(eta):
    model = build()
    with pytest.raises(ValueError, match="eta must be positive"):
        AdaptiveLR(sgd(model), model, eta)


@pytest.mark.parametrize("eta", ["0.2", None, True])
def test_eta_of_a_wrong_type(eta):
    model = build()
    with pytest.raises(TypeError, match="eta must be a number"):
        AdaptiveLR(sgd(model), model, eta)


def test_wrong_optimizer_and_model():
    model = build()
    with pytest.raises(TypeError, match="optimizer must be"):
        AdaptiveLR(model, sgd(model))
    with pytest.raises(TypeError, match="model must be"):
        AdaptiveLR(sgd(model), list(model.parameters()))
    conv = nn.Sequential(nn.Conv2d(3, 3, 3))
    with pytest.raises(ValueError, match="no adder layers"):
        AdaptiveLR(sgd(conv), conv)
    with pytest.raises(ValueError, match="holds none of the model's 2 adder weights"):
        AdaptiveLR(sgd(conv), model)
    optimizer = sgd(model)
    AdaptiveLR(optimizer, model)
    with pytest.raises(ValueError, match="has an AdaptiveLR already"):
        AdaptiveLR(optimizer, model)
