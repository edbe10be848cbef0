"""The page that compares the stability of several runs, from what each of them recorded."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchadder.atomic import write_atomically
from torchadder.data import ImageData
from torchadder.nn import AdderModule
from torchadder.provenance import provenance
from torchadder.report import exhibits
from torchadder.report.page import NO_BREAK, Cell, Picture, Table, percent, write_page
from torchadder.report.run_folder import RunFolder, read_run
from torchadder.report.stability_figures import (
    MAX_NAMED_LAYERS,
    PREDICTIONS,
    Course,
    Net,
    courses,
    predicted_and_measured,
)
from torchadder.report.style import THEMES
from torchadder.stability import LayerPrediction, predict_output_variance
from torchadder.stability.table import read_table
from torchadder.wording import counted

SECTIONS = {
    "results": "At the end of training",
    "weights": "Weights",
    "outputs": "Outputs before batch norm",
    "norms": "Movement of batch norm's statistics",
    "gradients": "Gradients",
    "prediction": "Predicted and measured",
    "provenance": "Where these numbers come from",
}

QUANTITIES = {
    "weight_var": "Variance of the weights",
    "output_var": "Variance of the outputs in a channel",
    "output_var_total": "Variance of the outputs over all channels",
    "bn_mean_step_std": "Step of the running means, in standard deviations",
    "bn_var_step": "Step of the running variances, relative",
    "grad_norm": "Norm of the weight gradient",
    "grad_norm_used": "Norm of the gradient that the optimizer takes",
}
"""Quantities of the summary, and what they are called."""

LAST_SHARE = 0.1
"""Share of the steps, the last ones, that values at the end are means over."""

BATCH_SIZE = 64


@dataclass(frozen=True)
class MeasuredRun:
    """A run with its records and predictions.

    Attributes:
        run: The run.
        net: Label, colours, and the layers that are compared.
        key: Name of its colour on the page.
        values: (steps, values) by quantity and layer.
        predictions: Those of the compared layers, with the last epoch's weights.
    """

    run: RunFolder
    net: Net
    key: str
    values: Mapping[tuple[str, str], tuple[list[int], list[float]]]
    predictions: Sequence[LayerPrediction]

    def at_end(self, quantity: str) -> dict[str, float]:
        """Means of a quantity over the last steps, by layer."""
        found = {}
        for layer in self.net.layers:
            steps, values = self.values.get((quantity, layer), ([], []))
            if steps:
                first = steps[-1] - LAST_SHARE * (steps[-1] - steps[0])
                last = [v for step, v in zip(steps, values, strict=True) if step >= first]
                found[layer] = sum(last) / len(last)
        return found

    def mean(self, quantity: str) -> float | None:
        """Geometric mean of a quantity over the layers at the end; None if it has none."""
        return geometric_mean(self.at_end(quantity).values())

    @property
    def is_normalised(self) -> bool:
        """Whether its weights were normalised."""
        return self.run.config["model"].get("weight_norm") is not None


def geometric_mean(values: Any) -> float | None:
    """The geometric mean of numbers, of those that are positive; None if there are none.

    >>> round(geometric_mean([1.0, 100.0, 0.0]), 9)
    10.0
    """
    logs = [math.log(value) for value in values if value > 0 and math.isfinite(value)]
    return math.exp(sum(logs) / len(logs)) if logs else None


def write_stability(
    folder: Path, paths: Sequence[Path], *, num_images: int = 256, command: str | None = None
) -> dict[str, Any]:
    """Writes `stability.html`, its figures, `stability.json` and `predictions.csv`.

    Compared are the layers that are adder layers in one of the nets, by name; all layers where
    there are none. Predictions are made with the last epoch's weights, in evaluation mode.

    Args:
        folder: Where the files go; created. Files of an earlier comparison are replaced.
        paths: Run folders, trained with `trainer.record_stability`.
        num_images: Validation images to predict the output variance on.
        command: The command to record; None: that of this process.

    Returns:
        What `stability.json` holds.

    Raises:
        ValueError: If a folder holds no finished run or no `stability.csv`, if no outputs were
            measured, if the images of the runs differ, or if their nets have no layers in common.
        CheckpointError: If weights cannot be read.
    """
    start = time.monotonic()
    runs, data = _read(paths, num_images)
    folder.mkdir(parents=True, exist_ok=True)
    report = _report(runs, num_images) | provenance(command)
    write_atomically(folder / "stability.json", json.dumps(report, indent=2) + "\n")
    write_atomically(folder / "predictions.csv", _predictions_csv(runs))
    reference = _reference(runs)
    facts = exhibits.facts(
        runs[0].run.summary,
        data,
        command=report["command"],
        seconds=time.monotonic() - start,
        date=report["date"],
    )
    facts |= {
        "Runs": ", ".join(f"{one.net.label}: {one.run.path.name}" for one in runs),
        "Epochs": ", ".join(str(one.run.epochs) for one in runs),
        "Seed": ", ".join(dict.fromkeys(str(one.run.config["seed"]) for one in runs)),
    }
    frame = exhibits.frame(_title(runs), _lede(runs, reference), report["date"])
    frame["palette"] = {
        name: {one.key: one.net.colours[theme.suffix] for one in runs}
        for name, theme in zip(("light", "dark"), THEMES, strict=True)
    }
    write_page(
        "stability.html.jinja",
        folder / "stability.html",
        **frame,
        sections=SECTIONS,
        result_table=_result_table(runs, reference, len(data.val)),
        result_sentences=_result_sentences(runs, reference),
        courses=_draw_courses(folder, runs),
        prediction=_draw_prediction(folder, runs),
        prediction_sentences=_prediction_sentences(runs),
        prediction_tables=[_prediction_table(one) for one in runs],
        facts=facts,
    )
    return report


# Reading ------------------------------------------------------------------------------------------


def _read(paths: Sequence[Path], num_images: int) -> tuple[list[MeasuredRun], ImageData]:
    runs = [read_run(path) for path in paths]
    tables = [_values(run) for run in runs]
    sources = [run.config["data"]["source"] for run in runs]
    for run, source in zip(runs, sources, strict=True):
        if source != sources[0]:
            raise ValueError(
                f"{str(run.path)!r} was trained on {source!r}, {str(runs[0].path)!r} on "
                f"{sources[0]!r}: runs of the same images are wanted"
            )
    models = [run.load_model("last") for run in runs]
    adders = {
        name
        for model in models
        for name, layer in model.named_modules()
        if isinstance(layer, AdderModule)
    }
    labels = _labels(runs)
    colours = _colours(runs)
    data = runs[0].open_data()
    found = []
    for number, (run, values, model) in enumerate(zip(runs, tables, models, strict=True)):
        measured = [layer for quantity, layer in values if quantity == "output_var"]
        layers = [layer for layer in measured if layer in adders or not adders]
        if not layers:
            raise ValueError(
                f"{str(run.path)!r}: none of its layers is an adder layer in one of the nets; "
                f"these are {', '.join(sorted(adders))}"
            )
        own = data if run.config["data"] == runs[0].config["data"] else run.open_data()
        predictions = predict_output_variance(model, _images(own, num_images))
        net = Net(labels[number], colours[number], layers)
        shown = [one for one in predictions if one.layer in layers]
        found.append(MeasuredRun(run, net, f"run{number}", values, shown))
    return found, data


def _values(run: RunFolder) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    path = run.path / "stability.csv"
    if not path.is_file():
        raise ValueError(
            f"{str(run.path)!r} has no stability.csv; train with --trainer.record_stability 50"
        )
    found: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for step, layer, quantity, value in read_table(path):
        steps, values = found.setdefault((quantity, layer), ([], []))
        steps.append(step)
        values.append(value)
    if not any(quantity == "output_var" for quantity, _ in found):
        raise ValueError(f"{path}: no outputs in front of a batch norm were measured")
    return found


def _images(data: ImageData, count: int) -> Iterator[Tensor]:
    """The first validation images, in batches."""
    found: list[Tensor] = []
    for images, _ in data.val_dataloader():
        found.append(images)
        if sum(map(len, found)) >= count:
            break
    yield from torch.cat(found)[:count].split(BATCH_SIZE)


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """What the runs are called; those that would be called the same add their folders."""
    labels = []
    for run in runs:
        label = exhibits.KINDS[run.kind].label
        is_normalised = run.config["model"].get("weight_norm") is not None
        labels.append(f"{label} + AWN" if is_normalised else label)
    paths = [run.path.resolve() for run in runs]
    return [
        f"{label} ({_tail(path, paths)})" if labels.count(label) > 1 else label
        for label, path in zip(labels, paths, strict=True)
    ]


def _tail(path: Path, paths: Sequence[Path]) -> str:
    """The name of a folder, after as many of its parents as tell it from the others.

    >>> _tail(Path("/a/run"), [Path("/a/run"), Path("/b/run"), Path("/b/other")])
    'a/run'
    """
    others = [other for other in paths if other != path]
    depths = range(1, len(path.parts))
    tails = (path.parts[-depth:] for depth in depths)
    found = next((t for t in tails if all(o.parts[-len(t) :] != t for o in others)), path.parts)
    return Path(*found).as_posix()


def _colours(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    """Each run's colour by theme: that of its kind of net where it is free, else the next one."""
    light = THEMES[0]
    free: list[tuple[str, int]] = [(kind, 0) for kind in light.nets]
    free += [("", index) for index in range(len(light.classes))]
    found = []
    for run in runs:
        is_normalised = run.config["model"].get("weight_norm") is not None
        wanted = ({"conv": "teacher", "adder": "pkkd"} if is_normalised else {}).get(
            run.kind, run.kind
        )
        chosen = (wanted, 0) if (wanted, 0) in free else free[0]
        if len(free) > 1:
            free.remove(chosen)
        kind, index = chosen
        found.append(
            {theme.suffix: theme.nets[kind] if kind else theme.classes[index] for theme in THEMES}
        )
    return found


