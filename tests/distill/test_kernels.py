import copy
import math

import pytest
import torch
from torch import nn

from torchadder.distill import (
    EXPONENT_LIMIT,
    GaussianKernel,
    LaplacianKernel,
    OutputKernel,
    exponential_kernel,
    kernel_for,
)
from torchadder.nn import Adder2d


def test_adder_kernel_by_hand():
    # |1 - 2| + |3 - 0| = 4 and sigma = 2: exp(-4 / 8).
    layer = Adder2d(2, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, 0.0]).view(1, 2, 1, 1))
    output = layer(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
    assert exponential_kernel(output, sigma=2.0).item() == pytest.approx(math.exp(-0.5), rel=1e-6)


def test_conv_kernel_by_hand():
    # 1 * 2 + 3 * 0.5 = 3.5 and sigma = 1: exp(3.5 / 2).
    layer = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, 0.5]).view(1, 2, 1, 1))
    output = layer(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
    assert exponential_kernel(output, sigma=1.0).item() == pytest.approx(math.exp(1.75), rel=1e-6)


def test_gaussian_kernel_is_the_product_form_up_to_norms():
    x, w = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    sigma = 1.7
    full = torch.exp(-(x - w).square().sum() / (4 * sigma**2))
    norms = torch.exp((x.square().sum() + w.square().sum()) / (4 * sigma**2))
    torch.testing.assert_close(exponential_kernel(x @ w, sigma), full * norms)


def test_exponent_is_clamped_and_its_gradient_is_not():
    output = torch.tensor([-1e30, -40.0, 1.0, 40.0, 1e30], requires_grad=True)
    values = exponential_kernel(output, sigma=1.0)
    low, high = math.exp(-EXPONENT_LIMIT), math.exp(EXPONENT_LIMIT)
    expected = torch.tensor([low, low, math.exp(0.5), high, high])
    torch.testing.assert_close(values, expected)
    values.sum().backward()
    torch.testing.assert_close(output.grad, expected / 2)


def test_clamped_values_do_not_move_sigma():
    def gradient(values):
        sigma = torch.tensor(1.0, requires_grad=True)
        exponential_kernel(torch.tensor(values), sigma).sum().backward()
        return sigma.grad.item()

    # d exp(y / (2 s^2)) / ds = -y / s^3 * exp(y / (2 s^2)); y = 1, s = 1.
    assert gradient([1.0]) == pytest.approx(-math.exp(0.5))
    assert gradient([-100.0, 1.0, 100.0]) == pytest.approx(-math.exp(0.5))


def test_gradient_inside_the_range_is_the_derivative():
    output = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(exponential_kernel, (output, sigma))


def test_module_by_hand():
    # Two samples, one channel: centred -1 and 1, mean absolute deviation 1, so 2 sigma^2 = 1.
    kernel = LaplacianKernel()
    values = kernel(torch.tensor([[-301.0], [-299.0]]))
    torch.testing.assert_close(values, torch.tensor([[math.exp(-1)], [math.exp(1)]]))
    assert kernel.sigma.item() == pytest.approx(math.sqrt(0.5))


def test_magnitude_scale_by_hand():
    kernel = LaplacianKernel("magnitude")
    values = kernel(torch.tensor([[-300.0], [-100.0]]))
    torch.testing.assert_close(values, torch.tensor([[math.exp(-0.5)], [math.exp(0.5)]]))
    assert kernel.sigma.item() == pytest.approx(10.0)


def test_batch_scale_follows_the_batch():
    kernel = LaplacianKernel("batch")
    for spread in (1.0, 50.0):
        values = kernel(torch.tensor([[-300.0 - spread], [-300.0 + spread]]))
        torch.testing.assert_close(values, torch.tensor([[math.exp(-1)], [math.exp(1)]]))
        assert kernel.sigma.item() == pytest.approx(math.sqrt(spread / 2))
    kernel.eval()
    kernel(torch.randn(4, 1))
    assert kernel.sigma.item() == pytest.approx(5.0)
    constant = kernel(torch.full((4, 1), -3.0))
    torch.testing.assert_close(constant, torch.ones(4, 1))


def test_channels_are_centred_one_by_one():
    output = torch.randn(6, 3, 4, 4)
    offsets = torch.tensor([-1000.0, 0.0, 500.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(
        OutputKernel()(output + offsets), OutputKernel()(output), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("value", [-100.0, -1.0, 0.0, 1.0, 100.0])
def test_sigma_is_positive_and_bounded(value):
    kernel = GaussianKernel()
    kernel(torch.tensor([[-1.0], [1.0]]))
    initial = kernel.initial_sigma.item()
    nn.init.constant_(kernel.log_scale, value)
    assert 0.0999 * initial <= kernel.sigma.item() <= 10.001 * initial
    assert torch.isfinite(kernel(torch.randn(4, 2))).all()


def test_scale_is_learnable():
    kernel = GaussianKernel()
    kernel(torch.randn(8, 2)).square().mean().backward()
    assert kernel.log_scale.grad.abs() > 0


def test_first_training_batch_sets_the_scale_and_later_ones_do_not():
    kernel = LaplacianKernel()
    assert not kernel.initialised
    kernel(torch.randn(16, 3) * 5 - 300)
    sigma = kernel.sigma.item()
    assert kernel.initialised
    kernel(torch.randn(16, 3) * 50)
    assert kernel.sigma.item() == sigma


def test_eval_mode_uses_the_batch_and_records_nothing():
    kernel = LaplacianKernel().eval()
    output = torch.randn(16, 3) * 5 - 300
    values = kernel(output)
    assert not kernel.initialised
    torch.testing.assert_close(kernel.train()(output), values)


@pytest.mark.parametrize("seen", [False, True])
def test_state_dict_keeps_whether_it_was_initialised(seen):
    source, target = LaplacianKernel(), LaplacianKernel()
    if seen:
        source(torch.randn(16, 3) * 5)
    target(torch.randn(16, 3) * 100)
    target.load_state_dict(source.state_dict(), strict=True)
    assert target.initialised is seen
    assert target.sigma.item() == source.sigma.item()
    assert copy.deepcopy(target).initialised is seen


@pytest.mark.parametrize("output", [torch.full((4, 3, 2, 2), -300.0), torch.randn(1, 3)])
def test_batch_without_spread_is_finite_and_does_not_count(output):
    kernel = LaplacianKernel()
    torch.testing.assert_close(kernel(output), torch.ones_like(output))
    assert not kernel.initialised


def test_nan_is_passed_on_and_does_not_count():
    kernel = LaplacianKernel()
    assert kernel(torch.tensor([[float("nan")], [1.0]])).isnan().all()
    assert not kernel.initialised


@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_large_outputs(size):
    output = (-size * (1 + torch.rand(8, 3, 4, 4))).requires_grad_()
    values = LaplacianKernel()(output)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(output.grad).all()
    assert values.std() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    output = (torch.randn(8, 3, 4, 4) * 20 - 300).to(dtype)
    values = LaplacianKernel()(output)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, LaplacianKernel()(output.float()))


def test_double_stays_double():
    assert LaplacianKernel()(torch.randn(4, 2, dtype=torch.float64)).dtype == torch.float64


def test_kernel_for():
    assert isinstance(kernel_for(Adder2d(1, 1, 1)), LaplacianKernel)
    assert isinstance(kernel_for(nn.Conv2d(1, 1, 1)), GaussianKernel)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"deviation, magnitude, batch.*'mean'"):
        OutputKernel("mean")
    with pytest.raises(ValueError, match=r"\(N, C, \.\.\.\).*\(3,\)"):
        OutputKernel()(torch.zeros(3))
    for limit in (0, -1.0, 31.0, math.nan):
        with pytest.raises(ValueError, match=f"^limit must be above 0, up to 30, got {limit}"):
            LaplacianKernel(limit=limit)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_sigma_is_positive(sigma):
    with pytest.raises(ValueError, match=f"sigma must be a positive number, got {sigma}"):
        exponential_kernel(torch.ones(2), sigma)


def test_another_limit():
    output = torch.tensor([[-40.0], [40.0]])
    values = kernel_for(nn.Conv2d(1, 1, 1), limit=0.5).eval()(output)
    torch.testing.assert_close(values.flatten().log(), torch.tensor([-0.5, 0.5]))
