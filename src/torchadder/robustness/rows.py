"""The rows of a robustness table: which attack each is, and what it costs at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torchadder.robustness.gradient_attacks import bim, fgsm, mifgsm, pgd, rfgsm
from torchadder.robustness.square import square
from torchadder.robustness.target import AttackResult
from torchadder.robustness.transfer import transfer


@dataclass(frozen=True)
class Settings:
    """What the rows of one evaluation have in common.

    Attributes:
        epsilon: Largest change of a pixel.
        step: Change of a pixel in one iteration.
        batch_size: Images a pass.
        strong_iterations: Iterations of the strong PGD.
        restarts: Random starts of the strong PGD.
        queries: Queries of Square.
        transfer_iterations: Iterations of the transferred MI-FGSM.
        seed: Seed of everything random.
    """

    epsilon: float
    step: float
    batch_size: int
    strong_iterations: int = 50
    restarts: int = 5
    queries: int = 1000
    transfer_iterations: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: What the table calls it, a format with the fields of `Settings`.
        kind: "clean", "one-step", "iterative" (both follow the gradient) or "black-box".
        attack: The attack; None: none.
        options: Its arguments beside epsilon and batch size, from the settings.
        num_gradients: Gradients an image takes at most.
        num_forward: Forward passes an image takes at most, beside those of the gradients.
    """

    label: str
    kind: str
    attack: Callable[..., AttackResult] | None
    options: Callable[[Settings], dict[str, Any]]
    num_gradients: Callable[[Settings], int]
    num_forward: Callable[[Settings], int]

    @property
    def uses_gradient(self) -> bool:
        """Whether it follows the input gradient of the attacked model."""
        return self.kind in ("one-step", "iterative")

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        settings: Settings,
        source: nn.Module | None = None,
    ) -> AttackResult:
        """Attack `model`, or transfer from `source` where the row does that."""
        assert self.attack is not None
        options = self.options(settings)
        nets = (model,) if self.attack is not transfer else (source, model)
        return self.attack(
            *nets,
            images,
            labels,
            epsilon=settings.epsilon,
            batch_size=settings.batch_size,
            **options,
        )


def _stepping(iterations: int) -> Callable[[Settings], dict[str, Any]]:
    return lambda settings: {"step": settings.step, "iterations": iterations}


ROWS: dict[str, Row] = {
    "clean": Row("clean", "clean", None, lambda _: {}, lambda _: 0, lambda _: 1),
    "fgsm": Row("FGSM", "one-step", fgsm, lambda _: {}, lambda _: 1, lambda _: 2),
    "bim7": Row("BIM-7", "iterative", bim, _stepping(7), lambda _: 7, lambda _: 2),
    "pgd7": Row(
        "PGD-7",
        "iterative",
        pgd,
        lambda s: {"step": s.step, "iterations": 7, "seed": s.seed},
        lambda _: 7,
        lambda _: 2,
    ),
    "mim5": Row("MI-FGSM-5", "iterative", mifgsm, _stepping(5), lambda _: 5, lambda _: 2),
    "rfgsm5": Row(
        "R-FGSM-5",
        "iterative",
        rfgsm,
        # Our reading of "RFGSM5": a random step, then five of the rest of epsilon, which is at
        # least as large.
        lambda s: {"alpha": min(s.step, s.epsilon / 2), "iterations": 5, "seed": s.seed},
        lambda _: 5,
        lambda _: 2,
    ),
    "pgd50": Row(
        "PGD-{strong_iterations} x{restarts}",
        "iterative",
        pgd,
        lambda s: {
            "step": s.step,
            "iterations": s.strong_iterations,
            "restarts": s.restarts,
            "seed": s.seed,
        },
        lambda s: s.strong_iterations * s.restarts,
        lambda s: 2 + s.restarts,
    ),
    "square": Row(
        "Square-{queries}",
        "black-box",
        square,
        lambda s: {"queries": s.queries, "seed": s.seed},
        lambda _: 0,
        lambda s: 2 + s.queries,
    ),
    "transfer": Row(
        "transfer, MI-FGSM-{transfer_iterations}",
        "black-box",
        transfer,
        lambda s: {"step": s.step, "iterations": s.transfer_iterations},
        lambda s: s.transfer_iterations,
        lambda _: 4,
    ),
}
"""All rows, in the order of the table. The first six are those of "Towards Stable and Robust
AdderNets" (NeurIPS 2021), whose epsilon and step we do not know."""
