"""What both pages show: tables, and figures with their captions, made from measured numbers."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import torchadder
from torchadder.data import ImageData
from torchadder.energy import EnergyReport
from torchadder.energy.report import short_number
from torchadder.report import figures
from torchadder.report.alignment_figure import alignment
from torchadder.report.evaluation import LayerWeights, Predictions, layer_weights
from torchadder.report.figures import Curve, WeightRow
from torchadder.report.page import Cell, Picture, Table, duration, page_energy_unit, percent
from torchadder.report.run_folder import RunFolder
from torchadder.report.statistics import WeightFits, fit_weights
from torchadder.report.style import DARK, LIGHT, THEMES, Theme, save
from torchadder.wording import counted

NUM_MISTAKES = 16
MAX_HISTOGRAMS = 6
MAX_SCALES = 4
MAX_ALIGNED = 6

PARTS = {
    "train_ce": "cross-entropy",
    "train_kd": "soft labels",
    "train_mid": "features",
    "train_at": "attention maps",
    "train_sp": "similarities",
    "train_fsp": "FSP matrices",
    "train_hint": "hints",
}
"""Columns with parts of a distillation loss, and what they are called."""


@dataclass(frozen=True)
class Kind:
    """What a kind of net is called.

    Attributes:
        label: In tables and legends.
        name: In sentences, with its article.
    """

    label: str
    name: str


KINDS = {
    "conv": Kind("CNN", "the CNN"),
    "adder": Kind("Adder net", "the adder net"),
    "pkkd": Kind("Adder net, distilled", "the distilled adder net"),
    "teacher": Kind("Teacher", "the teacher"),
}


def draw(
    folder: Path, stem: str, function: Callable[..., Figure], *numbers: Any, **words: str
) -> Picture:
    """Draws a figure in both themes and saves it.

    Args:
        folder: Where the files go.
        stem: Their name.
        function: A function of `figures`; its last argument is the theme.
        *numbers: Its other arguments.
        **words: `alt` and `caption` of the picture.
    """

    def figure(theme: Theme) -> Figure:
        return function(*numbers, theme)

    return Picture(save([figure(theme) for theme in THEMES], folder, stem), **words)


def curves_of(run: RunFolder, *, with_teacher: bool = True) -> list[Curve]:
    """The learning curves of a run; a distilled net's with those of a trained teacher."""
    found = [Curve(KINDS[run.kind].label, run.kind, run.rows, run.train_loss)]
    if with_teacher and "teacher_train_accuracy" in run.rows[0]:
        teacher = Curve(
            KINDS["teacher"].label, "teacher", run.rows, "teacher_train_loss", "teacher_"
        )
        found.append(teacher)
    return found


def draw_curves(folder: Path, curves: Sequence[Curve]) -> Picture:
    """Learning curves with their caption."""
    final = ", ".join(
        f"{curve.label} {100 * (1 - curve.rows[-1][f'{curve.prefix}val_accuracy']):.1f} %"
        for curve in curves
        if f"{curve.prefix}val_accuracy" in curve.rows[-1]
    )
    is_distilled = any(curve.train_loss == "train_ce" for curve in curves)
    return draw(
        folder,
        "learning_curves",
        figures.learning_curves,
        curves,
        alt=f"Error and loss over the epochs. Validation error at the end: {final}.",
        caption="Error and cross-entropy with the labels. Training "
        "figures are means over an epoch in which the weights change; validation figures are taken "
        "at its end."
        + (" The distilled net's further terms are not in its loss here." if is_distilled else ""),
    )


def draw_distillation(folder: Path, run: RunFolder) -> Picture | None:
    """The parts of the distillation loss and the kernel scales; None if the run has none."""
    columns = list(dict.fromkeys(column for row in run.rows for column in row))
    parts = {column: PARTS[column] for column in columns if column in PARTS}
    # sigma/<layer>/<side>
    layers = list(dict.fromkeys(c.split("/")[1] for c in columns if c.startswith("sigma/")))
    shown = figures.spread(layers, MAX_SCALES)
    scales = {
        column: column.removeprefix("sigma/").replace("/", ", ")
        for column in columns
        if column.startswith("sigma/") and column.split("/")[1] in shown
    }
    if len(parts) < 2:
        return None
    distill = run.config["distill"]
    weights = {"train_ce": "", "train_kd": "alpha"}
    keys = {column: weights.get(column, "beta") for column in parts}
    terms = " + ".join(
        f"{distill[key]:g} {parts[column]}" if key else parts[column]
        for column, key in keys.items()
    )
    caption = f"The terms of the student's loss before weighting; their sum is {terms}."
    if distill.get("ramp", "none") != "none":
        caption += " The weights grow from 0 to these values, see distill_strength in metrics.csv."
    if scales:
        caption += (
            " The features are compared after the kernels exp(y / 2 sigma\N{SUPERSCRIPT TWO}) of a "
            "layer's outputs y; each layer of either net learns its own sigma."
        )
    if len(shown) < len(layers):
        caption += " Layers evenly spread over the net."
    return draw(
        folder,
        "distillation",
        figures.distillation,
        run.rows,
        parts,
        scales,
        alt="Parts of the distillation loss"
        + (" and the scales of its kernels" if scales else "")
        + " over the epochs.",
        caption=caption,
    )


