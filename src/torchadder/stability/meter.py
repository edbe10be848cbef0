"""What one training step says about the stability of a net, without touching it.

Nothing is hooked. Batch norm measures its input in every step, and moves its running statistics by
a known share of the way to them: the difference of two snapshots gives the batch's mean and
variance back. So the outputs of a layer cost nothing to measure, a compiled or replayed step is
measured like any other, and the numbers of the training stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchadder.stability.layers import (
    MeasuredLayer,
    effective_weight,
    measured_layers,
    weight_parameters,
)

QUANTITIES = {
    "weight_mean": "mean of the layer's weights",
    "weight_var": "variance of the layer's weights",
    "weight_kurtosis": "fourth moment over squared variance: 3 for normal, 6 for Laplace weights",
    "output_mean": "mean of the values that batch norm takes, over the batch and all channels",
    "output_var": "their variance over the batch in each channel, averaged over the channels",
    "output_var_total": "their variance over the batch and the channels together",
    "bn_mean": "running mean of batch norm, averaged over the channels",
    "bn_var": "running variance of batch norm, averaged over the channels",
    "bn_mean_step": "norm of the change of the running means in the step, over their norm",
    "bn_var_step": "norm of the change of the running variances in the step, over their norm",
    "bn_mean_gap": "norm of batch means minus running means before the step, over their norm",
    "bn_var_gap": "the same of the variances",
    "bn_mean_step_std": "RMS change of the running means, in running standard deviations",
    "grad_norm": "norm of the weight gradient as the backward pass leaves it",
    "grad_norm_used": "norm of the weight gradient that the optimizer takes: clipped, AdaptiveLR",
}
"""Quantities of a layer in a step, and what they are. Norms are Euclidean, over the channels or
weights of the layer; those divided by are taken after the step."""

_TINY = 1e-30


@dataclass(frozen=True)
class _Snapshot:
    mean: Tensor
    var: Tensor
    count: Tensor | None


@dataclass(frozen=True)
class Reading:
    """What one step said; its values stay on the device until they are asked for.

    Attributes:
        step: Number of steps before it.
        keys: (layer, quantity) of each value.
        values: Shape (number of keys).
    """

    step: int
    keys: list[tuple[str, str]]
    values: Tensor

    def rows(self) -> list[tuple[int, str, str, float]]:
        """(step, layer, quantity, value) of each value."""
        return [
            (self.step, layer, quantity, value)
            for (layer, quantity), value in zip(self.keys, self.values.tolist(), strict=True)
        ]


class StabilityMeter:
    """Measures chosen steps of a training.

    Call `before_forward` before the step's last forward pass, `before_step` between its backward
    pass and the optimizer's step, `after_step` behind that. Steps that are not measured cost
    nothing. Parametrized weights count as what the layer computes with; their gradient is that of
    the parameters behind them.

    Args:
        model: The net that is trained.

    Attributes:
        layers (list[MeasuredLayer]): Its layers.

    Raises:
        ValueError: If no layer has a batch norm behind it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = measured_layers(model)
        self._before: dict[str, _Snapshot] = {}
        self._found: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def before_forward(self) -> None:
        """Notes batch norm's running statistics; where called twice, the later call counts."""
        self._before = {}
        for layer in self.layers:
            if layer.norm is None:
                continue
            norm = self._norm(layer.norm)
            if norm.training and norm.running_mean is not None and norm.running_var is not None:
                count = norm.num_batches_tracked
                self._before[layer.norm] = _Snapshot(
                    norm.running_mean.clone(),
                    norm.running_var.clone(),
                    None if count is None else count.clone(),
                )

    @torch.no_grad()
    def before_step(self) -> None:
        """Measures weights, batch norms and gradients."""
        self._found = {}
        for layer in self.layers:
            weight = _wide(effective_weight(self._module(layer.name)))
            centred = weight - weight.mean()
            variance = centred.square().mean()
            self._add(layer, "weight_mean", weight.mean())
            self._add(layer, "weight_var", variance)
            fourth = centred.square().square().mean()
            self._add(layer, "weight_kurtosis", fourth / variance.square().clamp_min(_TINY))
            if layer.norm is not None:
                self._measure_norm(layer)
            self._add_gradient(layer, "grad_norm")

    @torch.no_grad()
    def after_step(self, step: int) -> Reading:
        """Measures the gradients that the optimizer took, and ends the measurement.

        Args:
            step: Number of steps before this one.
        """
        for layer in self.layers:
            self._add_gradient(layer, "grad_norm_used")
        keys = list(self._found)
        found = [value.float() for value in self._found.values()]
        self._before, self._found = {}, {}
        return Reading(step, keys, torch.stack(found))

    def _add(self, layer: MeasuredLayer, quantity: str, value: Tensor) -> None:
        self._found[layer.name, quantity] = value

    def _add_gradient(self, layer: MeasuredLayer, quantity: str) -> None:
        parameters = weight_parameters(self._module(layer.name))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            norms = [torch.linalg.vector_norm(_wide(gradient)) for gradient in gradients]
            self._add(layer, quantity, torch.linalg.vector_norm(torch.stack(norms)))

    def _measure_norm(self, layer: MeasuredLayer) -> None:
        assert layer.norm is not None
        norm = self._norm(layer.norm)
        if norm.running_mean is None or norm.running_var is None:
            return
        mean, var = _wide(norm.running_mean), _wide(norm.running_var)
        self._add(layer, "bn_mean", mean.mean())
        self._add(layer, "bn_var", var.mean())
        before = self._before.get(layer.norm)
        kept = None if before is None else _share_kept(norm, before.count)
        if before is None or kept is None:
            return
        # Running statistics go from r to r' = kept r + (1 - kept) b with b those of the batch.
        mean_step, var_step = mean - before.mean, var - before.var
        mean_gap, var_gap = mean_step / (1 - kept), var_step / (1 - kept)
        batch_mean, batch_var = before.mean + mean_gap, before.var + var_gap
        self._add(layer, "output_mean", batch_mean.mean())
        self._add(layer, "output_var", batch_var.mean())
        self._add(layer, "output_var_total", batch_var.mean() + batch_mean.var(correction=0))
        for name, step, gap, running in (
            ("mean", mean_step, mean_gap, mean),
            ("var", var_step, var_gap, var),
        ):
            size = torch.linalg.vector_norm(running).clamp_min(_TINY)
            self._add(layer, f"bn_{name}_step", torch.linalg.vector_norm(step) / size)
            self._add(layer, f"bn_{name}_gap", torch.linalg.vector_norm(gap) / size)
        in_deviations = mean_step / var.sqrt().clamp_min(_TINY)
        self._add(layer, "bn_mean_step_std", in_deviations.square().mean().sqrt())

    def _norm(self, name: str) -> _BatchNorm:
        norm = self._module(name)
        assert isinstance(norm, _BatchNorm)
        return norm

    def _module(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)


def _wide(values: Tensor) -> Tensor:
    """Values in at least single precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _share_kept(norm: _BatchNorm, count_before: Tensor | None) -> Tensor | float | None:
    """The share of the old running statistics in the new ones; None where they stand still.

    `(1 - momentum)^n` with n the batches in between: more than one where the net was run several
    times in training mode, whose weighted mean is then what is found.
    """
    count = norm.num_batches_tracked
    if norm.momentum is None:
        return None if count is None or count_before is None else count_before / count
    if norm.momentum == 0:
        return None
    if count is None or count_before is None:
        return 1 - norm.momentum
    return (1 - norm.momentum) ** (count - count_before)
