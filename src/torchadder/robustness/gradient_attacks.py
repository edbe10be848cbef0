"""Attacks that follow the sign of the input gradient, in the maximum norm, untargeted.

Letters: x the image, y its label, L the cross-entropy, e epsilon, a the step, P the projection onto
the images of [0, 1] within e of x (`Ball`). A pixel whose gradient is zero stays where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchadder.robustness.ball import Ball
from torchadder.robustness.target import AttackResult, Target

EPSILON = 8 / 255
STEP = 2 / 255


@torch.inference_mode(False)
def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = EPSILON,
    batch_size: int | None = None,
    everything: bool = False,
) -> AttackResult:
    """One step of the size epsilon (arXiv 1412.6572).

    ``x' = P(x + e sign(dL/dx))``

    Args:
        model: Logits (N, classes) of images in [0, 1]; in evaluation mode, left as it is.
        images: (N, ...), float32 or float64, in [0, 1].
        labels: Class indices, int64 (N).
        epsilon: Largest change of a pixel.
        batch_size: Images a pass; None: all at once.
        everything: Attack images that the model gets wrong already, too.

    Returns:
        Adversarial images, which of them the model gets wrong, and the number of calls.

    Raises:
        ValueError: If images leave [0, 1], epsilon is negative, labels are missing or out of range,
            or the model is in training mode.
        TypeError: If images or labels have another dtype.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(1, 2, bias=False).eval()
        >>> with torch.no_grad(): _ = model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> fgsm(model, torch.tensor([[0.5]]), torch.tensor([0]), epsilon=0.25).images
        tensor([[0.2500]])
    """
    ball = Ball(images, epsilon)
    target = Target(model, images, labels, batch_size, everything=everything)
    return target.result(_ascend(target, ball, _start(target), epsilon, 1))


@torch.inference_mode(False)
def rfgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = EPSILON,
    alpha: float | None = None,
    step: float | None = None,
    iterations: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    everything: bool = False,
) -> AttackResult:
    """A random step before FGSM (R+FGSM of arXiv 1705.07204, section 4.1).

    ``x_0 = P(x + alpha sign(n)),  n ~ N(0, 1);  x_{t+1} = P(x_t + a sign(dL/dx)),  a = e - alpha``

    The paper takes one iteration and alpha = e / 2. With more it is as in torchattacks, whose older
    versions have the paper's a and whose version 3.5.1 has a = alpha.

    Args:
        model: As of `fgsm`.
        images: As of `fgsm`.
        labels: As of `fgsm`.
        epsilon: Largest change of a pixel.
        alpha: Size of the random step, 0 .. epsilon; None: epsilon / 2.
        step: Change of a pixel in one iteration; None: epsilon - alpha.
        iterations: Gradient steps.
        seed: Seed of the random step.
        batch_size: Images a pass; None: all at once.
        everything: Attack images that the model gets wrong already, too.

    Returns:
        As of `fgsm`.

    Raises:
        ValueError: As of `fgsm`; or alpha lies outside 0 .. epsilon, step is negative, or
            iterations is below 1.
        TypeError: As of `fgsm`.
    """
    ball = Ball(images, epsilon)
    alpha = epsilon / 2 if alpha is None else alpha
    if not 0 <= alpha <= epsilon:
        raise ValueError(f"alpha must lie in 0 .. epsilon = {epsilon:g}, got {alpha:g}")
    step = epsilon - alpha if step is None else step
    if not 0 <= step < float("inf"):
        raise ValueError(f"step must be at least 0, got {step:g}")
    _check_iterations(iterations)
    target = Target(model, images, labels, batch_size, everything=everything)
    noise = torch.randn(images.shape, generator=_generator(seed), dtype=images.dtype)
    noise = noise.to(target.device)[target.rows].sign()
    start = ball.project(_start(target) + alpha * noise, target.rows)
    return target.result(_ascend(target, ball, start, step, iterations))


@torch.inference_mode(False)
def bim(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = EPSILON,
    step: float = STEP,
    iterations: int = 7,
    batch_size: int | None = None,
    everything: bool = False,
) -> AttackResult:
    """FGSM in small steps (basic iterative method, arXiv 1607.02533, section 2.2).

    ``x_0 = x;  x_{t+1} = P(x_t + a sign(dL/dx))``

    Args:
        model: As of `fgsm`.
        images: As of `fgsm`.
        labels: As of `fgsm`.
        epsilon: Largest change of a pixel.
        step: Change of a pixel in one iteration.
        iterations: Number of them.
        batch_size: Images a pass; None: all at once.
        everything: Attack images that the model gets wrong already, too.

    Returns:
        As of `fgsm`.

    Raises:
        ValueError: As of `fgsm`; or step is not positive, or iterations below 1.
        TypeError: As of `fgsm`.
    """
    ball = Ball(images, epsilon)
    check_step(step)
    _check_iterations(iterations)
    target = Target(model, images, labels, batch_size, everything=everything)
    return target.result(_ascend(target, ball, _start(target), step, iterations))


@torch.inference_mode(False)
def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = EPSILON,
    step: float = STEP,
    iterations: int = 7,
    restarts: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    everything: bool = False,
) -> AttackResult:
    """Projected gradient descent from random starts (arXiv 1706.06083, section 2.1).

    ``x_0 = P(x + u),  u uniform in [-e, e];  x_{t+1} = P(x_t + a sign(dL/dx))``

    Later restarts take the images that have withstood so far. Where the images of a batch are
    coupled, a restart takes the whole batch, and the one that fools most of its images is kept.

    Args:
        model: As of `fgsm`.
        images: As of `fgsm`.
        labels: As of `fgsm`.
        epsilon: Largest change of a pixel.
        step: Change of a pixel in one iteration.
        iterations: Number of them.
        restarts: Number of random starts.
        seed: Seed of the random starts.
        batch_size: Images a pass; None: all at once.
        everything: Attack images that the model gets wrong already, too.

    Returns:
        As of `fgsm`.

    Raises:
        ValueError: As of `bim`; or restarts is below 1.
        TypeError: As of `fgsm`.
    """
    ball = Ball(images, epsilon)
    check_step(step)
    _check_iterations(iterations)
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1, got {restarts}")
    target = Target(model, images, labels, batch_size, everything=everything)
    generator = _generator(seed)
    best = _start(target)
    score = torch.full((len(best),), -1.0, device=target.device)
    left = torch.arange(len(best), device=target.device)
    for restart in range(restarts):
        # Drawn for all images, so that none depends on which others are left.
        noise = torch.rand(images.shape, generator=generator, dtype=images.dtype)
        rows = target.rows[left]
        noise = epsilon * (2 * noise.to(target.device)[rows] - 1)
        start = ball.project(target.images[rows] + noise, rows)
        found = _ascend(target, ball, start, step, iterations, rows=rows, first=restart == 0)
        if restarts == 1:
            return target.result(found)
        wrong = target.is_wrong(target.logits(found, rows), rows)
        value = target.pooled(wrong.float())
        better = value > score[left]
        best[left[better]] = found[better]
        score[left[better]] = value[better]
        left = torch.arange(len(best), device=target.device)
        if not target.is_coupled:
            left = left[score == 0]
        if not len(left) or bool((score == 1).all()):
            break
    return target.result(best)


@torch.inference_mode(False)
def mifgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = EPSILON,
    step: float = STEP,
    iterations: int = 5,
    decay: float = 1.0,
    batch_size: int | None = None,
    everything: bool = False,
) -> AttackResult:
    """BIM with momentum (MI-FGSM, arXiv 1710.06081, Eq. 6 and 7).

    ``g_{t+1} = decay g_t + dL/dx / |dL/dx|_1;  x_{t+1} = P(x_t + a sign(g_{t+1}))``

    The length is the mean of the absolute values, which differs from the sum by a factor that the
    sign does not see. A gradient of zero adds nothing to g.

    Args:
        model: As of `fgsm`.
        images: As of `fgsm`.
        labels: As of `fgsm`.
        epsilon: Largest change of a pixel.
        step: Change of a pixel in one iteration.
        iterations: Number of them.
        decay: What is kept of g from one iteration to the next, at least 0.
        batch_size: Images a pass; None: all at once.
        everything: Attack images that the model gets wrong already, too.

    Returns:
        As of `fgsm`.

    Raises:
        ValueError: As of `bim`; or decay is negative.
        TypeError: As of `fgsm`.
    """
    ball = Ball(images, epsilon)
    check_step(step)
    _check_iterations(iterations)
    if not decay >= 0:
        raise ValueError(f"decay must be at least 0, got {decay:g}")
    target = Target(model, images, labels, batch_size, everything=everything)
    start = _start(target)
    return target.result(_ascend(target, ball, start, step, iterations, decay=decay))


def _ascend(
    target: Target,
    ball: Ball,
    start: Tensor,
    step: float,
    iterations: int,
    *,
    decay: float | None = None,
    rows: Tensor | None = None,
    first: bool = True,
) -> Tensor:
    """Steps along the sign of the gradient, or of its momentum if there is a decay."""
    rows = target.rows if rows is None else rows
    images, momentum = start, torch.zeros_like(start)
    for iteration in range(iterations):
        gradient = target.gradient(images, rows, first=first and iteration == 0)
        if decay is not None:
            momentum = decay * momentum + _of_unit_length(gradient)
            gradient = momentum
        images = ball.project(images + step * gradient.sign(), rows)
    return images


def _of_unit_length(gradient: Tensor) -> Tensor:
    """The gradient of each image over its mean absolute value; zero where that is zero."""
    length = gradient.abs().flatten(1).mean(1)
    length = length.view(-1, *[1] * (gradient.dim() - 1))
    return torch.where(length > 0, gradient / length.clamp_min(_TINY), 0.0)


_TINY = torch.finfo(torch.float32).tiny


def _start(target: Target) -> Tensor:
    return target.images[target.rows]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_step(step: float) -> None:
    """Raise ValueError unless a step can be taken."""
    if not 0 < step < float("inf"):
        raise ValueError(f"step must be a positive number, got {step:g}")


def _check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
