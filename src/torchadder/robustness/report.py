"""What a robustness evaluation found, as numbers, text, CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torchadder.atomic import write_atomically
from torchadder.robustness.rows import Settings
from torchadder.robustness.zeros import ZeroGradients

STATISTICS = {"running": "running BN", "batch": "batch BN"}
"""Settings of batch norm: running statistics, or those of the test batch."""

GRADIENTS = {"surrogate": "surrogate gradient", "sign": "sign gradient", "true": "gradient"}
"""Input gradients: the layers' own surrogate, the true sign, or the true one of a CNN."""


@dataclass(frozen=True)
class Measurement:
    """One attack in one setting.

    Attributes:
        row: A key of `ROWS`.
        label: What the table calls it.
        kind: "clean", "one-step", "iterative" or "black-box".
        statistics: A key of `STATISTICS`.
        gradient: A key of `GRADIENTS`; None where none is used.
        is_right: Whether the class of an image is still named, bool (N).
        calls_per_image: Forward passes of the model, mean over the images.
        seconds: Time it took.
    """

    row: str
    label: str
    kind: str
    statistics: str
    gradient: str | None
    is_right: Tensor
    calls_per_image: float
    seconds: float

    @property
    def num_right(self) -> int:
        """Images whose class is still named."""
        return int(self.is_right.sum())

    @property
    def accuracy(self) -> float:
        """Their share, 0..1."""
        return self.num_right / len(self.is_right)


@dataclass(frozen=True)
class Curve:
    """Accuracy under PGD as epsilon grows.

    Attributes:
        statistics: A key of `STATISTICS`.
        gradient: A key of `GRADIENTS`.
        epsilons: Radii, ascending, the first 0.
        accuracies: Share of the images whose class is still named, 0..1, one for each radius.
    """

    statistics: str
    gradient: str
    epsilons: tuple[float, ...]
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class Zeros:
    """Exact zeros among the input gradients in one setting."""

    statistics: str
    gradient: str
    shares: ZeroGradients


