"""The two kernels of PKKD, applied to what a layer puts out before its normalisation.

PKKD (arXiv 2009.13044) compares an adder layer and a convolution in the spaces of two kernels: a
Laplacian one, `exp(-|x - w|_1 / (2 sigma^2))`, and a Gaussian one up to its norm factor,
`exp(<x, w> / (2 sigma^2))`. Both are functions of the layer's own output, so neither needs the
inputs or the weights again. Which layers are compared and how is not known here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.nn import AdderModule
from torchadder.ops.pkkd import MAX_LIMIT
from torchadder.processes import (
    BatchStatistics,
    in_process_group,
    mean_over_processes,
    sum_without_gradient,
)

EXPONENT_LIMIT = 6.0
"""Exponents are clamped to [-6, 6], kernel values to [0.0025, 403]: a Laplace or normal variable of
unit mean deviation leaves this range in 2.5 of 1,000 and in 1.7 of 1,000,000 cases."""

SIGMA_RANGE = 10.0
"""A learned sigma stays between a tenth and ten times its initial value."""

SCALES = ("deviation", "magnitude", "batch")

LEARNED_SCALES = ("both", "student", "none")
"""Sides whose scales are learned."""

KERNELS = ("paper", "gaussian", "laplacian", "none")
"""Laplacian for adder layers and Gaussian for convolutions, the same on both sides, or none."""


class _ClampedExp(torch.autograd.Function):
    """`exp(clamp(y * rate))` with the gradients that `exponential_kernel` promises."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, rate: Tensor, limit: float) -> Tensor:
        values = torch.exp((output * rate).clamp(-limit, limit))
        ctx.save_for_backward(output, rate, values)
        ctx.limit = limit
        return values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None]:
        output, rate, values = ctx.saved_tensors
        grad = grad_outputs[0] * values
        grad_rate = None
        if ctx.needs_input_grad[1]:
            inside = (output * rate).abs() < ctx.limit
            grad_rate = torch.where(inside, grad * output, 0).sum()
        return grad * rate, grad_rate, None


def exponential_kernel(
    output: Tensor, sigma: Tensor | float, limit: float = EXPONENT_LIMIT
) -> Tensor:
    """Kernel value of a layer's output: `k = exp(y / (2 sigma^2))`.

    For an adder layer `y = -|x - w|_1`, and `k` is the Laplacian kernel h of PKKD; for a
    convolution `y = <x, w>`, and `k` is its Gaussian kernel g without the factor
    `exp((|x|^2 + |w|^2) / (2 sigma^2))` (arXiv 2009.13044).

    The exponent is clamped to `[-limit, limit]`. Towards the output the gradient passes the clamp:
    it is `k / (2 sigma^2)` with the clamped k, so a value outside the range is still pulled back
    instead of being lost without notice. Towards sigma it does not: a clamped value does not
    depend on sigma, and pretending otherwise drives sigma to where everything is clamped.

    Args:
        output: any shape; bfloat16 and float16 are computed, and returned, in float32.
        sigma: a positive number, or a scalar tensor.
        limit: bound of the exponent.

    Returns:
        Tensor of the shape of `output`.

    Raises:
        ValueError: sigma is a number, but not a positive one.

    Examples:
        >>> exponential_kernel(torch.tensor([-2.0, 0.0, 2.0]), sigma=1.0)
        tensor([0.3679, 1.0000, 2.7183])
    """
    if not isinstance(sigma, Tensor) and not sigma > 0:
        raise ValueError(f"sigma must be a positive number, got {sigma}")
    output = _at_least_float32(output)
    rate = torch.as_tensor(0.5 / sigma**2, dtype=output.dtype, device=output.device)
    return _ClampedExp.apply(output, rate, limit)  # type: ignore[return-value]


