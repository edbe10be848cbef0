"""Classification by a SLAC head: its loss, and a learning rate of its own for Sigma."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchadder.slac import SlacHead, slac_loss
from torchadder.tasks.classification import Classification


class SlacClassification(Classification):
    """Trains a net with a SLAC head (NeurIPS 2021) on the paper's three-term loss.

    Logs what `Classification` logs, `train_loss` being the whole loss, and its parts `train_lc`,
    `train_nll` and `train_ac`, not weighted. `val_loss` is the cross-entropy alone.

    Args:
        model: A net of `torchadder.models` with `head="slac"`.
        num_classes: Number of classes.
        nll_weight: Weight of the negative log-likelihood, the paper's lambda.
        ac_weight: Weight of the angle term, the paper's beta.
        sigma_rate: Learning rate of Sigma (of its logarithm) as a factor of `lr`.
        train_mu: Train the locations.
        train_sigma: Train the scales.
        train_gamma: Train the skews.
        **options: Optimizer and schedule, as of `Classification`.

    Raises:
        ValueError: If the model has no SLAC head.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        nll_weight: float = 0.01,
        ac_weight: float = 0.1,
        sigma_rate: float = 0.01,
        train_mu: bool = True,
        train_sigma: bool = True,
        train_gamma: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, num_classes=num_classes, **options)
        self.nll_weight = nll_weight
        self.ac_weight = ac_weight
        self.sigma_rate = sigma_rate
        self.head.mu.requires_grad_(train_mu)
        self.head.log_sigma.requires_grad_(train_sigma)
        self.head.gamma.requires_grad_(train_gamma)

    @property
    def head(self) -> SlacHead:
        """The head of the net."""
        head = getattr(self.model, "head", None)
        if not isinstance(head, SlacHead):
            raise ValueError(f"model {type(self.model).__name__} has no SLAC head")
        return head

    def loss_and_sums(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and the sums of what is logged."""
        logits = self.model(images)
        weights = {"nll_weight": self.nll_weight, "ac_weight": self.ac_weight}
        parts = slac_loss(logits, labels, self.head, **weights)
        sums = self.batch_sums("train_", parts.loss, logits, labels)
        sums["train_lc"] = parts.classification * len(labels)
        sums["train_nll"] = parts.likelihood * len(labels)
        sums["train_ac"] = parts.angles * len(labels)
        return parts.loss, sums

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The net with its learning rate, Sigma with its own."""
        sigma = self.head.log_sigma
        rest = [p for p in self.model.parameters() if p.requires_grad and p is not sigma]
        groups: list[dict[str, Any]] = [{"params": rest}]
        if sigma.requires_grad:
            groups.append({"params": [sigma], "lr": self.lr * self.sigma_rate})
        return groups