def draw_alignment(folder: Path, run: RunFolder) -> Picture | None:
    """How alike the two nets of a distillation become; None if the run did not measure it."""
    columns = dict.fromkeys(column for row in run.rows for column in row)
    layers = [column for column in columns if column.startswith("alignment/")]
    if not layers:
        return None
    shown = {c: c.removeprefix("alignment/") for c in figures.spread(layers, MAX_ALIGNED)}
    last = {c: run.rows[-1][c] for c in shown if c in run.rows[-1]}
    return draw(
        folder,
        "alignment",
        alignment,
        run.rows,
        shown,
        alt="Alignment of student and teacher over the epochs. At the end: "
        + ", ".join(f"{shown[column]} {value:.2f}" for column, value in last.items())
        + ".",
        caption="Centred kernel alignment (linear, unbiased estimator; arXiv 1905.00414, "
        "2010.15327) of the outputs of a layer in both nets, on validation images: 1 where they "
        "are equal up to rotation and scale, about 0 where they have nothing in common."
        + (" Layers evenly spread over the net." if len(shown) < len(layers) else ""),
    )


def draw_confusion(
    folder: Path, predictions: Predictions, kind: str, class_names: Sequence[str]
) -> Picture:
    """The confusion matrix with its caption."""
    num_images = len(predictions.labels)
    num_wrong = num_images - predictions.num_correct
    text = f"{KINDS[kind].name.capitalize()} takes {num_wrong:,} of {num_images:,} images for "
    text += "another class."
    if num_wrong:
        mistakes = predictions.confusion.copy()
        mistakes[range(len(mistakes)), range(len(mistakes))] = 0
        true, named = divmod(int(mistakes.argmax()), len(mistakes))
        text += (
            f" The most frequent mistake is {class_names[true]} taken for {class_names[named]} "
            f"({counted(int(mistakes[true, named]), 'image')})."
        )
    return draw(
        folder,
        "confusion_matrix",
        figures.confusion_matrix,
        predictions.confusion,
        class_names,
        kind,
        alt=f"Confusion matrix. {text}",
        caption=f"{text} Hits are grey; mistakes have the colour of the net.",
    )


def draw_mistakes(
    folder: Path, predictions: Predictions, kind: str, class_names: Sequence[str]
) -> Picture | None:
    """The mistakes made with the highest confidence; None if there are no mistakes."""
    if not predictions.mistakes:
        return None
    pairs = ", ".join(
        f"{class_names[m.label]} as {class_names[m.predicted]}" for m in predictions.mistakes
    )
    return draw(
        folder,
        "mistakes",
        figures.misclassified,
        predictions.mistakes,
        class_names,
        alt=f"Images that were taken for another class: {pairs}.",
        caption=f"The mistakes of which {KINDS[kind].name} is surest: true class, class named, and "
        "the probability it gives to the latter.",
    )


@dataclass(frozen=True)
class FittedLayer:
    """The weights of a layer and the distributions fitted to them."""

    layer: LayerWeights
    fits: WeightFits


def fit_layers(model: Any) -> list[FittedLayer]:
    """Fits the weights of every layer of a net; see `evaluation.layer_weights`."""
    return [FittedLayer(layer, fit_weights(layer.values)) for layer in layer_weights(model)]


def draw_weights(folder: Path, layers: Mapping[str, Sequence[FittedLayer]]) -> Picture:
    """Weight histograms of some layers of each kind of net, with their caption."""
    is_single = len(layers) == 1
    count = MAX_HISTOGRAMS if is_single else 3
    rows, is_selection = [], False
    for kind, fitted in layers.items():
        chosen = figures.spread([item.layer for item in fitted], count)
        is_selection |= len(chosen) < len(fitted)
        label = "" if is_single else KINDS[kind].label
        rows += [WeightRow(label, kind, chosen[i : i + 3]) for i in range(0, len(chosen), 3)]
    better = "; ".join(
        f"{KINDS[kind].label} {item.layer.name}: {item.fits.better}"
        for kind, fitted in layers.items()
        for item in fitted
    )
    return draw(
        folder,
        "weight_histograms",
        figures.weight_histograms,
        rows,
        alt=f"Histograms of weights with fitted densities. The better fit is {better}.",
        caption="Weights after training with the Laplace and the normal distribution of highest "
        "likelihood. Above each panel: which of the two fits better, by how many nats of "
        "log-likelihood per weight."
        + (" Layers evenly spread over the net; the table has all." if is_selection else ""),
    )


