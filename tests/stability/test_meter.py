"""What the meter says of a step, against the outputs of the layers themselves."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import torchadder as ta
from torchadder.stability.layers import effective_weight, measured_layers, weight_parameters
from torchadder.stability.meter import QUANTITIES, StabilityMeter


def small_net(**norm):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4, **norm),
        nn.ReLU(),
        ta.nn.Adder2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6, **norm),
        nn.Flatten(),
        nn.Linear(6 * 16, 3),
    )


def measured_step(net, images, *, eta=None, forwards=1, lr=0.1):
    """One step under the meter: its readings, and what each layer put out in it."""
    outputs = {}
    handles = [
        layer.register_forward_hook(
            lambda _, args, output, name=name: outputs.update({name: output.detach()})
        )
        for name, layer in net.named_children()
    ]
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=0.01)
    if eta:
        ta.optim.AdaptiveLR(optimizer, net, eta)
    meter = StabilityMeter(net)
    meter.before_forward()
    for _ in range(forwards):
        loss = F.cross_entropy(net(images), torch.arange(len(images)) % 3)
    loss.backward()
    meter.before_step()
    optimizer.step()
    for handle in handles:
        handle.remove()
    rows = meter.after_step(17).rows()
    assert {row[0] for row in rows} == {17}
    return {row[1:3]: row[3] for row in rows}, outputs


@pytest.fixture
def images():
    return torch.randn(9, 1, 8, 8)


def test_readings_are_those_of_the_outputs(images):
    net = small_net()
    with torch.no_grad():
        net(images.flip(0) + 1)  # running statistics of their own, not 0 and 1
    before = {name: value.clone() for name, value in net.state_dict().items()}
    got, outputs = measured_step(net, images)
    for name, norm in (("0", "1"), ("3", "4")):
        values = outputs[name].double().transpose(0, 1).flatten(1)
        means, variances = values.mean(1), values.var(1)
        want = {
            "output_mean": means.mean(),
            "output_var": variances.mean(),
            "output_var_total": variances.mean() + means.var(correction=0),
        }
        running = (("mean", means), ("var", variances))
        for kind, batch in running:
            old = before[f"{norm}.running_{kind}"].double()
            new = 0.9 * old + 0.1 * batch
            want[f"bn_{kind}"] = new.mean()
            want[f"bn_{kind}_step"] = (new - old).norm() / new.norm()
            want[f"bn_{kind}_gap"] = (batch - old).norm() / new.norm()
            if kind == "mean":
                step = new - old
        want["bn_mean_step_std"] = (step.square() / new).mean().sqrt()
        weight = before[f"{name}.weight"].double().flatten()
        centred = weight - weight.mean()
        want["weight_mean"] = weight.mean()
        want["weight_var"] = centred.square().mean()
        want["weight_kurtosis"] = centred.pow(4).mean() / want["weight_var"] ** 2
        for quantity, value in want.items():
            assert got[name, quantity] == pytest.approx(float(value), rel=2e-5), (name, quantity)
    # A layer without batch norm has no outputs to tell of.
    assert {key[1] for key in got if key[0] == "6"} == {
        *("weight_mean", "weight_var", "weight_kurtosis", "grad_norm", "grad_norm_used")
    }
    assert {key[1] for key in got} == set(QUANTITIES)


def test_gradients_before_and_behind_the_adaptive_rate(images):
    net = small_net()
    got, _ = measured_step(net, images, eta=0.2, lr=1e-12)  # the weights stay where they were
    net.zero_grad()
    F.cross_entropy(net(images), torch.arange(9) % 3).backward()
    for name in ("0", "3", "6"):
        norm = float(net.get_submodule(name).weight.grad.norm())
        assert got[name, "grad_norm"] == pytest.approx(norm, rel=1e-4)
        want = 0.2 * math.sqrt(net[3].weight.numel()) if name == "3" else norm
        assert got[name, "grad_norm_used"] == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("norm", [{}, {"momentum": 0.3}, {"momentum": None}], ids=str)
@pytest.mark.parametrize("forwards", [1, 3])
def test_the_batch_is_found_for_every_momentum(images, norm, forwards):
    """Of several forward passes of the same batch in a step, too."""
    net = small_net(**norm)
    with torch.no_grad():
        net(images + 1)
        net(images - 2)
    got, outputs = measured_step(net, images, forwards=forwards)
    want = float(outputs["3"].transpose(0, 1).flatten(1).var(1).mean())
    assert got["3", "output_var"] == pytest.approx(want, rel=1e-4)


def test_frozen_norms_have_running_statistics_only(images):
    net = small_net(momentum=0.0)
    net[1].eval()
    got, _ = measured_step(net, images)
    for name in ("0", "3"):
        assert {key[1] for key in got if key[0] == name and key[1][:2] in ("bn", "ou")} == {
            *("bn_mean", "bn_var")
        }
    net = small_net(track_running_stats=False)
    got, _ = measured_step(net, images)
    assert not any(key[1].startswith(("bn", "output")) for key in got)


def test_frozen_weights_have_no_gradient(images):
    net = small_net()
    net[3].weight.requires_grad_(False)
    got, _ = measured_step(net, images)
    assert ("3", "grad_norm") not in got
    assert ("0", "grad_norm") in got


def test_parametrized_and_pruned_weights(images):
    net = small_net()
    ta.awn.apply_(net, ta.awn.AwnConfig(init=0.5))
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    net(images)
    got, _ = measured_step(net, images, eta=0.2)
    assert got["3", "weight_var"] == pytest.approx(0.25, rel=1e-3)
    # The adaptive rate acts on the parameter behind the normalisation.
    want = 0.2 * math.sqrt(net[3].weight.numel())
    assert got["3", "grad_norm_used"] == pytest.approx(want, rel=1e-5)
    assert weight_parameters(net[0]) == [net[0].weight_orig]
    assert ("0", "grad_norm") in got


def test_looking_at_a_weight_changes_nothing():
    layer = parametrizations.spectral_norm(nn.Linear(5, 4))
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    weight = effective_weight(layer)
    assert not weight.requires_grad
    assert layer.parametrizations.weight.training
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name])
    layer = parametrizations.weight_norm(nn.Linear(5, 4))
    assert len(weight_parameters(layer)) == 2
    assert torch.equal(effective_weight(layer), layer.weight)
    assert parametrize.is_parametrized(layer)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", ["resnet20", "vgg_small", "lenet5_bn"])
def test_layers_of_the_models(name, normalised):
    model = getattr(ta.models, name)()
    if normalised:
        ta.awn.apply_(model)
    pairs = {layer.name: layer.norm for layer in measured_layers(model)}
    assert pairs["conv2" if name != "resnet20" else "layer2.0.conv1"] == (
        "bn2" if name != "resnet20" else "layer2.0.bn1"
    )
    assert all(norm for layer, norm in pairs.items() if layer != "fc")


def test_a_net_without_batch_norm_is_refused():
    with pytest.raises(ValueError, match="Sequential has no layer with a batch norm behind it"):
        StabilityMeter(nn.Sequential(ta.nn.Adder2d(1, 2, 3), nn.GroupNorm(1, 2)))
