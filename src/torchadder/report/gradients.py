"""The files of a look at gradients: which term of a distillation loss pulls how hard, and where."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchadder.atomic import write_atomically
from torchadder.distill import Pull
from torchadder.distill.gradients import LABELS
from torchadder.provenance import provenance
from torchadder.report.diagnosis import csv_text
from torchadder.report.exhibits import PARTS
from torchadder.report.figures import log_scale
from torchadder.report.style import THEMES, Theme, new_figure, save, style_axes, style_legend

MAX_NAMED_LAYERS = 10


def name_of(term: str) -> str:
    """What a term is called in figures and tables."""
    return "labels" if term == LABELS else PARTS.get(f"train_{term}", term)


def write_gradients(
    folder: Path, pulls: Sequence[Pull], facts: dict[str, Any], command: str | None = None
) -> dict[str, Any]:
    """Writes `gradients.json`, `gradients.csv` and a figure; replaces those of an earlier look.

    Args:
        folder: Where the files go; created.
        pulls: From `torchadder.distill.term_gradients`.
        facts: What to record about nets and images.
        command: The command to record; None: that of this process.

    Returns:
        What `gradients.json` holds: `facts`, `median` (the median over the layers of ratio and
        cosine by term), `gradients` (one dict for each pull), and where the numbers come from. In
        the file a ratio that is infinite is null: JSON has no infinity.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(pull) for pull in pulls]
    report = {"facts": facts, "median": _medians(pulls), "gradients": rows, **provenance(command)}
    text = json.dumps(_without_infinity(report), indent=2, allow_nan=False)
    write_atomically(folder / "gradients.json", text + "\n")
    write_atomically(folder / "gradients.csv", csv_text(rows))
    save([gradients(pulls, theme) for theme in THEMES], folder, "gradients")
    return report


def gradients(pulls: Sequence[Pull], theme: Theme) -> Figure:
    """Norms of the terms' gradients over that of the labels, a line for each term.

    Args:
        pulls: Layers in their order.
        theme: The colours.
    """
    figure = new_figure(3.4, theme)
    axes = figure.subplots()
    layers = list(dict.fromkeys(pull.layer for pull in pulls))
    places = range(1, len(layers) + 1)
    for index, term in enumerate(_terms(pulls)):
        found = [pull.ratio for pull in pulls if pull.term == term]
        ratios = [ratio if 0 < ratio < math.inf else math.nan for ratio in found]
        axes.plot(
            places,
            ratios,
            color=theme.classes[index % len(theme.classes)],
            linewidth=2,
            marker="o",
            markersize=3.5,
            label=name_of(term),
        )
    axes.axhline(1.0, color=theme.muted, linewidth=1.2, linestyle="--", label="labels")
    style_axes(
        axes,
        theme,
        title="Gradients of the terms",
        xlabel="layer, in the student's order",
        ylabel="norm / norm of the labels'",
    )
    log_scale(axes)
    axes.set_xlim(0.5, len(layers) + 0.5)
    if len(layers) <= MAX_NAMED_LAYERS:
        axes.set_xticks(places, layers)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=2.0)
    style_legend(legend, theme)
    return figure


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinity(item) for item in value]
    return None if value == math.inf else value


def _terms(pulls: Sequence[Pull]) -> list[str]:
    """All terms but the labels."""
    return [term for term in dict.fromkeys(pull.term for pull in pulls) if term != LABELS]


def _medians(pulls: Sequence[Pull]) -> dict[str, dict[str, float]]:
    return {
        term: {
            key: statistics.median(getattr(pull, key) for pull in pulls if pull.term == term)
            for key in ("ratio", "cosine")
        }
        for term in _terms(pulls)
    }