@dataclass(frozen=True)
class Sign:
    """Something that speaks for masked gradients.

    Attributes:
        name: In two or three words.
        text: With its numbers.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Examples:
    """Some images before and after an attack.

    Attributes:
        label: The attack.
        clean: Images (n, C, H, W) in [0, 1].
        adversarial: The same, attacked.
        labels: Their classes (n).
        named: What the model names after the attack (n).
    """

    label: str
    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    named: Tensor


@dataclass(frozen=True)
class RobustnessReport:
    """Accuracies under attack, and whether they can be believed.

    ``str()`` is a table; an accuracy under attack is an upper bound of the robust accuracy.

    Attributes:
        settings: What all rows have in common.
        num_images: Images attacked.
        measurements: One for each attack and setting.
        curves: Accuracy over epsilon.
        zeros: Exact zeros among the input gradients.
        signs: Signs of gradient masking.
        num_checks: How many signs were looked for.
        examples: Some images of the strongest row that follows the gradient, in the first setting
            of batch norm; None if no such row was run.
        seconds: Time of the whole evaluation.
    """

    settings: Settings
    num_images: int
    measurements: Sequence[Measurement]
    curves: Sequence[Curve]
    zeros: Sequence[Zeros]
    signs: Sequence[Sign]
    num_checks: int
    examples: Examples | None
    seconds: float

    @property
    def verdict(self) -> str:
        """One line on gradient masking."""
        if not self.num_checks:
            return "gradient masking: nothing that was run can show it"
        if not self.signs:
            return f"gradient masking: none of the {self.num_checks} signs looked for"
        names = ", ".join(dict.fromkeys(sign.name for sign in self.signs))
        return (
            f"gradient masking: {len(self.signs)} of {self.num_checks} signs looked for ({names}); "
            "do not take the higher accuracies for robustness"
        )

    def accuracy(self, row: str, statistics: str, gradient: str | None = None) -> float:
        """The accuracy of a row in a setting, 0..1.

        Raises:
            KeyError: If it was not measured.
        """
        for found in self.measurements:
            same = found.row == row and found.statistics == statistics
            if same and found.gradient in (gradient, None):
                return found.accuracy
        raise KeyError((row, statistics, gradient))

    def table(self) -> list[list[str]]:
        """The table with its heading, cells in percent."""
        settings = self._settings()
        lines = [["attack", *(_heading(s, g) for s, g in settings)]]
        for row in dict.fromkeys(found.row for found in self.measurements):
            own = [found for found in self.measurements if found.row == row]
            lines.append([own[0].label, *(_cell(own, *setting) for setting in settings)])
        if self.zeros:
            shares = {(z.statistics, z.gradient): z.shares for z in self.zeros}
            cells = [shares.get(setting) for setting in settings]
            for title, field in (("images", "images"), ("pixels", "pixels")):
                values = [f"{100 * getattr(c, field):.1f}" if c else "" for c in cells]
                lines.append([f"zero gradient, {title}", *values])
        return lines

    def notes(self) -> list[str]:
        """What a reader of the table must know, then the verdict and its signs."""
        half_width = 100 * 1.96 * math.sqrt(0.25 / self.num_images)
        notes = [
            f"Share of {self.num_images:,} images named right, in %; 95 % intervals of up to +-"
            f"{half_width:.1f} points. epsilon {_fraction(self.settings.epsilon)}, step "
            f"{_fraction(self.settings.step)}, seed {self.settings.seed}."
        ]
        if any(found.statistics == "batch" for found in self.measurements):
            notes.append(
                f"Batch BN: batches of {self._batch_sizes()} in the given order; their images "
                "influence each other, so these figures hold for this size and order only."
            )
        return [*notes, self.verdict, *(f"* {sign.name}: {sign.text}" for sign in self.signs)]

    def __str__(self) -> str:
        lines = self.table()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = [
            "  ".join(
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        texts.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
        return "\n".join([*texts, "", *self.notes()])

    def to_markdown(self) -> str:
        """The table and the notes as Markdown."""
        head, *lines = self.table()
        rule = ["---", *("---:" for _ in head[1:])]
        table = "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])
        first, *rest = self.notes()
        signs = [note for note in rest if note.startswith("* ")]
        others = [note for note in rest if not note.startswith("* ")]
        parts = [table, first, *others, "\n".join(signs)]
        if self.curves:
            parts.insert(1, self._curve_table())
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each attack and setting, and for each point of a curve."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, _COLUMNS)
        writer.writeheader()
        writer.writerows(self._lines())
        write_atomically(path, text.getvalue())

    def to_dict(self) -> dict[str, Any]:
        """JSON values: everything but the images."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "num_images": self.num_images,
            "seconds": self.seconds,
            "rows": self._lines(),
            "zero_gradients": [
                {
                    "batch_norm": zeros.statistics,
                    "gradient": zeros.gradient,
                    **dataclasses.asdict(zeros.shares),
                }
                for zeros in self.zeros
            ],
            "signs": [dataclasses.asdict(sign) for sign in self.signs],
            "num_checks": self.num_checks,
            "verdict": self.verdict,
        }

    def _settings(self) -> list[tuple[str, str]]:
        """Pairs of statistics and gradient, in the order of the columns."""
        pairs = [(m.statistics, m.gradient) for m in self.measurements if m.gradient is not None]
        pairs += [(c.statistics, c.gradient) for c in self.curves]
        pairs += [(z.statistics, z.gradient) for z in self.zeros]
        known = list(dict.fromkeys(pairs))
        bare = [s for s in dict.fromkeys(m.statistics for m in self.measurements)]
        known += [(s, "true") for s in bare if s not in {pair[0] for pair in known}]
        return sorted(known, key=lambda pair: list(STATISTICS).index(pair[0]))

    def _batch_sizes(self) -> str:
        number = math.ceil(self.num_images / self.settings.batch_size)
        low, extra = divmod(self.num_images, number)
        return f"{low} and {low + 1}" if extra else str(low)

    def _curve_table(self) -> str:
        head = ["PGD, 255 epsilon", *(f"{255 * e:.3g}" for e in self.curves[0].epsilons)]
        lines = [
            [
                _heading(curve.statistics, curve.gradient),
                *(f"{100 * accuracy:.1f}" for accuracy in curve.accuracies),
            ]
            for curve in self.curves
        ]
        rule = ["---", *("---:" for _ in head[1:])]
        return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])

    def _lines(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = [
            {
                "row": found.row,
                "attack": found.label,
                "batch_norm": found.statistics,
                "gradient": found.gradient or "none",
                "epsilon": 0.0 if found.kind == "clean" else self.settings.epsilon,
                "num_images": self.num_images,
                "num_right": found.num_right,
                "accuracy": found.accuracy,
                "calls_per_image": round(found.calls_per_image, 2),
                "seconds": round(found.seconds, 3),
            }
            for found in self.measurements
        ]
        for curve in self.curves:
            for epsilon, accuracy in zip(curve.epsilons, curve.accuracies, strict=True):
                lines.append(
                    {
                        "row": "curve",
                        "attack": "PGD",
                        "batch_norm": curve.statistics,
                        "gradient": curve.gradient,
                        "epsilon": epsilon,
                        "num_images": self.num_images,
                        "num_right": round(accuracy * self.num_images),
                        "accuracy": accuracy,
                    }
                )
        return lines


_COLUMNS: tuple[str, ...] = (
    "row",
    "attack",
    "batch_norm",
    "gradient",
    "epsilon",
    "num_images",
    "num_right",
    "accuracy",
    "calls_per_image",
    "seconds",
)


def _cell(own: Sequence[Measurement], statistics: str, gradient: str) -> str:
    for found in own:
        if found.statistics == statistics and found.gradient in (gradient, None):
            return f"{100 * found.accuracy:.1f}"
    return ""


def _heading(statistics: str, gradient: str) -> str:
    return STATISTICS[statistics] + ("" if gradient == "true" else f", {gradient}")


def _fraction(epsilon: float) -> str:
    """Epsilon in 255ths where that is a short number.

    >>> _fraction(8 / 255), _fraction(0.1)
    ('8/255', '0.1')
    """
    steps = 255 * epsilon
    return f"{steps:.0f}/255" if steps and abs(steps - round(steps)) < 1e-9 else f"{epsilon:.3g}"
