"""Predicted output variances against exact sums, and the taps against the layers themselves."""

import math

import pytest
import torch
from torch import nn

import torchadder as ta
from torchadder.stability import predict_output_variance
from torchadder.stability.patches import sample_patches

ALL = 10**9

LAYERS = [
    (nn.Conv2d(4, 6, 3, padding=1, bias=False), (4, 9, 7)),
    (nn.Conv2d(4, 6, (3, 2), stride=2, dilation=2, padding="valid"), (4, 9, 9)),
    (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", groups=2), (4, 8, 8)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=2), (4, 11)),
    (nn.Linear(12, 5), (12,)),
    (ta.nn.Adder2d(4, 6, 3, padding=1), (4, 9, 7)),
    (ta.nn.Adder2d(4, 6, (2, 3), stride=2, padding=(2, 1), groups=2), (4, 8, 8)),
    (ta.nn.Adder1d(4, 6, 3, dilation=2), (4, 11)),
    (ta.nn.AdderLinear(12, 5), (12,)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda one: str(one)[:24])
def test_taps_are_those_of_the_layer(layer, shape):
    """From all rows and the weights the layer's outputs come out, in another order."""
    x = torch.randn(3, *shape, dtype=torch.float64)
    layer = layer.double()
    rows = sample_patches(layer, x, ALL, torch.Generator())
    weight = layer.weight.flatten(1).unflatten(0, (rows.shape[1], -1))
    if isinstance(layer, ta.nn.AdderModule):
        terms = -(rows[:, :, None] - weight).abs()
    else:
        terms = rows[:, :, None] * weight
    got = terms.sum(-1).flatten(1) + (0 if layer.bias is None else layer.bias)
    want = layer(x)
    want = want if want.dim() == 2 else want.transpose(0, 1).flatten(1).T
    torch.testing.assert_close(got.sort(0).values, want.sort(0).values)


def test_positions_are_spread_over_the_samples():
    layer = nn.Conv2d(1, 1, 3)
    x = torch.arange(5.0)[:, None, None, None].expand(5, 1, 10, 10)
    rows = sample_patches(layer, x, 20, torch.Generator().manual_seed(0))
    assert rows.shape == (20, 1, 9)
    assert rows[:, 0, 0].tolist() == [float(n) for n in range(5) for _ in range(4)]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda one: str(one)[:24])
def test_of_all_positions_the_measurement_is_exact(layer, shape):
    """And a convolution's prediction with the covariance of its taps, too."""
    x = torch.randn(40, *shape, dtype=torch.float64).cumsum(-1)  # neighbours are alike
    layer = layer.double()
    (got,) = predict_output_variance(nn.Sequential(layer), x.split(15), num_patches=ALL)
    outputs = layer(x).detach()
    outputs = outputs if outputs.dim() == 2 else outputs.transpose(0, 1).flatten(1).T
    outputs = outputs - (0 if layer.bias is None else layer.bias.detach())
    assert got.measured_mean == pytest.approx(float(outputs.mean()), rel=1e-9)
    assert got.measured == pytest.approx(float(outputs.var(0, correction=0).mean()), rel=1e-9)
    assert got.measured_total == pytest.approx(float(outputs.var(correction=0)), rel=1e-9)
    rows = sample_patches(layer, x, ALL, torch.Generator())
    weight = layer.weight.detach().flatten(1).unflatten(0, (rows.shape[1], -1))
    if got.kind == "conv":
        assert got.correlated == pytest.approx(got.measured, rel=1e-9)
        terms = rows[:, :, None] * weight
    else:
        terms = (rows[:, :, None] - weight).abs()
        # Correlations up to 0.99: what is beyond the squares is left out, a part of each pair.
        assert 0.75 < got.correlated / got.measured < 1.05
        assert got.independent < 0.6 * got.measured
    alone = terms.var(0, correction=0).sum(-1).mean()
    assert got.independent == pytest.approx(float(alone), rel=1e-9)
    covariance = sum(group.T.cov(correction=0) for group in rows.transpose(0, 1))
    deviations = sum(group.std(0, correction=0).sum() ** 2 for group in rows.transpose(0, 1))
    own = covariance.trace()
    assert got.correlation == pytest.approx(
        float((covariance.sum() - own) / (deviations - own)), rel=1e-6, abs=1e-9
    )


@pytest.mark.parametrize("kind", ["adder", "conv"])
@pytest.mark.parametrize("rectified", [False, True])
def test_independent_inputs_are_predicted_by_six_numbers(kind, rectified):
    """Taps of a 1x1 layer are independent here, so all predictions are the measurement.

    An output is a sum of 100 terms, nearly normal: the standard error of one channel's variance is
    sqrt(2 / n) of it. The mean over channels errs less; what is predicted from the same sample errs
    along with it. The prediction from six numbers errs by the finite number of weights, too: 4 %.
    """
    layer = {"adder": ta.nn.Adder2d, "conv": nn.Conv2d}[kind](100, 40, 1, bias=False)
    nn.init.normal_(layer.weight, 0.2, 0.7)
    x = 0.3 + torch.randn(1000, 100, 1, 1)
    x = x.clamp_min(0) if rectified else x
    net = nn.Sequential(layer)
    (got,) = predict_output_variance(net, [x], num_patches=ALL)
    bound = 4.5 * math.sqrt(2 / 1000)
    assert got.inputs == ("rectified" if rectified else "normal")
    assert got.weights == "normal"
    assert got.correlated == pytest.approx(got.measured, rel=bound)
    assert got.independent == pytest.approx(got.measured, rel=bound)
    assert got.theory == pytest.approx(got.independent, rel=0.04)
    assert got.theory_mean == pytest.approx(got.measured_mean, rel=0.02)
    assert got.theory_total == pytest.approx(got.measured_total, rel=4.5 * math.sqrt(2 / 40))
    assert abs(got.correlation) < 1e-3
    assert got.num_taps == 100
    assert got.zero_share == pytest.approx(float((x == 0).double().mean()), abs=1e-9)


def test_equal_taps_add_up():
    """Twice the same input, far from the weights: |x - w| and |x - w'| move together."""
    layer = ta.nn.AdderLinear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(-100.0)
    x = torch.randn(500, 1).expand(500, 2)
    (got,) = predict_output_variance(nn.Sequential(layer), [x])
    assert got.independent == pytest.approx(2 * float(x[:, 0].var(correction=0)), rel=1e-4)
    assert got.correlated == pytest.approx(2 * got.independent, rel=1e-4)
    assert got.measured == pytest.approx(2 * got.independent, rel=1e-4)
    assert got.correlation == pytest.approx(1, rel=1e-6)


def test_dead_inputs_and_laplace_weights():
    layer = ta.nn.AdderLinear(40, 50, bias=False)
    with torch.no_grad():
        signs = torch.randint(0, 2, layer.weight.shape) * 2 - 1.0
        layer.weight.copy_(signs * torch.rand_like(layer.weight).log())
    (got,) = predict_output_variance(nn.Sequential(layer), [torch.zeros(9, 40)])
    assert (got.inputs, got.theory, got.correlated) == ("constant", None, 0.0)
    assert got.measured == pytest.approx(0, abs=1e-6)
    (got,) = predict_output_variance(nn.Sequential(layer), [torch.randn(9, 40)])
    assert (got.inputs, got.weights) == ("normal", "laplace")


def test_layers_in_the_order_in_which_they_run():
    net = ta.models.lenet5_bn().eval()
    found = predict_output_variance(net, [torch.randn(8, 1, 28, 28)], num_patches=64)
    assert [one.layer for one in found] == ["conv1", "conv2", "conv3", "conv4", "fc"]
    assert [one.kind for one in found] == ["conv", "adder", "adder", "adder", "conv"]
    assert not any(module._forward_hooks for module in net.modules())


def test_what_is_refused():
    with pytest.raises(ValueError, match="ReLU has no convolution, adder or linear layer"):
        predict_output_variance(nn.ReLU(), [torch.zeros(1)])
    with pytest.raises(ValueError, match="batches is empty"):
        predict_output_variance(nn.Linear(2, 2), [])
