"""Signs of gradient masking: figures that cannot be if the gradients tell the truth.

After "Obfuscated Gradients Give a False Sense of Security" (arXiv 1802.00420, section 3.1) and "On
Evaluating Adversarial Robustness" (arXiv 1902.06705, section 5): iterative attacks are at least as
strong as one-step ones, an attack that sees the gradient is at least as strong as one that does
not, and an unbounded attack always succeeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torchadder.robustness.report import GRADIENTS, STATISTICS, Curve, Measurement, Sign, Zeros

TOLERANCE = 0.01
"""Differences of accuracy up to one point say nothing."""

FLOOR = 0.05
"""Below this accuracy a one-step attack leaves nothing to be stronger by."""

EFFECT = 0.1
"""Accuracy that a one-step attack takes before others are compared with it: within a small enough
ball every net is linear, and one step is as good as many."""

LARGE_EPSILON = 0.5
"""From here on every image can be made the same grey one, so an attack must succeed."""

Check = tuple[str, str | None]
"""Name of a sign looked for, and the text if it was found."""


def find_signs(
    measurements: Sequence[Measurement], curves: Sequence[Curve], zeros: Sequence[Zeros]
) -> tuple[list[Sign], int]:
    """The signs of masking in the figures of one evaluation, and how many were looked for."""
    checks = [
        *_one_step(measurements),
        *_black_box(measurements),
        *_gradients(measurements),
        *_gradients_by_radius(curves),
        *_growth(curves),
        *_zeros(zeros),
    ]
    return [Sign(name, text) for name, text in checks if text is not None], len(checks)


def _one_step(measurements: Sequence[Measurement]) -> Iterator[Check]:
    for statistics, gradient in _settings(measurements):
        own = [m for m in measurements if (m.statistics, m.gradient) == (statistics, gradient)]
        single = _strongest(own, "one-step")
        iterative = _strongest(own, "iterative")
        clean = next(
            (m for m in measurements if (m.kind, m.statistics) == ("clean", statistics)), None
        )
        if single is None or iterative is None or clean is None:
            continue
        is_sign = (
            single.accuracy > FLOOR
            and clean.accuracy - single.accuracy > EFFECT
            and iterative.accuracy > single.accuracy - TOLERANCE
        )
        text = (
            f"{_place(statistics, gradient)}: {_says(iterative)}, not a point below the "
            f"{100 * single.accuracy:.1f} % of {single.label}"
            if is_sign
            else None
        )
        yield "iterative no stronger than one-step", text


def _black_box(measurements: Sequence[Measurement]) -> Iterator[Check]:
    for statistics, gradient in _settings(measurements):
        own = [m for m in measurements if (m.statistics, m.gradient) == (statistics, gradient)]
        white = _strongest(own, "one-step", "iterative")
        for black in measurements:
            if black.kind != "black-box" or black.statistics != statistics or white is None:
                continue
            only = int((~black.is_right & white.is_right).sum())
            text = (
                f"{_place(statistics, gradient)}: {_says(black)}, {_says(white)}; {only} images "
                f"withstand {white.label} and not {black.label}"
                if black.accuracy < white.accuracy - TOLERANCE
                else None
            )
            yield "black-box stronger than white-box", text


def _gradients(measurements: Sequence[Measurement]) -> Iterator[Check]:
    for statistics in dict.fromkeys(m.statistics for m in measurements):
        both = []
        for gradient in ("surrogate", "sign"):
            own = [m for m in measurements if (m.statistics, m.gradient) == (statistics, gradient)]
            both.append(_strongest(own, "one-step", "iterative"))
        surrogate, sign = both
        if surrogate is None or sign is None:
            continue
        text = (
            f"{STATISTICS[statistics]}: with the surrogate gradient {_says(surrogate)}, with the "
            f"true sign {_says(sign)}"
            if sign.accuracy < surrogate.accuracy - TOLERANCE
            else None
        )
        yield "surrogate weaker than the true gradient", text


def _gradients_by_radius(curves: Sequence[Curve]) -> Iterator[Check]:
    """The radius at which they differ most: at the attacks' own epsilon nothing may be left."""
    for statistics in dict.fromkeys(curve.statistics for curve in curves):
        own = {curve.gradient: curve for curve in curves if curve.statistics == statistics}
        if not {"surrogate", "sign"} <= own.keys():
            continue
        surrogate, sign = own["surrogate"], own["sign"]
        rows = zip(surrogate.epsilons, surrogate.accuracies, sign.accuracies, strict=True)
        epsilon, weak, strong = max(rows, key=lambda row: row[1] - row[2])
        text = (
            f"{STATISTICS[statistics]}, epsilon {255 * epsilon:g}/255: PGD with the surrogate "
            f"gradient leaves {100 * weak:.1f} %, with the true sign {100 * strong:.1f} %"
            if strong < weak - TOLERANCE
            else None
        )
        yield "surrogate weaker than the true gradient", text


def _growth(curves: Sequence[Curve]) -> Iterator[Check]:
    for curve in curves:
        epsilon, accuracy = curve.epsilons[-1], curve.accuracies[-1]
        if epsilon < LARGE_EPSILON:
            continue
        text = (
            f"{_place(curve.statistics, curve.gradient)}: {100 * accuracy:.1f} % left at epsilon "
            f"{255 * epsilon:g}/255"
            if accuracy > TOLERANCE
            else None
        )
        yield "accuracy does not go to 0", text


def _zeros(zeros: Sequence[Zeros]) -> Iterator[Check]:
    for found in zeros:
        share = found.shares.images
        text = (
            f"{_place(found.statistics, found.gradient)}: {100 * share:.1f} % of the images have "
            "no gradient at all"
            if share > TOLERANCE
            else None
        )
        yield "zero gradients", text


def _settings(measurements: Sequence[Measurement]) -> list[tuple[str, str]]:
    pairs = [(m.statistics, m.gradient) for m in measurements if m.gradient is not None]
    return list(dict.fromkeys(pairs))


def _strongest(measurements: Sequence[Measurement], *kinds: str) -> Measurement | None:
    own = [m for m in measurements if m.kind in kinds]
    return min(own, key=lambda m: m.num_right, default=None)


def _says(found: Measurement) -> str:
    return f"{found.label} leaves {100 * found.accuracy:.1f} %"


def _place(statistics: str, gradient: str) -> str:
    return f"{STATISTICS[statistics]}, {GRADIENTS[gradient]}"
