"""The normalisation against its formula, written out in plain loops and by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import torchadder as ta
from torchadder.awn import AdaptiveWeightNorm, AwnConfig

CHOICES = [
    AwnConfig(axis=axis, scale=scale, init=init)
    for axis in ("filter", "layer")
    for scale in ("filter", "layer", "fixed")
    for init in ("keep", 0.5)
]


def layers(dtype=torch.float64):
    """One layer of each kind, and where filter o lies in its weight."""

    def first(weight, layer, o):
        return weight[o]

    def spread(weight, layer, o):
        inputs = layer.in_channels // layer.groups
        outputs = layer.out_channels // layer.groups
        group = o // outputs
        return weight[group * inputs : (group + 1) * inputs, o % outputs]

    made = [
        (ta.nn.Adder1d(4, 6, 3, groups=2), first),
        (ta.nn.Adder2d(3, 5, (2, 3)), first),
        (ta.nn.Adder2d(6, 6, 3, groups=6), first),
        (ta.nn.AdderLinear(7, 4), first),
        (ta.nn.AdderTranspose2d(4, 6, 3, groups=2), spread),
        (ta.nn.AdderTranspose2d(3, 5, 2), spread),
        (ta.lp.LpAdder2d(3, 4, 2), first),
        (nn.Conv1d(4, 6, 3), first),
        (nn.Conv2d(4, 6, 3, groups=2), first),
        (nn.Conv3d(2, 3, 2), first),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), spread),
        (nn.ConvTranspose2d(4, 2, 3), spread),
        (nn.Linear(5, 3), first),
    ]
    return [(layer.to(dtype), filter_of) for layer, filter_of in made]


def num_filters(layer):
    return getattr(layer, "out_channels", None) or layer.out_features


def normalise(layer, config):
    """``layer`` with its weight normalised, and the weight before."""
    before = layer.weight.detach().clone()
    ta.awn.apply_(layer, config, lambda module, name: True)
    return before, ta.awn.weight_norm(layer)


@pytest.mark.parametrize("config", CHOICES, ids=lambda c: f"{c.axis}-{c.scale}-{c.init}")
@pytest.mark.parametrize("index", range(13))
def test_every_layer_follows_the_formula(index, config):
    layer, filter_of = layers()[index]
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape) * 3).add_(0.7)
    before, norm = normalise(layer, config)
    norm.scale.data.mul_(torch.linspace(1, 2, norm.scale.numel()))  # other than at the start
    scale = norm.scale.detach().expand(num_filters(layer))
    got = layer.weight
    assert got.shape == before.shape
    for o in range(num_filters(layer)):
        own = filter_of(before, layer, o)
        values = (before if config.axis == "layer" else own).flatten().tolist()
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
        want = float(scale[o]) * (own - mean) / math.sqrt(variance + config.eps)
        torch.testing.assert_close(filter_of(got, layer, o), want, rtol=1e-12, atol=1e-12)


def test_hand_computed():
    layer = ta.nn.AdderLinear(4, 2, bias=False).double()
    layer.weight.data.copy_(torch.tensor([[1.0, 3.0, 5.0, 7.0], [2.0, 2.0, -2.0, -2.0]]))
    normalise(layer, AwnConfig(init=2.0, eps=4.0))
    # Means 4 and 0, variances 5 and 4; sqrt(5 + 4) = 3, sqrt(4 + 4) = 2.828...
    root = 4 / math.sqrt(8)
    want = [[-2.0, -2 / 3, 2 / 3, 2.0], [root, root, -root, -root]]
    torch.testing.assert_close(layer.weight, torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("axis", ["filter", "layer"])
@pytest.mark.parametrize(("scale", "size"), [("filter", 6), ("layer", 1)])
def test_scale_keeps_the_deviation_at_the_start(axis, scale, size):
    layer = ta.nn.Adder2d(4, 6, 3).double()
    layer.weight.data.mul_(torch.arange(1, 7)[:, None, None, None])
    eps = 1e-3
    before, norm = normalise(layer, AwnConfig(axis=axis, scale=scale, init="keep", eps=eps))
    assert norm.scale.shape == (size,)
    per_filter = before.flatten(1).var(1, correction=0)
    want = {
        ("filter", "filter"): per_filter,
        ("filter", "layer"): per_filter.mean()[None],
        ("layer", "filter"): before.var(correction=0).expand(6),
        ("layer", "layer"): before.var(correction=0)[None],
    }[axis, scale]
    torch.testing.assert_close(norm.scale.detach(), (want + eps).sqrt())
    if (axis, scale) == ("filter", "filter"):  # nothing but the mean is gone
        centred = before - before.mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(layer.weight, centred)


@pytest.mark.parametrize("axis", ["filter", "layer"])
def test_fixed_scales_are_no_parameters(axis):
    layer = ta.nn.Adder2d(4, 6, 3)
    _, norm = normalise(layer, AwnConfig(axis=axis, scale="fixed"))
    assert norm.scale.shape == ((6,) if axis == "filter" else (1,))
    assert [name for name, _ in norm.named_parameters()] == []
    assert "parametrizations.weight.0.scale" in layer.state_dict()


@pytest.mark.parametrize("init", ["unit", 1])
def test_unit_scale(init):
    layer = ta.nn.Adder2d(4, 6, 3).double()
    layer.weight.data.mul_(7)
    normalise(layer, AwnConfig(init=init, eps=1e-12))
    deviations = layer.weight.flatten(1).std(1, correction=0)
    torch.testing.assert_close(deviations, torch.ones(6, dtype=torch.float64))


def test_automatic_scale_is_2_in_adder_layers_and_kept_in_others():
    for layer, _ in layers():
        deviation = layer.weight.std(correction=0).item()
        _, norm = normalise(layer, AwnConfig(axis="layer", scale="layer"))
        want = 2 if isinstance(layer, ta.nn.AdderModule) else deviation
        assert norm.scale.item() == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("config", CHOICES[::2], ids=lambda c: f"{c.axis}-{c.scale}")
@pytest.mark.parametrize("transposed", [False, True])
def test_gradient_goes_through_mean_and_variance(config, transposed):
    weight = torch.randn(4, 3, 2, dtype=torch.float64)
    norm = AdaptiveWeightNorm(weight, config, transposed=transposed, groups=2)
    scale = norm.scale.detach().clone().requires_grad_(config.scale != "fixed")

    def function(weight, scale):
        return torch.func.functional_call(norm, {"scale": scale}, (weight,))

    weight.requires_grad_()
    assert torch.autograd.gradcheck(function, (weight, scale))
    assert torch.autograd.gradgradcheck(function, (weight, scale))


def test_gradient_through_an_adder_layer():
    torch.manual_seed(3)
    layer = ta.nn.Adder2d(2, 3, 2, grad="exact").double()
    _, norm = normalise(layer, AwnConfig(eps=0.1))
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    original = layer.parametrizations.weight.original

    def function(x, weight, scale, bias):
        values = {
            "parametrizations.weight.original": weight,
            "parametrizations.weight.0.scale": scale,
            "bias": bias,
        }
        return torch.func.functional_call(layer, values, (x,))

    assert torch.autograd.gradcheck(function, (x, original, norm.scale, layer.bias))


def test_gradient_by_hand():
    """dL/dw = v / s (h - mean h - u mean(h u)), dL/dv = <h, u>, with u = (w - mean) / s."""
    torch.manual_seed(0)
    layer = ta.nn.Adder2d(3, 4, 3, bias=False).double()
    before, norm = normalise(layer, AwnConfig(init=0.7, eps=0.01))
    h = torch.randn(4, 27, dtype=torch.float64)
    (layer.weight.flatten(1) * h).sum().backward()
    w = before.flatten(1)
    s = (w.var(1, correction=0, keepdim=True) + 0.01).sqrt()
    u = (w - w.mean(1, keepdim=True)) / s
    want = 0.7 / s * (h - h.mean(1, keepdim=True) - u * (h * u).mean(1, keepdim=True))
    got = layer.parametrizations.weight.original.grad.flatten(1)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(norm.scale.grad, (h * u).sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("config", [AwnConfig(), AwnConfig(axis="layer")], ids=["filter", "layer"])
def test_without_variance_all_is_finite(dtype, config):
    layer = ta.nn.Adder2d(2, 3, 3).to(dtype)
    layer.weight.data.fill_(1000.0)
    if config.axis == "filter":
        layer.weight.data[1] = torch.randn(2, 3, 3)
    _, norm = normalise(layer, config)
    weight = layer.weight
    assert torch.isfinite(weight).all()
    # Nothing is left but the rounding of a mean of 1000, times v / sqrt(eps).
    factor = 2 / math.sqrt(config.eps)
    assert weight[0].abs().max() <= factor * 1000 * torch.finfo(torch.float32).eps
    layer(torch.randn(1, 2, 5, 5, dtype=dtype)).sum().backward()
    assert torch.isfinite(layer.parametrizations.weight.original.grad).all()
    assert torch.isfinite(norm.scale.grad).all()


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 2**-23), (torch.bfloat16, 2**-8)])
def test_low_precision_is_one_rounding_away(dtype, eps):
    wide = ta.nn.Adder2d(8, 6, 3).double()
    wide.weight.data.copy_(wide.weight.to(dtype))
    layer = ta.nn.Adder2d(8, 6, 3).to(dtype)
    layer.weight.data.copy_(wide.weight)
    config = AwnConfig(init=1.0)
    normalise(wide, config)
    normalise(layer, config)
    assert layer.weight.dtype == dtype
    # Sums are taken in float32, so only the result is rounded to a narrower format.
    bound = eps * wide.weight.abs() + 2**-20
    assert ((layer.weight.double() - wide.weight).abs() <= bound).all()


def test_memory_format_is_kept():
    weight = torch.randn(4, 3, 2, 5)
    last = weight.to(memory_format=torch.channels_last)
    norm = AdaptiveWeightNorm(weight)
    got = norm(last)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, norm(weight))


def test_scale_of_the_weights_does_not_matter():
    layer = ta.nn.Adder2d(3, 4, 3).double()
    normalise(layer, AwnConfig(eps=1e-12))
    want = layer.weight.detach().clone()
    layer.parametrizations.weight.original.data.mul_(5).add_(3)
    torch.testing.assert_close(layer.weight, want)


@pytest.mark.parametrize(
    ("weight", "config", "message"),
    [
        (torch.randn(4, 1), AwnConfig(), r"shape \(4, 1\) has 1 to normalise a filter, at least 2"),
        (torch.randn(1, 1, 1, 1), AwnConfig(axis="layer"), "has 1 to normalise a layer"),
        (torch.randn(4), AwnConfig(), r"at least two dimensions, got \(4,\) in torch.float32"),
        (torch.ones(4, 4, dtype=torch.int32), AwnConfig(), r"got \(4, 4\) in torch.int32"),
    ],
)
def test_weights_that_cannot_be_normalised(weight, config, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveWeightNorm(weight, config)


def test_one_weight_a_filter_can_be_normalised_with_its_layer():
    layer = ta.nn.Adder2d(1, 4, 1).double()
    normalise(layer, AwnConfig(axis="layer", init=1.0))
    assert layer.weight.mean().abs() < 1e-12
    assert layer.weight.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_config_of_a_wrong_type():
    with pytest.raises(TypeError, match="config must be an AwnConfig, got str"):
        AdaptiveWeightNorm(torch.randn(2, 3), "adaptive")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"axis": "channel"}, ValueError, "axis must be one of filter, layer, got 'channel'"),
        ({"scale": "global"}, ValueError, "scale must be one of filter, layer, fixed, got 'global"),
        ({"scale": None}, ValueError, "scale must be one of filter, layer, fixed, got None"),
        ({"init": "zero"}, ValueError, "init must be one of auto, keep, unit or a number"),
        ({"init": 0.0}, ValueError, "init must be positive and finite, got 0.0"),
        ({"init": None}, TypeError, "init must be a number, got None"),
        ({"eps": -1e-5}, ValueError, "eps must be positive and finite, got -1e-05"),
        ({"eps": 0}, ValueError, "eps must be positive and finite, got 0"),
        ({"eps": float("nan")}, ValueError, "eps must be positive and finite, got nan"),
        ({"eps": "small"}, TypeError, "eps must be a number, got 'small'"),
        ({"decay": 1}, TypeError, "decay must be a bool, got 1"),
    ],
)
def test_wrong_choices(options, error, message):
    with pytest.raises(error, match=message):
        AwnConfig(**options)


def test_config_is_frozen_and_hashable():
    assert hash(AwnConfig()) == hash(AwnConfig(axis="filter"))
    with pytest.raises(AttributeError):
        AwnConfig().axis = "layer"  # type: ignore[misc]


def test_repr_names_the_choices():
    layer = ta.nn.Adder2d(2, 4, 3)
    ta.awn.apply_(layer, AwnConfig(axis="layer"))
    assert "axis=layer, scale=filter(4,), init=auto, eps=1e-06" in repr(layer)


def test_by_torchs_own_call():
    layer = ta.nn.Adder2d(2, 4, 3)
    norm = AdaptiveWeightNorm(layer.weight)
    parametrize.register_parametrization(layer, "weight", norm)
    assert ta.awn.weight_norm(layer) is norm
    assert ta.awn.bake_(layer) == [""]