def _reference(runs: Sequence[MeasuredRun]) -> MeasuredRun:
    """What the others are compared with: the first plain CNN, else the first run."""
    plain = [one for one in runs if one.run.kind == "conv" and not one.is_normalised]
    return (plain or list(runs))[0]


# What is written ----------------------------------------------------------------------------------


def _report(runs: Sequence[MeasuredRun], num_images: int) -> dict[str, Any]:
    return {
        "num_images": num_images,
        "runs": [
            {
                "label": one.net.label,
                "folder": one.run.path.name,
                "recipe": one.run.config["name"],
                "seed": one.run.config["seed"],
                "epochs": one.run.epochs,
                "val_accuracy": one.run.rows[-1].get("val_accuracy"),
                "mean_at_end": {name: one.mean(name) for name in QUANTITIES},
                "at_end": {name: one.at_end(name) for name in QUANTITIES},
                "predictions": [layer.to_dict() for layer in one.predictions],
            }
            for one in runs
        ],
    }


def _predictions_csv(runs: Sequence[MeasuredRun]) -> str:
    text = io.StringIO()
    rows = [{"run": one.net.label} | layer.to_dict() for one in runs for layer in one.predictions]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _title(runs: Sequence[MeasuredRun]) -> str:
    names = dict.fromkeys(one.run.config["model"]["name"] for one in runs)
    source = Path(runs[0].run.config["data"]["source"]).name
    return f"Stability of {' and '.join(names)} on {source}"


