"""Layers: same arguments, attributes, parameter names and shapes as their torch twins."""

import copy
import inspect

import pytest
import torch
from torch import nn

import torchadder as ta

TWINS = [
    (ta.nn.Adder2d, nn.Conv2d, (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 9, 8)),
    (ta.nn.Adder2d, nn.Conv2d, (4, 6, (3, 2)), {"dilation": (1, 2), "bias": False}, (4, 9, 8)),
    (ta.nn.Adder2d, nn.Conv2d, (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 4, 9, 8)),
    (ta.nn.Adder2d, nn.Conv2d, (4, 6, 4), {"padding": "same", "padding_mode": "circular"}, (2, 4, 9, 8)),
    (ta.nn.Adder1d, nn.Conv1d, (4, 6, 3), {"stride": 2, "padding": 1}, (2, 4, 9)),
    (ta.nn.AdderLinear, nn.Linear, (4, 6), {}, (2, 3, 4)),
    (ta.nn.AdderTranspose2d, nn.ConvTranspose2d, (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1}, (2, 4, 9, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("adder", "twin", "args", "kwargs", "shape"), TWINS)
def test_twin(adder, twin, args, kwargs, shape):
    layer, other = adder(*args, **kwargs), twin(*args, **kwargs)
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == other(x).shape
    assert y.max() <= 0, "the bias starts at zero"
    y.sum().backward()
    assert layer.weight.grad is not None
    own, theirs = layer.state_dict(), other.state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}
    layer.load_state_dict(theirs)
    public = [name for name in vars(other) if not name.startswith("_")]
    for name in public:
        assert getattr(layer, name) == getattr(other, name), name
    own_arguments = list(inspect.signature(adder).parameters)
    assert own_arguments == [*inspect.signature(twin).parameters, "grad"]
    assert repr(layer).startswith(adder.__name__)
    assert "grad=clip" in repr(layer)
    assert isinstance(layer, ta.nn.AdderModule)
    assert not isinstance(layer, twin)


def test_initialisation_is_standard_normal():
    layer = ta.nn.Adder2d(64, 128, 3)
    assert abs(layer.weight.mean()) < 0.02
    assert abs(layer.weight.std() - 1) < 0.02
    assert not layer.bias.any()


def test_padding_mode_pads_first():
    layer = ta.nn.Adder2d(2, 3, 3, padding=1, padding_mode="replicate")
    x = torch.randn(1, 2, 5, 5)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    want = ta.functional.adder2d(padded, layer.weight, layer.bias)
    assert torch.equal(layer(x), want)


def test_output_size_of_the_transposed_layer():
    layer = ta.nn.AdderTranspose2d(2, 3, 3, stride=2)
    x = torch.randn(1, 2, 5, 5)
    assert layer(x, output_size=(12, 11)).shape == (1, 3, 12, 11)


def test_deepcopy_and_dtype_moves():
    layer = copy.deepcopy(ta.nn.Adder2d(2, 3, 3, grad="sign")).to(torch.float64)
    assert layer.grad == "sign"
    assert layer(torch.randn(1, 2, 5, 5, dtype=torch.float64)).dtype == torch.float64
    half = ta.nn.Adder2d(2, 3, 3, dtype=torch.bfloat16, device="cpu")
    assert half(torch.randn(1, 2, 5, 5).bfloat16()).dtype == torch.bfloat16


def test_rule_reaches_the_operator():
    x = torch.full((1, 1, 1, 1), 5.0, requires_grad=True)
    want = {"clip": -1.0, "sign": -1.0, "l2": -4.0, "exact": -1.0}
    for rule, gradient in want.items():
        layer = ta.nn.Adder2d(1, 1, 1, grad=rule)
        nn.init.ones_(layer.weight)
        (got,) = torch.autograd.grad(layer(x).sum(), x)
        assert got.item() == gradient