class OutputKernel(nn.Module, BatchStatistics):
    """`exponential_kernel` with centred outputs and a learnable scale that starts from data.

    `k[n,c,p] = exp((y[n,c,p] - mean_{n,p} y[n,c,p]) / (2 sigma^2))`. Our reading in three points:

    * Centring. An adder layer puts out something like -300 +- 20 with another mean for every
      filter, so the plain exponential is either constant or ruled by one channel. Taking off the
      mean of each channel multiplies the channel by a constant, which the linear map behind the
      kernel could as well hold in its columns. BN takes the same mean off in the net itself.
    * Scale. The first training batch sets `2 sigma^2` to the mean absolute deviation of the
      centred outputs (`scale="deviation"`: exponents of unit spread), or to the mean of `|y|`
      (`scale="magnitude"`: uncentred exponents of unit size; for an adder layer the kernel is then
      nearly linear). With `scale="batch"` every batch sets it anew, to the deviation of its own
      outputs: outputs that grow in training, as those of adder layers do, cannot leave the range
      of the exponent. Deviations and magnitudes are those of all processes; the means are of the
      process's share of the batch, or, `synchronised`, of the whole batch.
    * Learning. `sigma = initial_sigma * exp(b tanh(log_scale / b))`, `b = log(10)`: positive and
      within a factor of ten for any value of the parameter. `log_scale` starts at 0, so weight
      decay pulls towards the initial scale.

    `initial_sigma` is a buffer, 0 until a training batch with any spread was seen; a module loaded
    from a state dict goes on with the scale it had. Before, and in eval mode, an uninitialised
    kernel uses the scale of the batch at hand and records nothing.

    Args:
        scale: "deviation", "magnitude" or "batch".
        limit: bound of the exponent, see `exponential_kernel`.

    Shape:
        (N, C, ...) to the same, float32 for half precision inputs.

    Raises:
        ValueError: unknown `scale`, a limit that is not above 0 and up to 30, or, on a call, fewer
            than two dimensions.
    """

    initial_sigma: Tensor

    def __init__(self, scale: str = "deviation", limit: float = EXPONENT_LIMIT) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        check_limit(limit)
        self.scale = scale
        self.limit = limit
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("initial_sigma", torch.zeros(()))
        self._initialised: bool | None = False

    @property
    def initialised(self) -> bool:
        """Whether a training batch has set the scale."""
        if self._initialised is None:
            self._initialised = bool(self.initial_sigma > 0)
        return self._initialised

    @property
    def sigma(self) -> Tensor:
        """The current scale, a positive scalar (0 before initialisation)."""
        return self.initial_sigma * self._ratio()

    def forward(self, output: Tensor) -> Tensor:
        """Apply the kernel, see the class."""
        output = _at_least_float32(output)
        sigma = self._initial(output).to(output.dtype) * self._ratio()
        return exponential_kernel(self._centred(output), sigma, self.limit)

    def rate(self, output: Tensor) -> Tensor:
        """The factor of the exponent, `1 / (2 sigma^2)`: a scalar that knows where sigma is from.

        Args:
            output: what the kernel is to be applied to; the first batch sets the scale.
        """
        dtype = torch.promote_types(output.dtype, torch.float32)
        return 0.5 / (self._initial(output).to(dtype) * self._ratio()).square()

    def extra_repr(self) -> str:
        """The kind of scale, and the bound of the exponent."""
        return f"scale={self.scale!r}, limit={self.limit}"

    def _ratio(self) -> Tensor:
        bound = math.log(SIGMA_RANGE)
        return torch.exp(bound * torch.tanh(self.log_scale / bound))

    def _initial(self, output: Tensor) -> Tensor:
        """The initial sigma, from `output` if there is none yet."""
        if output.dim() < 2:
            raise ValueError(f"output must have shape (N, C, ...), got {tuple(output.shape)}")
        if self.scale != "batch" and self.initialised:
            return self.initial_sigma
        with torch.no_grad():
            output = _at_least_float32(output.detach())
            spread = self._spread(output if self.scale == "magnitude" else self._centred(output))
            return self._batch_sigma(spread) if self.scale == "batch" else self._first_sigma(spread)

    def _centred(self, output: Tensor) -> Tensor:
        """Outputs less the mean of their channel."""
        if self.spans_processes():
            mean, _ = mean_over_processes(output)
            return output - mean.view(-1, *[1] * (output.dim() - 2))
        return output - output.mean([0, *range(2, output.dim())], keepdim=True)

    def _spread(self, values: Tensor) -> Tensor:
        """The mean of `|values|`, of all processes in training."""
        total = torch.stack([values.abs().mean(), values.new_ones(())]) * values.numel()
        if values.numel() == 0:
            total = values.new_zeros(2)
        if self.training and in_process_group():
            total = sum_without_gradient(total)
        return total[0] / total[1].clamp(min=1)

    def _batch_sigma(self, spread: Tensor) -> Tensor:
        """Sigma of this batch, 1 if it has no spread; recorded if the module trains."""
        usable = spread > torch.finfo(spread.dtype).tiny
        sigma = torch.where(usable, torch.sqrt(spread / 2), torch.ones_like(spread))
        if self.training:
            self.initial_sigma.copy_(sigma)
            self._initialised = True
        return sigma

    def _first_sigma(self, spread: Tensor) -> Tensor:
        """Sigma of the first batch; recorded if it is usable and the module trains."""
        usable = bool(torch.isfinite(spread) & (spread > torch.finfo(spread.dtype).tiny))
        if not usable:
            return torch.ones_like(spread)
        sigma = torch.sqrt(spread / 2)
        if self.training:
            self.initial_sigma.copy_(sigma)
            self._initialised = True
        return sigma

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._initialised = None


class LaplacianKernel(OutputKernel):
    """Kernel of an adder layer, `h = exp(-|x - w|_1 / (2 sigma_a^2))`; see `OutputKernel`."""


class GaussianKernel(OutputKernel):
    """Kernel of a convolution, `g = exp(<x, w> / (2 sigma_c^2))`; see `OutputKernel`."""


def check_limit(limit: float, name: str = "limit") -> None:
    """Raise ValueError, with the name of the argument, unless exponents can be clamped to it."""
    if not 0 < limit <= MAX_LIMIT:
        raise ValueError(f"{name} must be above 0, up to {MAX_LIMIT:.0f}, got {limit}")


def kernel_for(
    layer: nn.Module,
    scale: str = "deviation",
    kind: str = "paper",
    limit: float = EXPONENT_LIMIT,
) -> OutputKernel:
    """Return the kernel for what `layer` computes from its input x and its weights w.

    Args:
        layer: an adder layer or a convolution.
        scale: how the kernel finds its initial scale, see `OutputKernel`.
        kind: "paper" (Laplacian for adder layers, else Gaussian), "gaussian" or "laplacian".
        limit: bound of the exponent.

    Raises:
        ValueError: unknown kind or scale, or a limit out of range.
    """
    if kind not in ("paper", "gaussian", "laplacian"):
        raise ValueError(f"kind must be one of paper, gaussian, laplacian, got {kind!r}")
    is_laplacian = isinstance(layer, AdderModule) if kind == "paper" else kind == "laplacian"
    return (LaplacianKernel if is_laplacian else GaussianKernel)(scale, limit)


def needs_twin(layer: nn.Module, kernel: OutputKernel) -> bool:
    """Whether a kernel is not that of the layer's own kind: it then wants the twin's output."""
    return isinstance(layer, AdderModule) != isinstance(kernel, LaplacianKernel)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