def _lede(runs: Sequence[MeasuredRun], reference: MeasuredRun) -> str:
    layers = counted(len(reference.net.layers), "layer")
    start = f"{_join([one.net.label for one in runs])}, compared by {layers}."
    ratios = [
        f"{number(ratio)} times ({one.net.label})"
        for one in runs
        if one is not reference and (ratio := _ratio(one, reference, "output_var")) is not None
    ]
    if not ratios:
        return start
    return (
        f"{start} In front of batch norm the outputs vary {_join(ratios)} as much as in the "
        f"{reference.net.label}."
    )


def _result_table(runs: Sequence[MeasuredRun], reference: MeasuredRun, num_images: int) -> Table:
    columns = ["Quantity"]
    for one in runs:
        columns.append(f">{one.net.label}")
        if one is not reference:
            columns.append(">ratio")
    rows: list[list[str | Cell]] = []
    for quantity, name in QUANTITIES.items():
        row: list[str | Cell] = [name]
        for one in runs:
            mean = one.mean(quantity)
            row.append(Cell("-" if mean is None else number(mean), one.key))
            if one is not reference:
                ratio = _ratio(one, reference, quantity)
                row.append("-" if ratio is None else number(ratio))
        rows.append(row)
    accuracy: list[str | Cell] = ["Validation accuracy, last epoch"]
    for one in runs:
        accuracy.append(
            Cell(percent(one.run.rows[-1].get("val_accuracy", math.nan), num_images), one.key)
        )
        if one is not reference:
            accuracy.append("")
    rows.append(accuracy)
    return Table(
        f"Geometric means over the {len(reference.net.layers)} compared layers, of each layer the "
        f"mean over the last {LAST_SHARE:.0%} of the steps. Ratios are to the "
        f"{reference.net.label}.".replace("%", f"{NO_BREAK}%"),
        columns,
        rows,
    )