def weight_table(layers: Mapping[str, Sequence[FittedLayer]]) -> Table:
    """The fits of every layer."""
    rows = [
        (
            Cell(f"{KINDS[kind].label} {item.layer.name}", kind),
            f"{item.fits.num_weights:,}",
            *(
                f"{value:.3f}".replace("-", "\N{MINUS SIGN}")
                for fit in (item.fits.laplace, item.fits.normal)
                for value in (fit.location, fit.scale, fit.log_likelihood)
            ),
            item.fits.better,
        )
        for kind, fitted in layers.items()
        for item in fitted
    ]
    columns = (
        "Layer",
        ">Weights",
        ">Laplace median",
        ">Laplace scale b",
        ">Laplace log-likelihood",
        ">Normal mean",
        ">Normal deviation",
        ">Normal log-likelihood",
        "Better fit",
    )
    return Table(
        "Maximum likelihood fits; log-likelihoods are means in nats per weight.", columns, rows
    )


def energy_table(reports: Mapping[str, EnergyReport]) -> Table:
    """Counts and energies of every layer, the kinds of net side by side."""
    largest = max(report.energy_pj for report in reports.values())
    scale, unit = page_energy_unit(largest, decimals=3)
    columns = ["Layer"]
    footer: list[str | Cell] = ["Total"]
    cells: dict[str, list[str | Cell]] = {}
    for kind, report in reports.items():
        columns += [KINDS[kind].label, ">mul", ">add", f">energy, {unit}"]
        footer += [
            "",
            short_number(report.num_mul),
            short_number(report.num_add),
            f"{report.energy_pj / scale:.3f}",
        ]
        for layer in report.layers:
            cells.setdefault(layer.name or "(model)", []).extend(
                (
                    Cell(layer.op, kind),
                    short_number(layer.num_mul),
                    short_number(layer.num_add),
                    Cell(f"{layer.energy_pj / scale:.3f}", share=report.share(layer)),
                )
            )
    costs = next(iter(reports.values())).costs
    return Table(
        f"Multiplications and additions of one image, and their energy at {costs.name}. Bars show "
        "a layer's share of its net.",
        columns,
        [[name, *row] for name, row in cells.items()],
        footer,
    )


def energy_note(reports: Mapping[str, EnergyReport]) -> str:
    """What the counts contain and what not."""
    costs = next(iter(reports.values())).costs.float32
    return (
        f"A tap of a convolution is one multiplication ({costs.mul:g} pJ in float32) and one "
        f"addition ({costs.add:g} pJ), a tap of an adder layer two additions. Normalisation, "
        "activations, pooling and memory traffic are not counted. Training is not free of "
        "multiplications; inference is meant here."
    )


def interval_text(bounds: tuple[float, float], num_images: int) -> str:
    """An interval of shares as percentages."""
    low, high = (percent(bound, num_images) for bound in bounds)
    return f"{low.rstrip('%').rstrip()} to {high}"


def facts(
    summary: Mapping[str, Any], data: ImageData, *, command: str, seconds: float, date: str
) -> dict[str, str]:
    """Where the numbers of a page come from, as names and values.

    Args:
        summary: The `summary.json` of a run.
        data: Its images.
        command: What was typed.
        seconds: How long it took.
        date: When, in ISO format.
    """
    hardware, versions = summary["hardware"], summary["versions"]
    threads = hardware["torch_threads"]
    device = str(hardware["device"])
    device = hardware["gpu"] if device.startswith("cuda") else device.upper()
    return {
        "Command": command,
        "Date": readable_date(date),
        "Time": duration(seconds),
        "Seed": str(summary["seed"]),
        "Images": f"{data.source}: {len(data.train):,} to train on, {len(data.val):,} to validate",
        "Device": device,
        "Processor": f"{hardware['cpu']}, {hardware['cpu_cores']} cores, "
        f"{counted(threads, 'thread')} used",
        "System": hardware["platform"],
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def frame(title: str, lede: str, date: str) -> dict[str, Any]:
    """What the template of every page asks for."""
    return {
        "title": title,
        "lede": lede,
        "date": readable_date(date),
        "version": torchadder.__version__,
        "palette": {"light": LIGHT.nets, "dark": DARK.nets},
    }


def readable_date(date: str) -> str:
    """An ISO date as people read it.

    >>> readable_date("2026-03-01T09:05:00+00:00")
    '1 March 2026, 09:05 UTC'
    """
    moment = datetime.datetime.fromisoformat(date).astimezone(datetime.UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
