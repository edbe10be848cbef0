"""The figures of the page on stability: courses of quantities, predictions beside measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from torchadder.report.style import (
    LABEL_SIZE,
    NOTE_SIZE,
    Theme,
    new_figure,
    style_axes,
    style_legend,
)
from torchadder.stability.prediction import LayerPrediction

MAX_NAMED_LAYERS = 8
PANEL_POINTS = 230
"""About the height of a panel of predictions, in points."""
FAINTEST = 0.3
"""How much of a net's colour its first layer has; the last one has all of it."""

PREDICTIONS = {
    "theory": ("six numbers a layer", "^"),
    "independent": ("each tap's distribution, independent", "s"),
    "correlated": ("with the taps' covariances", "o"),
}
"""Attributes of a `LayerPrediction`, what they are called, and their markers."""


@dataclass(frozen=True)
class Net:
    """A net in the figures.

    Attributes:
        label: What it is called.
        colours: Its colour by the suffix of the theme.
        layers: Names of its layers, in the order in which they run.
    """

    label: str
    colours: Mapping[str, str]
    layers: Sequence[str]


@dataclass(frozen=True)
class Course:
    """A quantity of the layers of a net over the steps.

    Attributes:
        net: The net.
        points: (steps, values) by layer.
        at_end: The value that each layer ends with.
        other_at_end: The same of a second quantity, drawn beside it; may be empty.
    """

    net: Net
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    at_end: Mapping[str, float]
    other_at_end: Mapping[str, float]


def courses(found: Sequence[Course], ylabel: str, words: tuple[str, str], theme: Theme) -> Figure:
    """A panel for each net, its layers over the steps; a last one for all at the end, by depth.

    Args:
        found: A course for each net.
        ylabel: The quantity, with its unit.
        words: What the solid and the dashed lines of the last panel are; the second may be empty.
        theme: The colours.
    """
    columns = 2
    rows = -(-(len(found) + 1) // columns)
    figure = new_figure(2.75 * rows + 0.4, theme)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(found) + 1 :]:
        axes.set_visible(False)
    for axes, course in zip(panels, found, strict=False):
        ramp = theme.ramp(course.net.colours[theme.suffix])
        for index, layer in enumerate(course.net.layers):
            axes.plot(
                *course.points[layer],
                color=ramp(_shade(index, len(course.net.layers))),
                linewidth=1.4,
                marker="o" if len(course.points[layer][0]) <= 2 else "",
                markersize=3,
            )
        style_axes(axes, theme, title=course.net.label, xlabel="step", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    last = panels[len(found)]
    for course in found:
        colour = course.net.colours[theme.suffix]
        for values, line in ((course.at_end, "-"), (course.other_at_end, (0, (4, 2)))):
            drawn = [(i, values[n]) for i, n in enumerate(course.net.layers, 1) if n in values]
            if drawn:
                last.plot(
                    *zip(*drawn, strict=True),
                    color=colour,
                    linewidth=1.8 if line == "-" else 1.3,
                    linestyle=line,
                    marker="o",
                    markersize=3.5 if line == "-" else 2.5,
                )
    style_axes(last, theme, title="At the end, by depth", xlabel="layer", ylabel=ylabel)
    _layer_axis(last, found)
    _share_log_scale(list(panels[: len(found) + 1]))
    handles = [
        Line2D([], [], color=c.net.colours[theme.suffix], linewidth=2.4, label=c.net.label)
        for c in found
    ]
    if words[1]:
        for word, line in zip(words, ("-", (0, (4, 2))), strict=True):
            handles.append(Line2D([], [], color=theme.muted, linestyle=line, label=word))
    _legend_below(figure, handles, theme)
    return figure


def predicted_and_measured(
    nets: Sequence[Net], found: Sequence[Sequence[LayerPrediction]], theme: Theme
) -> Figure:
    """Output variances, measured over predicted, on logarithmic axes with the line of identity.

    A few layers have their names at the points; of more, the marks are the darker the later.

    Args:
        nets: The nets, a panel for each.
        found: The predictions of their layers.
        theme: The colours.
    """
    columns = min(2, len(nets))
    rows = -(-len(nets) // columns)
    figure = new_figure(4.1 * rows + 0.4, theme, width=9.0 if columns == 2 else 6.0)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(nets) :]:
        axes.set_visible(False)
    values = [
        value
        for layers in found
        for one in layers
        for value in (one.measured, *(getattr(one, name) for name in PREDICTIONS))
        if value is not None and value > 0
    ]
    low, high = (min(values) / 1.8, max(values) * 1.8) if values else (0.1, 10.0)
    for axes, net, layers in zip(panels, nets, found, strict=False):
        is_named = len(layers) <= MAX_NAMED_LAYERS
        ramp = theme.ramp(net.colours[theme.suffix])
        axes.plot([low, high], [low, high], color=theme.muted, linewidth=1, zorder=1)
        for name, (_, marker) in PREDICTIONS.items():
            points = [
                (value, one.measured, ramp(1.0 if is_named else _shade(index, len(layers))))
                for index, one in enumerate(layers)
                if (value := getattr(one, name)) is not None and value > 0 and one.measured > 0
            ]
            is_last = name == "correlated"
            if points:
                predicted, measured, colours = zip(*points, strict=True)
                axes.scatter(
                    predicted,
                    measured,
                    s=34 if is_last else 24,
                    marker=marker,
                    facecolors=colours if is_last else "none",
                    edgecolors=colours,
                    linewidths=1.1,
                    zorder=3 if is_last else 2,
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_box_aspect(1)
        style_axes(
            axes,
            theme,
            title=net.label,
            xlabel="predicted output variance",
            ylabel="measured output variance",
            grid="both",
        )
        for axis in (axes.xaxis, axes.yaxis):
            _plain_log(axis, high / low)
        if is_named:
            _name_layers(axes, layers, theme)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=marker,
            markersize=6,
            markerfacecolor=theme.muted if name == "correlated" else "none",
            markeredgecolor=theme.muted,
            label=label,
        )
        for name, (label, marker) in PREDICTIONS.items()
    ]
    handles.append(Line2D([], [], color=theme.muted, linewidth=1, label="equal"))
    _legend_below(figure, handles, theme)
    return figure


