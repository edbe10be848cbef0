"""The output variance of every layer of a net: measured, and predicted from inputs and weights.

Three predictions, each knowing more than the one before:

* from six numbers: mean and variance of the inputs, of the weights, the number of taps, and which
  family either is taken from (`adder_output_moments`, `conv_output_moments`);
* from the distribution of each tap's input and the very weights, taps taken as independent;
* the same with the measured covariances of the taps and of their squares (`response_variance`).

The first differs from the second by the families, the second from the measurement by the dependence
of the taps alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.nn import AdderModule
from torchadder.stability.correlation import own_blocks, response_variance
from torchadder.stability.distributions import Distribution, Laplace, Normal, Rectified
from torchadder.stability.layers import effective_weight
from torchadder.stability.moments import (
    OutputMoments,
    adder_output_moments,
    conv_output_moments,
)
from torchadder.stability.patches import DENSE, WINDOWED, sample_patches


@dataclass(frozen=True)
class LayerPrediction:
    """A layer's output variance, measured and predicted.

    Variances without "total" are over images and positions in each channel, averaged over the
    channels: what batch norm divides by. Totals are over the channels, too.

    Attributes:
        layer: Name of the layer.
        kind: "adder" or "conv" (linear layers too).
        num_taps: Inputs that an output sums over.
        inputs: Family of the inputs in the prediction from six numbers: "normal", or "rectified"
            where no input is negative; "constant" where there is none to predict from.
        weights: Family of the weights there: "normal" or "laplace", the likelier one.
        input_mean: Mean of the inputs, padding included.
        input_var: Their variance.
        zero_share: Share of inputs that are exactly 0.
        weight_mean: Mean of the weights.
        weight_var: Their variance.
        correlation: Mean correlation of two taps' inputs, weighted by their standard deviations.
        measured_mean: Mean of the outputs, without bias.
        measured: Their variance.
        measured_total: Their variance in total.
        theory_mean: Predicted mean, from six numbers; None for constant inputs.
        theory: Predicted variance, likewise.
        theory_total: Predicted total variance, likewise.
        independent: Variance predicted from each tap's own distribution.
        correlated: Variance predicted with the covariances of the taps and their squares.
    """

    layer: str
    kind: str
    num_taps: int
    inputs: str
    weights: str
    input_mean: float
    input_var: float
    zero_share: float
    weight_mean: float
    weight_var: float
    correlation: float
    measured_mean: float
    measured: float
    measured_total: float
    theory_mean: float | None
    theory: float | None
    theory_total: float | None
    independent: float
    correlated: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


@torch.no_grad()
def predict_output_variance(
    model: nn.Module, batches: Iterable[Tensor], *, num_patches: int = 2048, seed: int = 0
) -> list[LayerPrediction]:
    """Runs a net on batches and compares the output variance of its layers with predictions.

    Measured over all positions; means and covariances of the taps over some of them. Convolutions
    and adder layers over images or sequences and linear layers take part, transposed ones do not.
    A layer of K taps takes 32 K^2 bytes for their covariances while the net runs.

    Args:
        model: The net, in the mode that is meant: evaluation mode for a trained net.
        batches: Its inputs, each (N, ...), on its device.
        num_patches: About how many positions of each batch to look at.
        seed: Chooses them.

    Returns:
        One prediction for each layer that ran, in the order in which they did.

    Raises:
        ValueError: If there are no batches, or no such layer.

    Examples:
        >>> import torch, torchadder as ta
        >>> net = torch.nn.Sequential(ta.nn.Adder2d(2, 8, 3), torch.nn.BatchNorm2d(8))
        >>> (layer,) = predict_output_variance(net.eval(), [torch.randn(32, 2, 16, 16)])
        >>> 0.8 < layer.theory / layer.measured < 1.25
        True
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, _Sums] = {}

    def look(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if name not in sums:
                sums[name] = _Sums(name, layer)
            patches = sample_patches(layer, args[0], num_patches, generator)
            sums[name].add(patches.double(), output.double())

        return hook

    handles = [
        module.register_forward_hook(look(name, module))
        for name, module in model.named_modules()
        if isinstance(module, (*WINDOWED, *DENSE))
    ]
    if not handles:
        raise ValueError(f"{type(model).__name__} has no convolution, adder or linear layer")
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise ValueError("batches is empty, or no layer of the model ran")
    return [layer.prediction() for layer in sums.values()]


class _Sums:
    """Sums over the positions of a layer, from which its predictions are made.

    Shapes: G groups, O filters of a group, K taps of a filter, M positions, F = 2 features of a
    tap, `x - c` and `(x - c)^2` with c its mean in the first batch.
    """

    def __init__(self, name: str, layer: nn.Module) -> None:
        self.name = name
        self.is_adder = isinstance(layer, AdderModule)
        self.is_dense = isinstance(layer, DENSE)
        self.bias = getattr(layer, "bias", None)
        groups = 1 if self.is_dense else int(layer.groups)  # type: ignore[arg-type]
        weight = effective_weight(layer).double().flatten(1)
        self.weight_GOK = weight.unflatten(0, (groups, -1))
        num_taps = weight.shape[1]
        self.origin_GK: Tensor | None = None
        self.first = weight.new_zeros(groups, 2 * num_taps)
        self.second = weight.new_zeros(groups, 2 * num_taps, 2 * num_taps)
        self.distance_GOK = torch.zeros_like(self.weight_GOK)
        self.product = weight.new_zeros(*self.weight_GOK.shape, 2)
        self.num_rows = self.num_zeros = self.num_outputs = 0
        self.lowest = math.inf
        self.output = weight.new_zeros(len(weight))
        self.output_square = weight.new_zeros(len(weight))

    def add(self, patches_MGK: Tensor, output: Tensor) -> None:
        """Adds positions and the outputs of a batch."""
        rows_GMK = patches_MGK.transpose(0, 1).contiguous()
        if self.origin_GK is None:
            self.origin_GK = rows_GMK.mean(1)
        self.num_rows += len(patches_MGK)
        self.num_zeros += int((patches_MGK == 0).sum())
        self.lowest = min(self.lowest, float(patches_MGK.min()))
        centred_GMK = rows_GMK - self.origin_GK[:, None]
        features = torch.stack([centred_GMK, centred_GMK.square()], -1).flatten(2)
        self.first += features.sum(1)
        self.second += features.transpose(1, 2) @ features
        if self.is_adder:
            for group, (rows_MK, centred_MK) in enumerate(zip(rows_GMK, centred_GMK, strict=True)):
                for filter, weight_K in enumerate(self.weight_GOK[group]):
                    distance_MK = (rows_MK - weight_K).abs()
                    self.distance_GOK[group, filter] += distance_MK.sum(0)
                    distance_MK *= centred_MK
                    self.product[group, filter, :, 0] += distance_MK.sum(0)
                    distance_MK *= centred_MK
                    self.product[group, filter, :, 1] += distance_MK.sum(0)
        values = output.flatten(0, -2) if self.is_dense else output.transpose(0, 1).flatten(1).T
        values = values if self.bias is None else values - self.bias.double()
        self.num_outputs += len(values)
        self.output += values.sum(0)
        self.output_square += values.square().sum(0)

    def prediction(self) -> LayerPrediction:
        """What the sums say."""
        assert self.origin_GK is not None
        num_taps = self.weight_GOK.shape[-1]
        mean = self.first / self.num_rows
        covariance = self.second / self.num_rows - mean[:, :, None] * mean[:, None]
        mean_GK = self.origin_GK + mean[:, ::2]
        covariance_GKK = covariance[:, ::2, ::2]
        variance_GK = covariance_GKK.diagonal(dim1=1, dim2=2).clamp_min(0)
        slope, alone_GOK = self._terms(mean, mean_GK, covariance, variance_GK)
        correlated = [
            response_variance(*one) for one in zip(covariance, slope, alone_GOK, strict=True)
        ]
        outputs = self.output / self.num_outputs
        variances = (self.output_square / self.num_outputs - outputs.square()).clamp_min(0)
        input_mean = float(mean_GK.mean())
        input_var = float(variance_GK.mean() + mean_GK.var(correction=0))
        weights, weight_family = _fit_weights(self.weight_GOK)
        theory, input_family = None, "constant"
        if input_var > 1e-12 * input_mean**2 and weights is not None:
            inputs, input_family = _fit_inputs(input_mean, input_var, self.lowest)
            moments = adder_output_moments if self.is_adder else conv_output_moments
            theory = moments(inputs, weights, num_taps)
        return LayerPrediction(
            layer=self.name,
            kind="adder" if self.is_adder else "conv",
            num_taps=num_taps,
            inputs=input_family,
            weights=weight_family,
            input_mean=input_mean,
            input_var=input_var,
            zero_share=self.num_zeros / (self.num_rows * mean_GK.numel()),
            weight_mean=float(self.weight_GOK.mean()),
            weight_var=float(self.weight_GOK.var(correction=0)),
            correlation=_mean_correlation(covariance_GKK, variance_GK),
            measured_mean=float(outputs.mean()),
            measured=float(variances.mean()),
            measured_total=float(variances.mean() + outputs.var(correction=0)),
            **_theory(theory),
            independent=float(alone_GOK.sum(-1).mean()),
            correlated=float(torch.cat(correlated).mean()),
        )

    def _terms(
        self, mean: Tensor, mean_GK: Tensor, covariance: Tensor, variance_GK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Slopes in the features (G, O, K F), and variance (G, O, K), of the terms of filters."""
        mean_G1K, variance_G1K = mean_GK[:, None], variance_GK[:, None]
        if not self.is_adder:
            slope = torch.stack([self.weight_GOK, torch.zeros_like(self.weight_GOK)], -1)
            return slope.flatten(2), self.weight_GOK.square() * variance_G1K
        distance_GOK = self.distance_GOK / self.num_rows
        offset_GOK = mean_G1K - self.weight_GOK
        alone_GOK = (variance_G1K + offset_GOK.square() - distance_GOK.square()).clamp_min(0)
        features_GKF = mean.unflatten(1, (-1, 2))
        joint = self.product / self.num_rows - features_GKF[:, None] * distance_GOK[..., None]
        inverse = torch.stack([_inverse(own_blocks(one, mean_GK.shape[1])) for one in covariance])
        slope = torch.einsum("gkfe,goke->gokf", inverse, joint)
        return slope.flatten(2), alone_GOK


def _inverse(blocks_KFF: Tensor) -> Tensor:
    """Pseudo-inverses: a tap that is always the same has no slope, one of two values has one."""
    scale_KF = blocks_KFF.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    factor_KF = torch.where(scale_KF > 1e-12, 1 / scale_KF.clamp_min(1e-12), 0.0)
    factors_KFF = factor_KF[:, :, None] * factor_KF[:, None]
    inverse = torch.linalg.pinv(blocks_KFF * factors_KFF, rtol=1e-9, hermitian=True)
    return inverse * factors_KFF


def _theory(moments: OutputMoments | None) -> dict[str, float | None]:
    if moments is None:
        return {"theory_mean": None, "theory": None, "theory_total": None}
    return {
        "theory_mean": moments.mean,
        "theory": moments.data_variance,
        "theory_total": moments.variance,
    }


def _fit_inputs(mean: float, variance: float, lowest: float) -> tuple[Distribution, str]:
    """A rectified normal distribution where no input is negative, else a normal one."""
    if lowest >= 0:
        return Rectified.from_moments(mean, variance), "rectified"
    return Normal(mean, math.sqrt(variance)), "normal"


def _fit_weights(weight: Tensor) -> tuple[Normal | Laplace | None, str]:
    """The likelier one of the normal and the Laplace distribution, fitted by maximum likelihood."""
    mean, std = float(weight.mean()), float(weight.std(correction=0))
    median = float(weight.median())
    size = float((weight - median).abs().mean())
    if not (std > 0 and size > 0):
        return None, "constant"
    # Mean log-likelihoods are -log(std sqrt(2 pi e)) and -log(2 e size).
    if 2 * math.e * size < std * math.sqrt(2 * math.pi * math.e):
        return Laplace(median, size), "laplace"
    return Normal(mean, std), "normal"


def _mean_correlation(covariance_GKK: Tensor, variance_GK: Tensor) -> float:
    """Sum of the covariances of pairs over the sum of the products of their deviations."""
    std_GK = variance_GK.sqrt()
    pairs = covariance_GKK.sum() - variance_GK.sum()
    products = std_GK.sum(1).square().sum() - variance_GK.sum()
    return float(pairs / products) if float(products) > 0 else 0.0