def _result_sentences(runs: Sequence[MeasuredRun], reference: MeasuredRun) -> list[str]:
    pairs = [(one, reference) for one in runs if one is not reference]
    for one in runs:
        plain = [o for o in runs if o.run.kind == one.run.kind and not o.is_normalised]
        if one.is_normalised and plain and plain[0] is not reference:
            pairs.append((one, plain[0]))
    return [
        *(_comparison(one, other) for one, other in pairs),
        "The variance in a channel is what batch norm divides by; that over all channels also has "
        "the differences between the channels' means in it, which batch norm takes away. This is "
        "one run of each net: how far another seed would fall from it is not known here.",
    ]


def _comparison(one: MeasuredRun, other: MeasuredRun) -> str:
    """How a net differs from another one, in the order of the summary."""
    words = {
        "weight_var": "the variance of the weights",
        "output_var": "that of the outputs in a channel",
        "bn_mean_step_std": "the step of the running means in standard deviations",
        "bn_var_step": "the relative step of the running variances",
    }
    parts = [
        f"{name} is {number(ratio)} times as large"
        for quantity, name in words.items()
        if (ratio := _ratio(one, other, quantity)) is not None
    ]
    return f"{one.net.label} against {other.net.label}: {_join(parts)}."


def _draw_courses(folder: Path, runs: Sequence[MeasuredRun]) -> dict[str, list[Picture]]:
    """The figures by section."""
    plan = {
        "weights": [("weight_var", "", "variance of the weights")],
        "outputs": [("output_var", "output_var_total", "variance of the outputs")],
        "norms": [
            ("bn_mean_step_std", "", "step of the means, in std"),
            ("bn_var_step", "", "step of the variances, relative"),
        ],
        "gradients": [("grad_norm", "grad_norm_used", "norm of the gradient")],
    }
    words = {
        "output_var": ("in a channel", "over all channels"),
        "grad_norm": ("as computed", "as the optimizer takes it"),
    }
    captions = {
        "weight_var": "The variance of each layer's weights, as the layer computes with them.",
        "output_var": "The variance of the values that batch norm takes, over the batch in each "
        "channel and averaged over the channels. Dashed in the last panel: over all channels "
        "together.",
        "bn_mean_step_std": "How far a single step moves batch norm's running means, as the root "
        "mean square over the channels of the change in running standard deviations.",
        "bn_var_step": "How far a single step moves batch norm's running variances: the norm of "
        "the change over the norm of the variances.",
        "grad_norm": "The norm of each layer's weight gradient as the backward pass leaves it. "
        "Dashed in the last panel: what the optimizer takes, after clipping and AdaptiveLR.",
    }
    found: dict[str, list[Picture]] = {}
    for section, quantities in plan.items():
        for quantity, other, ylabel in quantities:
            drawn = [
                Course(
                    one.net,
                    {n: one.values.get((quantity, n), ([], [])) for n in one.net.layers},
                    one.at_end(quantity),
                    one.at_end(other) if other else {},
                )
                for one in runs
            ]
            ends = ", ".join(
                f"{one.net.label} {number(mean)}"
                for one in runs
                if (mean := one.mean(quantity)) is not None
            )
            picture = exhibits.draw(
                folder,
                quantity,
                courses,
                drawn,
                ylabel,
                words.get(quantity, ("", "")),
                alt=f"{QUANTITIES[quantity]} of each layer over the steps and at the end. "
                f"Geometric means at the end: {ends}.",
                caption=f"{captions[quantity]} A line is a layer, the first one faint, the last "
                "one strong.",
            )
            found.setdefault(section, []).append(picture)
    return found


