"""How the normalisation and AdaptiveLR compose: docs/awn.md derives what is tested here."""

import math

import pytest
import torch
from torch import nn

import torchadder as ta
from torchadder.awn import AwnConfig

ETA, LR, DECAY = 0.2, 0.1, 0.01
EPS = 1e-12


def net(config, grad="clip"):
    torch.manual_seed(5)
    model = nn.Sequential(
        ta.nn.Adder2d(2, 4, 3, bias=False, grad=grad), nn.GroupNorm(2, 4), nn.Flatten()
    ).double()
    model[0].weight.data.mul_(torch.linspace(0.5, 2, 4)[:, None, None, None]).add_(0.3)
    ta.awn.apply_(model, config)
    return model, model[0].parametrizations.weight.original, ta.awn.weight_norm(model[0]).scale


def backward(model, step=0, factor=1.0):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(3, 2, 5, 5, generator=generator, dtype=torch.float64)
    target = torch.randn(3, 36, generator=generator, dtype=torch.float64)
    model.zero_grad()
    (factor * (model(x) * target).sum()).backward()


def centred(weight, axis="filter"):
    rows = weight.detach().flatten(1)
    return rows - (rows.mean(1, keepdim=True) if axis == "filter" else rows.mean())


def test_the_underlying_weight_is_scaled_and_the_scale_is_not():
    model, weight, scale = net(AwnConfig())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    ta.optim.AdaptiveLR(optimizer, model, ETA)
    backward(model)
    gradient, of_scale = weight.grad.clone(), scale.grad.clone()
    before, scale_before = weight.detach().clone(), scale.detach().clone()
    optimizer.step()
    assert weight.grad.square().mean().sqrt().item() == pytest.approx(ETA, rel=1e-12)
    wanted = ETA * math.sqrt(weight.numel()) / gradient.norm() * gradient
    torch.testing.assert_close(weight.detach(), before - LR * wanted)
    torch.testing.assert_close(scale.grad, of_scale)
    torch.testing.assert_close(scale.detach(), scale_before - LR * of_scale)
    assert of_scale.square().mean().sqrt() > 2 * ETA  # far from what the rate would make of it


@pytest.mark.parametrize("grad", ["clip", "sign", "l2", "exact"])
@pytest.mark.parametrize("axis", ["filter", "layer"])
def test_the_gradient_is_orthogonal_to_the_weights_and_to_their_mean(axis, grad):
    """Whatever the gradient rule: it is the normalisation's Jacobian that makes it so."""
    model, weight, _ = net(AwnConfig(axis=axis, eps=EPS), grad)
    backward(model)
    w, g = weight.detach().flatten(1), weight.grad.flatten(1)
    if axis == "layer":
        w, g = w.reshape(1, -1), g.reshape(1, -1)
    size = w.norm(dim=1) * g.norm(dim=1)
    assert ((w * g).sum(1).abs() <= 1e-10 * size).all()
    assert (g.sum(1).abs() <= 1e-10 * math.sqrt(w.shape[1]) * g.norm(dim=1)).all()
    assert size.min() > 0


def test_larger_weights_have_smaller_gradients_and_the_rate_undoes_it():
    small, weight, _ = net(AwnConfig(eps=EPS))
    large, of_large, _ = net(AwnConfig(eps=EPS))
    of_large.data.mul_(8)  # the outputs are the same
    for model, parameter in ((small, weight), (large, of_large)):
        backward(model)
        parameter.grad_before = parameter.grad.clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        ta.optim.AdaptiveLR(optimizer, model, ETA)
        optimizer.step()
    torch.testing.assert_close(of_large.grad_before, weight.grad_before / 8)
    torch.testing.assert_close(of_large.grad, weight.grad)


@pytest.mark.parametrize("axis", ["filter", "layer"])
@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_size_and_angle_of_every_step(axis, factor):
    """|W'|^2 = (1 - lr wd)^2 |W|^2 + (lr eta)^2 k, and tan(angle) = lr eta sqrt(k) / (...)."""
    model, weight, _ = net(AwnConfig(axis=axis, eps=EPS))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=DECAY)
    ta.optim.AdaptiveLR(optimizer, model, ETA)
    k = weight.numel()
    for step in range(5):
        w = centred(weight, axis)
        mean = weight.detach().flatten(1).mean(1)
        backward(model, step, factor)
        optimizer.step()
        new = centred(weight, axis)
        shrunk = (1 - LR * DECAY) * w.norm()
        assert new.norm().item() == pytest.approx(math.hypot(shrunk, LR * ETA * math.sqrt(k)))
        cosine = (w * new).sum() / (w.norm() * new.norm())
        angle = math.atan(LR * ETA * math.sqrt(k) / shrunk)
        assert math.acos(cosine) == pytest.approx(angle, rel=1e-6)
        if axis == "filter":  # means do nothing but decay
            torch.testing.assert_close(weight.detach().flatten(1).mean(1), (1 - LR * DECAY) * mean)


@pytest.mark.parametrize("eta", [0.2, 1.0])
def test_size_settles_and_then_eta_does_not_matter(eta):
    lr, decay = 0.5, 0.1
    model, weight, _ = net(AwnConfig(scale="fixed", eps=EPS))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)
    ta.optim.AdaptiveLR(optimizer, model, eta)
    for step in range(150):
        before = centred(weight)
        backward(model, step)
        optimizer.step()
    after = centred(weight)
    squared = lr * eta**2 / (decay * (2 - lr * decay))
    assert after.square().mean().item() == pytest.approx(squared, rel=1e-4)
    cosine = (before * after).sum() / (before.norm() * after.norm())
    assert cosine.item() == pytest.approx(1 - lr * decay, rel=1e-4)


@pytest.mark.parametrize("decay", [True, False])
def test_weight_decay_on_the_scales(decay):
    model, weight, scale = net(AwnConfig(decay=decay))
    optimizer = torch.optim.SGD(ta.awn.parameter_groups(model), lr=LR, weight_decay=DECAY)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(set(held))
    backward(model)
    before, weight_before = scale.detach().clone(), weight.detach().clone()
    optimizer.step()
    shrink = LR * DECAY if decay else 0.0
    torch.testing.assert_close(scale.detach(), (1 - shrink) * before - LR * scale.grad)
    torch.testing.assert_close(weight.detach(), (1 - LR * DECAY) * weight_before - LR * weight.grad)


def test_groups_keep_their_options():
    model, _, scale = net(AwnConfig(decay=False))
    own = [
        {"params": [model[1].weight, scale], "lr": 0.5},
        {"params": [model[1].bias], "momentum": 0.1},
        {"params": [scale], "lr": 0.3, "weight_decay": 1.0},
    ]
    got = ta.awn.parameter_groups(model, own)
    assert got == [
        {"params": [model[1].weight], "lr": 0.5},
        {"params": [scale], "lr": 0.5, "weight_decay": 0.0},
        {"params": [model[1].bias], "momentum": 0.1},
        {"params": [scale], "lr": 0.3, "weight_decay": 0.0},
    ]
    plain = ta.models.lenet5_bn()
    assert ta.awn.parameter_groups(plain) == [{"params": list(plain.parameters())}]