def _shade(index: int, num_layers: int) -> float:
    """How much of its net's colour a layer has, by its depth."""
    return FAINTEST + (1 - FAINTEST) * index / max(1, num_layers - 1)


def _name_layers(axes: Axes, layers: Sequence[LayerPrediction], theme: Theme) -> None:
    """Names right of the points on the line of identity.

    Names of points that are close are set one below the other.
    """
    drawn = [one for one in layers if one.correlated > 0 and one.measured > 0]
    low, high = axes.get_ylim()
    points_per_log = PANEL_POINTS / math.log(high / low)
    lowest = math.inf
    for one in sorted(drawn, key=lambda layer: -layer.measured):
        place = math.log(one.measured / low) * points_per_log
        name_place = min(place - 3, lowest - 10)
        lowest = name_place
        axes.annotate(
            one.layer,
            (one.correlated, one.measured),
            xytext=(8, name_place - place),
            textcoords="offset points",
            va="center",
            fontsize=NOTE_SIZE,
            color=theme.text,
            path_effects=[withStroke(linewidth=2.5, foreground=theme.background)],
        )


def _layer_axis(axes: Axes, found: Sequence[Course]) -> None:
    names = max((course.net.layers for course in found), key=len)
    if len(names) <= MAX_NAMED_LAYERS:
        axes.set_xticks(range(1, len(names) + 1), names)
        if max(map(len, names)) > 6:
            axes.tick_params(axis="x", labelrotation=30)
        axes.set_xlim(0.5, len(names) + 0.5)
        axes.set_xlabel("")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("layer, in the order in which they run", fontsize=LABEL_SIZE)


def _share_log_scale(panels: Sequence[Axes]) -> None:
    """One logarithmic scale for all panels, from the positive values that are drawn."""
    drawn = [np.asarray(line.get_ydata(), float) for axes in panels for line in axes.get_lines()]
    values = np.concatenate(drawn) if drawn else np.empty(0)
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return
    low, high = values.min() / 1.5, values.max() * 1.5
    for axes in panels:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        _plain_log(axes.yaxis, high / low)


def _plain_log(axis, ratio: float) -> None:
    """A logarithmic axis with plain numbers."""
    subs = (1.0, 2.0, 5.0) if ratio < 100 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_below(figure: Figure, handles: Sequence[Line2D], theme: Theme) -> None:
    legend = figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=len(handles) if len(handles) <= 5 else -(-len(handles) // 2),
        handlelength=2.0,
        columnspacing=1.6,
    )
    style_legend(legend, theme)