def _draw_prediction(folder: Path, runs: Sequence[MeasuredRun]) -> Picture:
    means = "; ".join(
        f"{one.net.label} {', '.join(f'{number(_off(one, name))}' for name in PREDICTIONS)}"
        for one in runs
    )
    is_shaded = any(len(one.predictions) > MAX_NAMED_LAYERS for one in runs)
    note = " Faint to full colour: the first to the last layer." if is_shaded else ""
    return exhibits.draw(
        folder,
        "predicted_and_measured",
        predicted_and_measured,
        [one.net for one in runs],
        [one.predictions for one in runs],
        alt="Measured over predicted output variance of each layer. Geometric means of predicted "
        f"over measured, for six numbers, each tap's distribution, and covariances: {means}.",
        caption="The variance of the outputs in a channel, measured against predicted; on the line "
        "they are equal. Triangles: from mean and variance of inputs and weights. Squares: from "
        "the distribution of each tap's input and the very weights, taps taken as independent. "
        "Dots: with the covariances of the taps and of their squares." + note,
    )


def _prediction_sentences(runs: Sequence[MeasuredRun]) -> list[str]:
    found = []
    for one in runs:
        ratios = [layer.correlated / layer.measured for layer in one.predictions if layer.measured]
        text = (
            f"{one.net.label}: from six numbers a layer {number(_off(one, 'theory'))} times the "
            "measured variance is predicted, from independent taps "
            f"{number(_off(one, 'independent'))} times, with their covariances "
            f"{number(_off(one, 'correlated'))} times (geometric means"
        )
        if ratios:
            text += f"; the last from {number(min(ratios))} to {number(max(ratios))}"
        found.append(f"{text}).")
    return [
        *found,
        "The second prediction knows each input's distribution and every weight; what separates "
        "it from the measurement is that the taps depend on each other, and nothing else. "
        "Derivations: docs/stability.md.",
    ]


def _prediction_table(one: MeasuredRun) -> Table:
    rows = [
        (
            Cell(f"{index}. {layer.layer}", one.key),
            f"{layer.num_taps:,}",
            f"{layer.zero_share:.0%}".replace("%", f"{NO_BREAK}%"),
            f"{layer.correlation:.3f}".replace("-", "\N{MINUS SIGN}"),
            number(layer.input_var),
            number(layer.weight_var),
            number(layer.measured),
            "-" if layer.theory is None else number(layer.theory),
            number(layer.independent),
            number(layer.correlated),
            number(layer.measured_total),
        )
        for index, layer in enumerate(one.predictions, 1)
    ]
    columns = (
        "Layer",
        ">Taps",
        ">Inputs that are 0",
        ">Correlation of taps",
        ">Var x",
        ">Var w",
        ">Measured",
        ">Six numbers",
        ">Independent taps",
        ">With covariances",
        ">Measured, all channels",
    )
    return Table(f"{one.net.label}, with the weights of its last epoch.", columns, rows)


def _off(one: MeasuredRun, prediction: str) -> float:
    """Geometric mean over the layers of predicted over measured."""
    ratios = [
        value / layer.measured
        for layer in one.predictions
        if (value := getattr(layer, prediction)) is not None and layer.measured > 0
    ]
    return geometric_mean(ratios) or math.nan


def _ratio(one: MeasuredRun, other: MeasuredRun, quantity: str) -> float | None:
    mean, others = one.mean(quantity), other.mean(quantity)
    return None if mean is None or others is None else mean / others


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable.

    >>> number(1234567.0), number(0.01234), number(12.3456), number(0.0)
    ('1,230,000', '0.0123', '12.3', '0')
    >>> number(1.234e-7)
    '1.23e-07'
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    if not -5 <= digits <= 6:
        return f"{value:.3g}"
    return f"{round(value, digits):,.{max(0, digits)}f}"


def _join(parts: Sequence[str]) -> str:
    """Parts of a sentence with commas and an "and"."""
    *first, last = parts or [""]
    return f"{', '.join(first)} and {last}" if first else last
