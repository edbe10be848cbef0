"""How the weight of the distillation grows while a young teacher learns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """Strength s in 0..1 that all distillation terms are multiplied by.

    * "none": `s = 1`;
    * "epochs": `s(e) = min(1, e / E)` with e the epochs done before a batch, with fractions, and E
      epochs until full; it grows from batch to batch, so that E may be less than one epoch;
    * "teacher": `s = clamp((a - c) / (A - c), 0, 1)` with a the teacher's training accuracy in the
      epoch before and c that of chance; constant for an epoch, 0 in the first one.

    Not in the paper (PKKD, arXiv 2009.13044): a progressive teacher that knows nothing yet holds
    the student back.

    Attributes:
        by: "none", "epochs" or "teacher".
        epochs: E, above 0; need not be whole.
        accuracy: A, the teacher's accuracy at the full strength, a share in 0..1.

    Raises:
        ValueError: A value out of range.

    >>> Ramp("epochs", epochs=4).strength(1.5)
    0.375
    >>> Ramp("teacher", accuracy=0.9).strength(3, teacher_accuracy=0.5, chance=0.1)
    0.5
    """

    by: str = "none"
    epochs: float = 10
    accuracy: float = 0.9

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.by not in ("none", "epochs", "teacher"):
            raise ValueError(f"ramp must be by none, epochs or teacher, got {self.by!r}")
        if not self.epochs > 0:
            raise ValueError(f"epochs of a ramp must be above 0, got {self.epochs}")
        if not 0 < self.accuracy <= 1:
            raise ValueError(f"accuracy of a ramp must be above 0, up to 1, got {self.accuracy}")

    def strength(
        self, epoch: float, teacher_accuracy: float | None = None, chance: float = 0.0
    ) -> float:
        """The strength for a batch.

        Args:
            epoch: The epochs done before the batch, with fractions.
            teacher_accuracy: The teacher's training accuracy in the epoch before, None in the
                first one.
            chance: Accuracy of guessing.
        """
        if self.by == "none":
            return 1.0
        if self.by == "epochs":
            return min(1.0, epoch / self.epochs)
        if teacher_accuracy is None:
            return 0.0
        span = max(self.accuracy - chance, 1e-12)
        return min(1.0, max(0.0, (teacher_accuracy - chance) / span))
