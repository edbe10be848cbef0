"""Measured numbers in words. Each sentence follows from its arguments, whichever way they fell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from torchadder.energy.report import EnergyReport, short_number
from torchadder.report.page import NO_BREAK, energy, percent, percent_digits
from torchadder.report.statistics import WeightFits, mcnemar
from torchadder.wording import counted

SIGNIFICANCE = 0.05
TRAILING = 0.2
"""Training minus validation accuracy above which a slow start needs a word."""
ROUND_CLUSTER = 0.5
"""`radial_share` of a round cluster in two dimensions."""


def accuracy_sentence(
    name: str, is_correct: NDArray[np.bool_], other: str, other_correct: NDArray[np.bool_]
) -> str:
    """Compares two nets on the same images, with McNemar's exact test.

    Args:
        name: The net the sentence is about, with its article.
        is_correct: Which images it gets right.
        other: The net it is compared with, with its article.
        other_correct: Which images that one gets right.
    """
    num_images = len(is_correct)
    only, only_other = (
        int((is_correct & ~other_correct).sum()),
        int((other_correct & ~is_correct).sum()),
    )
    shares = percent(is_correct.mean(), num_images), percent(other_correct.mean(), num_images)
    start = _capital(f"{name} gets {shares[0]} of the {num_images:,} validation images right")
    points = 100 * abs(only - only_other) / num_images
    digits = percent_digits(num_images)
    if only == only_other:
        comparison = f"as many as {other}"
    else:
        more = "more" if only > only_other else "less"
        comparison = f"{points:.{digits}f} points {more} than {other} ({shares[1]})"
    if only + only_other == 0:
        return f"{start}, exactly the same images as {other}."
    p_value = mcnemar(only, only_other)
    verdict = (
        "which is more than chance explains"
        if p_value < SIGNIFICANCE
        else "too few to tell the two apart"
    )
    return (
        f"{start}, {comparison}: {counted(only, 'image')} only by the former, "
        f"{counted(only_other, 'image')} only by the latter, {verdict} "
        f"(McNemar's exact test, {_p(p_value)})."
    )


def trailing_sentences(name: str, rows: Sequence[dict[str, float]]) -> list[str]:
    """Explains a validation accuracy that starts far below the training accuracy, if it does.

    Args:
        name: The net, with its article.
        rows: One dict per epoch.
    """
    trailing = [
        row
        for row in rows
        if row.get("train_accuracy", 0.0) - row.get("val_accuracy", 1.0) > TRAILING
    ]
    # A gap that is there at the end is overfitting, not a slow start.
    if not trailing or trailing[-1] is rows[-1]:
        return []
    worst = max(trailing, key=lambda row: row["train_accuracy"] - row["val_accuracy"])
    return [
        f"Early on {name} looks worse in validation than in training (epoch {worst['epoch']:.0f}: "
        f"{100 * worst['val_accuracy']:.0f}{NO_BREAK}% against "
        f"{100 * worst['train_accuracy']:.0f}{NO_BREAK}%). That is batch normalisation, not "
        "overfitting: training uses the statistics of the batch, validation running averages, and "
        "these trail behind while the adder weights still move fast."
    ]


def energy_sentence(name: str, report: EnergyReport, other: str, other_report: EnergyReport) -> str:
    """Compares what one image costs two nets.

    Args:
        name: The net the sentence is about, with its article.
        report: Its counts.
        other: The net it is compared with, with its article.
        other_report: The counts of that one.
    """
    mul, other_mul = report.num_mul, other_report.num_mul
    add, other_add = report.num_add, other_report.num_add
    factor = other_report.energy_pj / report.energy_pj if report.energy_pj else 1.0
    if round(factor, 2) == 1:
        verdict = "the same"
    elif factor > 1:
        verdict = f"{factor:.3g} times less"
    else:
        verdict = f"{1 / factor:.3g} times more" if factor else "more"
    return (
        f"For one image {name} needs {_times(mul, other_mul)} multiplications "
        f"({short_number(mul)} against {short_number(other_mul)}) and {_times(add, other_add)} "
        f"additions ({short_number(add)} against {short_number(other_add)}) as {other}. At the "
        f"costs of {report.costs.name} this arithmetic takes {energy(report.energy_pj)} against "
        f"{energy(other_report.energy_pj)}: {verdict}."
    )


def cloud_sentence(conv_share: float | None, adder_share: float | None) -> str:
    """Says which of the two nets' features are rays, and whether that is the paper's figure.

    Args:
        conv_share: `statistics.radial_share` of the CNN's features.
        adder_share: That of the adder net's.
    """
    if conv_share is None or adder_share is None:
        flat = [
            name
            for name, share in (("the CNN", conv_share), ("the adder net", adder_share))
            if share is None
        ]
        return (
            f"In {' and in '.join(flat)} all images of a class have the same features, so that "
            "nothing can be said about rays and clusters."
        )
    measured = (
        "Of the scatter within a class (median over the classes), "
        f"{100 * conv_share:.0f}{NO_BREAK}% points outwards, away from the centre of all classes, "
        f"in the CNN, and {100 * adder_share:.0f}{NO_BREAK}% in the adder net; round clusters have "
        f"50{NO_BREAK}%, rays 100{NO_BREAK}%."
    )
    if conv_share > adder_share:
        verdict = (
            "So the CNN's classes are more like rays than the adder net's, as in figure 1 of the "
            "AdderNet paper."
        )
        if adder_share > (1 + ROUND_CLUSTER) / 2:
            verdict += " The adder net's are long, too: its clusters are not the round ones there."
        if conv_share < (1 + ROUND_CLUSTER) / 2:
            verdict += " The CNN's are far from rays all the same."
    else:
        verdict = (
            "So in this run the adder net's classes are no rounder than the CNN's: the difference "
            "that figure 1 of the AdderNet paper shows is not seen here."
        )
    return f"{measured} {verdict}"


def weight_sentences(
    conv: Sequence[WeightFits], adder: Sequence[WeightFits], epochs: int
) -> list[str]:
    """Says which fit is better where, and whether that is what the paper finds.

    Args:
        conv: Fits of layers of the CNN.
        adder: Fits of the same layers of the adder net.
        epochs: Epochs of training.
    """
    laplacian = all(fit.better == "Laplace" for fit in adder)
    gaussian = all(fit.better == "normal" for fit in conv)
    if laplacian and gaussian:
        verdict = "Both hold here."
    elif laplacian:
        verdict = "Here the former holds in every layer, the latter does not."
    elif gaussian:
        verdict = "Here the latter holds in every layer, the former does not."
    else:
        verdict = "Here neither holds in every layer."
    sentences = [
        f"{fits_sentence('inner layers of the CNN', conv)} "
        f"{fits_sentence('inner layers of the adder net', adder)}",
        "The AdderNet paper (arXiv 1912.13200) finds the weights of trained adder nets Laplacian "
        f"and those of CNNs Gaussian. {verdict}",
    ]
    if not laplacian:
        sentences.append(
            "Adder weights start as a sample of the normal distribution N(0, 1) and had "
            f"{counted(epochs, 'epoch')} to leave it."
        )
    return sentences


def fits_sentence(layers: str, fits: Sequence[WeightFits]) -> str:
    """Says of how many layers which distribution fits better.

    Args:
        layers: What the layers are called, in the plural.
        fits: Their fits.
    """
    total = len(fits)
    num_laplace = sum(fit.better == "Laplace" for fit in fits)
    if num_laplace in (0, total):
        winner, loser = ("Laplace", "normal") if num_laplace else ("normal", "Laplace")
        subject = {1: "The only one", 2: "Both"}.get(total, f"All {total}")
        verb = "is" if total == 1 else "are"
        return (
            f"{subject} of the {layers} {verb} fitted better by the {winner} distribution than by "
            f"the {loser}."
        )
    return (
        f"Of the {total} {layers}, the Laplace distribution fits {num_laplace} better and the "
        f"normal distribution {total - num_laplace}."
    )


def _times(value: int, other: int) -> str:
    if value == other:
        return "as many"
    return f"{value / other:.2g} times as many" if other else "more"


def _p(value: float) -> str:
    text = "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
    return text.replace(" ", NO_BREAK)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
