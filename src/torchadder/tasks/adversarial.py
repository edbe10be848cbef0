"""Classification of images that an attack has changed: adversarial training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.robustness import (
    AttackResult,
    Normalised,
    batch_statistics,
    fgsm,
    input_gradient,
    pgd,
)
from torchadder.robustness.switching import has_adder_layers, has_batch_norm
from torchadder.tasks.classification import Classification

_EPOCH_STRIDE, _RANK_STRIDE = 1_000_003, 998_244_353
"""Primes that keep the seeds of epochs, processes and batches apart."""


class AdversarialClassification(Classification):
    """Trains a classifier on the worst images that an attack finds (arXiv 1706.06083, Eq. 2.1).

    ``min_w  mean over (x, y) of  max_{|d| <= epsilon}  L(w, x + d, y)``

    Each batch is attacked first, as Madry et al. do with PGD from a random start, and the step is
    then taken on the attacked images alone.

    How the net computes while it is attacked is our choice. Batch norm takes the statistics of the
    batch, which is what the net does when it is trained on the result: the running statistics of
    an adder net trail far behind its weights, and an attack through them is one on another net.
    They are not changed by the attack, and parts such as dropout rest. Adder layers have their true
    input gradient by default, because an attack through the surrogate is weaker.

    Logs what `Classification` logs, `train_accuracy` being that on attacked images, and
    `train_clean_accuracy`, that of the same net on the batch before the attack, and
    `val_adversarial_accuracy`, under PGD on the net as it is used, with running statistics.

    Random starts are a function of seed, epoch, batch and process, so that an interrupted run goes
    on with the same ones.

    Args:
        model: Images (N, C, H, W), normalised, to logits (N, num_classes).
        num_classes: Number of classes.
        mean: Mean of each channel that was subtracted from the images, pixels in 0..1.
        std: Standard deviation of each channel that they were divided by.
        attack: "pgd" or "fgsm".
        epsilon: Largest change of a pixel, pixels in 0..1.
        step: Change in one iteration of PGD; None: 2.5 epsilon / iterations.
        iterations: Iterations of PGD in training.
        gradient: Input gradient of adder layers: "sign" or "surrogate".
        val_iterations: Iterations of PGD in validation; 0: no attack there.
        seed: Seed of the random starts.
        **options: Optimizer and schedule, as of `Classification`.

    Raises:
        ValueError: If attack or gradient is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        attack: str = "pgd",
        epsilon: float = 8 / 255,
        step: float | None = None,
        iterations: int = 7,
        gradient: str = "sign",
        val_iterations: int = 7,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, num_classes=num_classes, **options)
        if attack not in ("pgd", "fgsm"):
            raise ValueError(f"attack must be 'pgd' or 'fgsm', got {attack!r}")
        if gradient not in ("sign", "surrogate"):
            raise ValueError(f"gradient must be 'sign' or 'surrogate', got {gradient!r}")
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.attack = attack
        self.epsilon = epsilon
        self.step = step
        self.iterations = iterations
        self.gradient = gradient
        self.val_iterations = val_iterations
        self.seed = seed

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Attacks the batch, then trains on what comes out."""
        images, labels = batch
        found = self.attacked(images, labels, self.iterations, batch_idx)
        images = self._normal(found.images).to(images.dtype)
        loss, sums = (self.fast_step or self.loss_and_sums)(images, labels)
        sums = sums | {"train_clean_accuracy": (~found.wrong_before).sum()}
        self.train_totals.add(sums, len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds a batch to the validation metrics, clean and attacked."""
        super().validation_step(batch, batch_idx)
        if not self.val_iterations:
            return
        images, labels = batch
        found = self.attacked(images, labels, self.val_iterations, batch_idx, training=False)
        self.log(
            "val_adversarial_accuracy",
            (~found.success).float().mean(),
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),
            sync_dist=True,
        )

    def attacked(
        self,
        images: Tensor,
        labels: Tensor,
        iterations: int,
        batch_idx: int,
        *,
        training: bool = True,
    ) -> AttackResult:
        """The outcome of an attack on normalised images, with its own images in [0, 1].

        Args:
            images: Normalised images (N, C, H, W).
            labels: Class indices (N).
            iterations: Iterations of PGD.
            batch_idx: Number of the batch in its epoch.
            training: Whether the net is attacked as it is trained, with the batch's statistics.
        """
        model = Normalised(self.model, self.mean, self.std)
        mean, std = self._statistics(images)
        pixels = (images.detach().float() * std + mean).clamp(0, 1)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_evaluating(model))
            if training and has_batch_norm(model):
                stack.enter_context(batch_statistics(model))
            if self.gradient == "sign" and has_adder_layers(model):
                stack.enter_context(input_gradient(model, "sign"))
            common = {"epsilon": self.epsilon, "everything": True}
            if self.attack == "fgsm" and training:
                return fgsm(model, pixels, labels, **common)
            return pgd(
                model,
                pixels,
                labels,
                step=self.step or 2.5 * self.epsilon / iterations,
                iterations=iterations,
                seed=self._seed_of(batch_idx, self.current_epoch if training else 0),
                **common,
            )

    def _seed_of(self, batch_idx: int, epoch: int) -> int:
        return self.seed + _EPOCH_STRIDE * epoch + _RANK_STRIDE * self.global_rank + batch_idx

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(values, device=images.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return mean, std

    def _normal(self, pixels: Tensor) -> Tensor:
        mean, std = self._statistics(pixels)
        return (pixels - mean) / std


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A block in which all modules are in evaluation mode; afterwards each is as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
