"""Whole models: normalised, copied, compiled, counted, and made plain again."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import torchadder as ta
from torchadder.awn import AwnConfig

ADDERS = ["conv2", "conv3", "conv4"]


def trained(model, steps=3):
    """``model`` after a few steps on random images, so that nothing is at its start."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, 1, 28, 28)), torch.arange(8)).backward()
        optimizer.step()
    return model.eval()


def mixed():
    """Every kind of layer; images (N, 2, 6, 6)."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        ta.nn.Adder2d(4, 6, 3, groups=2, padding=1),
        ta.nn.AdderTranspose2d(6, 4, 2, stride=2, groups=2, bias=False),
        nn.ConvTranspose2d(4, 4, 2),
        nn.Flatten(2),
        ta.nn.Adder1d(4, 3, 5),
        nn.Conv1d(3, 3, 3),
        ta.nn.AdderLinear(163, 6),
        nn.Linear(6, 2),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("axis", ["filter", "layer"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_baked_outputs_are_the_same_to_the_last_bit(dtype, axis, channels_last):
    model = mixed().to(dtype)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    plain = {name: value.shape for name, value in model.state_dict().items()}
    parameters = {name: value for name, value in model.named_parameters()}
    names = ta.awn.apply_(model, AwnConfig(axis=axis, init=0.8), lambda module, name: True)
    assert names == ["0", "1", "2", "3", "5", "6", "7", "8"]
    x = torch.randn(3, 2, 6, 6, dtype=dtype)
    want = model(x)
    expected = ta.awn.baked_state_dict(model)
    assert ta.awn.bake_(model) == names
    assert torch.equal(model(x), want)
    state = model.state_dict()
    assert list(state) == list(plain) == list(expected)  # names and their order
    for name, value in state.items():
        assert value.shape == plain[name]
        assert torch.equal(value, expected[name])
    assert dict(model.named_parameters()).keys() == parameters.keys()
    assert all(parameters[name] is value for name, value in model.named_parameters())
    assert not any("arametrized" in type(module).__name__ for module in model.modules())


def test_a_trained_model_is_baked_exactly_and_fits_the_plain_one():
    model = ta.models.lenet5_bn()
    assert ta.awn.apply_(model) == ADDERS
    assert list(ta.awn.normalised_layers(model)) == ADDERS
    trained(model)
    x = torch.randn(4, 1, 28, 28)
    want = model(x)
    ta.awn.bake_(model)
    plain = ta.models.lenet5_bn().eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x), want)
    assert all(p.grad is None for p in (plain.conv2.weight, model.conv2.weight))
    assert ta.awn.normalised_layers(model) == {}


def test_state_dict_round_trip():
    model = ta.models.lenet5_bn()
    ta.awn.apply_(model)
    trained(model)
    other = ta.models.lenet5_bn()
    ta.awn.apply_(other, AwnConfig(init=3.0))
    other.load_state_dict(model.state_dict())
    x = torch.randn(4, 1, 28, 28)
    assert torch.equal(other.eval()(x), model(x))


def test_the_parameter_stays_the_same_object():
    model = ta.models.lenet5_bn()
    weight = model.conv2.weight
    ta.awn.apply_(model)
    assert model.conv2.parametrizations.weight.original is weight
    ta.awn.bake_(model)
    assert model.conv2.weight is weight


def test_a_deep_copy_is_independent():
    model = ta.models.lenet5_bn()
    ta.awn.apply_(model)
    twin = copy.deepcopy(model)
    before = model.conv2.weight.detach().clone()
    twin.conv2.parametrizations.weight.original.data.normal_()
    twin.conv2.parametrizations.weight[0].scale.data.mul_(2)
    ta.awn.bake_(twin)
    assert torch.equal(model.conv2.weight, before)
    assert list(ta.awn.normalised_layers(model)) == ADDERS


def test_computed_once_a_forward(monkeypatch):
    calls = []
    forward = ta.awn.AdaptiveWeightNorm.forward
    monkeypatch.setattr(
        ta.awn.AdaptiveWeightNorm,
        "forward",
        lambda self, weight: calls.append(self) or forward(self, weight),
    )
    model = mixed()
    ta.awn.apply_(model, None, lambda module, name: True)
    calls.clear()
    model(torch.randn(2, 2, 6, 6))
    assert len(calls) == len(set(calls)) == 8


def test_compiles_as_one_graph():
    model = nn.Sequential(ta.nn.Adder2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)).double()
    ta.awn.apply_(model, None, lambda module, name: True)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    outputs = [net(x) for net in (model, compiled)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs)
    for one, other in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_operations_are_those_of_the_plain_net():
    images = torch.zeros(1, 1, 28, 28)
    plain = ta.energy.count(ta.models.lenet5_bn(), images)
    model = ta.models.lenet5_bn()
    ta.awn.apply_(model)
    report = ta.energy.count(model, images)
    assert (report.num_mul, report.num_add) == (plain.num_mul, plain.num_add)
    assert [layer.name for layer in report.layers] == [layer.name for layer in plain.layers]
    ta.awn.bake_(model)
    assert ta.energy.count(model, images).to_csv() == plain.to_csv()


def test_picks_adder_layers_else_convolutions():
    model = mixed()
    assert ta.awn.apply_(model) == ["1", "2", "5", "7"]
    cnn = ta.models.lenet5_bn(conv="conv")
    assert ta.awn.apply_(cnn) == ["conv1", *ADDERS, "fc"]


def test_filter_fn_sees_every_layer_and_decides():
    model = mixed()
    seen = []
    names = ta.awn.apply_(
        model, None, lambda module, name: seen.append(name) or isinstance(module, nn.Linear)
    )
    assert seen == ["0", "1", "2", "3", "5", "6", "7", "8"]
    assert names == ["8"]


def test_frozen_weights_stay_frozen():
    model = mixed()
    model[1].weight.requires_grad_(False)
    ta.awn.apply_(model)
    norm = ta.awn.weight_norm(model[1])
    assert norm is not None
    assert not norm.scale.requires_grad
    assert not model[1].weight.requires_grad
    assert ta.awn.weight_norm(model[2]).scale.requires_grad
    before = norm.scale.clone()
    model(torch.randn(2, 2, 6, 6)).sum().backward()
    assert norm.scale.grad is None
    assert torch.equal(norm.scale, before)
    ta.awn.bake_(model)
    assert not model[1].weight.requires_grad


def test_layers_that_share_a_weight_share_its_scale():
    model = nn.Sequential(ta.nn.Adder2d(4, 4, 3), ta.nn.Adder2d(4, 4, 3, stride=2))
    model[1].weight = model[0].weight
    ta.awn.apply_(model)
    assert ta.awn.weight_norm(model[0]) is ta.awn.weight_norm(model[1])
    ta.awn.weight_norm(model[0]).scale.data.mul_(3)
    x = torch.randn(1, 4, 9, 9)
    want = model(x)
    state = ta.awn.baked_state_dict(model)
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()
    ta.awn.bake_(model)
    assert model[0].weight is model[1].weight
    assert torch.equal(model(x), want)


def test_on_the_meta_device():
    with torch.device("meta"):
        model = ta.models.lenet5_bn()
    ta.awn.apply_(model)
    assert model.conv2.weight.is_meta
    ta.awn.bake_(model)
    assert model.conv2.weight.is_meta


def tied_to_a_plain_layer():
    model = nn.Sequential(ta.nn.AdderLinear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def tied_with_other_filters():
    model = nn.Sequential(ta.nn.Adder2d(4, 4, 3), ta.nn.AdderTranspose2d(4, 4, 3))
    model[1].weight = model[0].weight
    return model


def twice():
    model = nn.Sequential(nn.Linear(2, 2), ta.nn.Adder2d(2, 2, 3))
    ta.awn.apply_(model)
    return model


def pruned():
    model = nn.Sequential(ta.nn.Adder2d(2, 2, 3))
    prune.random_unstructured(model[0], "weight", 0.5)
    return model


def parametrized():
    model = nn.Sequential(ta.nn.Adder2d(2, 2, 3))
    parametrize.register_parametrization(model[0], "weight", nn.Identity())
    return model


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (nn.ReLU, "model ReLU has no adder layers and no convolutions to normalise"),
        (twice, "the weight of layer '1' is normalised already; bake_ it first"),
        (pruned, "layer '0' is parametrized or pruned"),
        (parametrized, "layer '0' is parametrized or pruned"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "layer '0' is lazy, its shape is not known"),
        (
            lambda: nn.Sequential(ta.nn.Adder2d(2, 2, 3), ta.nn.Adder2d(4, 4, 1, groups=4)),
            r"layer '1' cannot be normalised: a weight of shape \(4, 1, 1, 1\) has 1 to normalise",
        ),
        (tied_to_a_plain_layer, "layer '0' shares its weight with '1.weight', which is not norm"),
        (tied_with_other_filters, "layers '0' and '1' share their weight and have other filters"),
    ],
)
def test_what_cannot_be_normalised_is_left_as_it_was(build, message):
    model = build()
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message) as caught:
        ta.awn.apply_(model)
    assert "\n" not in str(caught.value)
    assert [type(module) for module in model.modules()] == before


def test_a_filter_that_picks_nothing():
    with pytest.raises(ValueError, match="filter_fn picks none of the 8 adder, convolution and"):
        ta.awn.apply_(mixed(), None, lambda module, name: False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net",), "model must be a torch.nn.Module, got str"),
        ((nn.Conv2d(1, 1, 3), "adaptive"), "config must be an AwnConfig, got str"),
        ((nn.Conv2d(1, 1, 3), None, "conv"), "filter_fn must be callable, got str"),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        ta.awn.apply_(*arguments)


def test_nothing_to_bake():
    with pytest.raises(ValueError, match="model LeNet5BN has no normalised weights to bake"):
        ta.awn.bake_(ta.models.lenet5_bn())
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        ta.awn.bake_({})  # type: ignore[arg-type]


@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_a_further_parametrization_is_not_baked(tensor):
    model = mixed()
    ta.awn.apply_(model)
    parametrize.register_parametrization(model[1], tensor, nn.Identity())
    with pytest.raises(ValueError, match="layer '1' has a parametrization beside the normalisatio"):
        ta.awn.bake_(model)
    assert list(ta.awn.normalised_layers(model)) == ["1", "2", "5", "7"]


def test_conversion_normalises_the_new_layers():
    def net():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3),
            nn.BatchNorm2d(4),
            ta.nn.Adder2d(4, 4, 3),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(4 * 22 * 22, 2),
        )

    model = net()
    config = ta.AdderConfig(weight_norm="adaptive")
    assert config.weight_norm == AwnConfig()
    report = ta.convert_(model, config)
    assert report.converted == ["2"]
    norms = {layer.name: layer.weight_norm for layer in report.layers}
    assert norms == {"0": None, "2": "axis filter, scale filter", "4": None, "7": None}
    assert "weight norm" in str(report).splitlines()[0]
    assert list(ta.awn.normalised_layers(model)) == ["2"]
    again = ta.convert_(model, config)
    assert again.converted == []
    assert {layer.name: layer.weight_norm for layer in again.layers} == norms

    plain = net()
    assert "weight norm" not in str(ta.convert_(plain, ta.AdderConfig()))
    own = AwnConfig(axis="layer", scale="fixed", init="keep")
    model = net()
    report = ta.convert_(model, ta.AdderConfig(weight_norm=own))
    assert report.layers[1].weight_norm == "axis layer, scale fixed"
    # The scale kept is that of the weights drawn in the conversion, not of the convolution's.
    assert ta.awn.weight_norm(model[2]).scale.item() == pytest.approx(1, abs=0.3)


def test_a_conversion_that_cannot_normalise_changes_nothing():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4), nn.Linear(4, 2)
    )
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="layer '1' cannot be normalised: a weight of shape"):
        ta.convert_(model, ta.AdderConfig(weight_norm="adaptive"))
    assert type(model[1]) is nn.Conv2d
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("spectral", ValueError, "weight_norm: 'adaptive', a mapping or None is wanted, got 'spec"),
        (3, TypeError, "weight_norm: 'adaptive', an AwnConfig or None is wanted, got int"),
    ],
)
def test_unknown_weight_norm_of_a_conversion(value, error, message):
    with pytest.raises(error, match=message):
        ta.AdderConfig(weight_norm=value)
