"""The figures: each function takes numbers and a theme and returns a matplotlib `Figure`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)
from numpy.typing import NDArray

from torchadder.report.evaluation import LayerWeights, Mistake
from torchadder.report.statistics import fit_weights, laplace_density, normal_density
from torchadder.report.style import (
    LABEL_SIZE,
    NOTE_SIZE,
    TICK_SIZE,
    WIDTH,
    Theme,
    new_figure,
    style_axes,
    style_legend,
)

Item = TypeVar("Item")

MAX_MARKED_EPOCHS = 20
MAX_NUMBERED_CLASSES = 20
MAX_NAMED_CLASSES = 40
MIN_LOG_RATIO = 8
"""Largest over smallest value from which on an axis is logarithmic."""


@dataclass(frozen=True)
class Curve:
    """The course of a training.

    Attributes:
        label: What the legend calls it.
        kind: A key of `Theme.nets`.
        rows: One dict per epoch with `epoch` and the columns below, where there are any.
        train_loss: Name of the column with the training loss.
        prefix: What the other columns' names begin with.
    """

    label: str
    kind: str
    rows: Sequence[dict[str, float]]
    train_loss: str = "train_loss"
    prefix: str = ""


def learning_curves(curves: Sequence[Curve], theme: Theme) -> Figure:
    """Error and cross-entropy of nets over the epochs, training and validation.

    The error is the share of images named wrong, on a logarithmic scale: that is where nets differ
    that are all nearly perfect. A line that leaves the panel at its lower edge goes to zero.
    """
    figure = new_figure(4.0, theme)
    error_axes, loss_axes = figure.subplots(1, 2)
    for curve in curves:
        for split, loss in (("train", curve.train_loss), ("val", f"{curve.prefix}val_loss")):
            accuracies = _course(curve.rows, f"{curve.prefix}{split}_accuracy")
            errors = [(epoch, 100 * (1 - accuracy)) for epoch, accuracy in accuracies]
            is_train = split == "train"
            _draw_course(error_axes, curve, errors, theme, is_train=is_train)
            _draw_course(loss_axes, curve, _course(curve.rows, loss), theme, is_train=is_train)
    style_axes(error_axes, theme, title="Error", xlabel="epoch", ylabel="images named wrong in %")
    style_axes(loss_axes, theme, title="Loss", xlabel="epoch", ylabel="cross-entropy in nats")
    for axes in (error_axes, loss_axes):
        log_scale(axes)
        _epoch_axis(axes)
    handles = [
        *(Line2D([], [], color=theme.nets[c.kind], linewidth=2.4, label=c.label) for c in curves),
        Line2D([], [], color=theme.muted, linewidth=2.0, label="validation"),
        Line2D([], [], color=theme.muted, linewidth=1.3, linestyle=(0, (4, 2)), label="training"),
    ]
    _legend_below(figure, handles, theme)
    return figure


@dataclass(frozen=True)
class Cloud:
    """Two-dimensional features of a net.

    Attributes:
        title: Title of its panel.
        features: Shape (N, 2).
        labels: Classes, shape (N).
    """

    title: str
    features: NDArray[np.floating]
    labels: NDArray[np.integer]


def feature_clouds(clouds: Sequence[Cloud], class_names: Sequence[str], theme: Theme) -> Figure:
    """Two-dimensional penultimate features, one panel a net, one colour a class.

    Both axes of a panel have the same scale; the panels have scales of their own, as the nets do.
    """
    panel = WIDTH / len(clouds)
    figure = new_figure(panel + 0.5, theme)
    panels = figure.subplots(1, len(clouds), squeeze=False)[0]
    for axes, cloud in zip(panels, clouds, strict=True):
        for index in range(len(class_names)):
            points = cloud.features[cloud.labels == index]
            colour = theme.classes[index % len(theme.classes)]
            axes.scatter(*points.T, s=11, color=colour, alpha=0.75, linewidths=0)
        for index, name in enumerate(class_names):
            points = cloud.features[cloud.labels == index]
            if len(points):
                axes.annotate(
                    name,
                    np.median(points, axis=0),
                    ha="center",
                    va="center",
                    fontsize=12,
                    fontweight="bold",
                    color=theme.text,
                    path_effects=[withStroke(linewidth=3, foreground=theme.background)],
                )
        style_axes(
            axes, theme, title=cloud.title, xlabel="feature 1", ylabel="feature 2", grid="both"
        )
        _square(axes, cloud.features)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=6,
            color=theme.classes[index % len(theme.classes)],
            label=name,
        )
        for index, name in enumerate(class_names)
    ]
    _legend_below(figure, handles, theme, columns=len(class_names) if len(handles) <= 10 else 8)
    return figure


@dataclass(frozen=True)
class WeightRow:
    """Layers of one net, drawn in a row.

    Attributes:
        label: Name of the net; empty if the figure shows one net only.
        kind: A key of `Theme.nets`.
        layers: The layers.
    """

    label: str
    kind: str
    layers: Sequence[LayerWeights]


def weight_histograms(rows: Sequence[WeightRow], theme: Theme) -> Figure:
    """Histograms of the weights of layers, with both fitted densities.

    Each panel says by how much which fit has the higher likelihood.
    """
    columns = max(len(row.layers) for row in rows)
    figure = new_figure(2.5 * len(rows) + 0.5, theme)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for row, axes_of_row in zip(rows, panels, strict=True):
        for axes in axes_of_row[len(row.layers) :]:
            axes.set_visible(False)
        for column, (layer, axes) in enumerate(zip(row.layers, axes_of_row, strict=False)):
            fits = _draw_histogram(axes, layer, theme.nets[row.kind], theme)
            name = f"{row.label}: {layer.name}" if row.label else layer.name
            ylabel = "density" if column == 0 else ""
            style_axes(axes, theme, title=name, xlabel="weight", ylabel=ylabel)
            axes.title.set_visible(True)
            axes.set_title(
                name, loc="left", color=theme.text, fontsize=LABEL_SIZE, fontweight="bold", pad=20
            )
            axes.text(
                0,
                1.035,
                f"{fits.num_weights:,} weights; {fits.better} by {abs(fits.advantage):.3f} nats",
                transform=axes.transAxes,
                color=theme.muted,
                fontsize=NOTE_SIZE,
            )
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    kinds = {row.kind: row.label or "weights" for row in rows}
    handles = [
        *(Patch(color=theme.nets[kind], alpha=0.45, label=kinds[kind]) for kind in kinds),
        Line2D([], [], color=theme.text, linewidth=1.8, label="Laplace, maximum likelihood"),
        Line2D(
            [],
            [],
            color=theme.text,
            linewidth=1.4,
            linestyle=(0, (4, 2)),
            label="normal, maximum likelihood",
        ),
    ]
    _legend_below(figure, handles, theme)
    return figure


def confusion_matrix(
    counts: NDArray[np.integer], class_names: Sequence[str], kind: str, theme: Theme
) -> Figure:
    """Counts of true against named classes; mistakes are coloured, hits are grey.

    Args:
        counts: Rows are true, columns named classes.
        class_names: Names of the classes.
        kind: A key of `Theme.nets`, for the colour of the mistakes.
        theme: The colours.
    """
    num_classes = len(class_names)
    is_numbered = num_classes <= MAX_NUMBERED_CLASSES
    longest = max(len(name) for name in class_names)
    figure = new_figure(6.0, theme, width=6.4 if is_numbered else 7.2)
    axes = figure.subplots()
    mistakes = counts.astype(float)
    np.fill_diagonal(mistakes, np.nan)
    ramp = theme.ramp(theme.nets[kind]).with_extremes(bad=theme.fill, under=theme.cell)
    edges = {"edgecolors": theme.background, "linewidth": 1.5} if is_numbered else {}
    top = max(1.0, np.nanmax(mistakes)) if num_classes > 1 else 1.0
    span = max(top - 0.5, 0.5)
    mesh = axes.pcolormesh(np.ma.masked_invalid(mistakes), cmap=ramp, vmin=0.5, vmax=top, **edges)
    style_axes(axes, theme, xlabel="class named by the net", ylabel="true class", grid="")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    step = -(-num_classes // MAX_NAMED_CLASSES)
    ticks = np.arange(0, num_classes, step)
    names = list(class_names[::step])
    axes.set_xticks(
        ticks + 0.5, names, rotation=0 if longest <= 3 else 90, fontsize=_tick_size(len(ticks))
    )
    axes.set_yticks(ticks + 0.5, names, fontsize=_tick_size(len(ticks)))
    if not is_numbered:
        bar = figure.colorbar(mesh, ax=axes, shrink=0.6, label="images (hits in grey)")
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(colors=theme.muted, labelsize=TICK_SIZE, length=0)
        bar.ax.yaxis.label.set_color(theme.muted)
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        return figure
    for (row, column), count in np.ndenumerate(counts):
        if not count:
            continue
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{count:,}",
            ha="center",
            va="center",
            fontsize=LABEL_SIZE if num_classes <= 12 else 7.5,
            color=theme.readable_on(theme.fill if row == column else ramp((count - 0.5) / span)),
            fontweight="normal" if row == column else "bold",
        )
    return figure


def misclassified(mistakes: Sequence[Mistake], class_names: Sequence[str], theme: Theme) -> Figure:
    """Images that the net got wrong, with the true class, the one it named and its confidence."""
    columns = min(8, len(mistakes))
    rows = -(-len(mistakes) // columns)
    figure = new_figure(1.52 * rows + 0.1, theme, width=WIDTH * max(columns, 4) / 8)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, mistake in zip(panels, mistakes, strict=False):
        is_grey = mistake.image.shape[2] == 1
        axes.imshow(
            mistake.image[..., 0] if is_grey else mistake.image,
            cmap="gray_r" if theme.suffix == "" else "gray",
            vmin=0,
            vmax=1,
        )
        names = (
            f"{class_names[mistake.label]} \N{RIGHTWARDS ARROW} {class_names[mistake.predicted]}"
        )
        axes.set_title(
            f"{names}\n{mistake.confidence:.0%}".replace("%", " %"),
            color=theme.text,
            fontsize=LABEL_SIZE if len(names) <= 9 else 7.0,
            linespacing=1.3,
        )
    return figure


def distillation(
    rows: Sequence[dict[str, float]],
    parts: dict[str, str],
    scales: dict[str, str],
    theme: Theme,
) -> Figure:
    """Parts of the distillation loss and the kernel scales over the epochs.

    Args:
        rows: One dict per epoch.
        parts: Columns of the parts of the loss and what to call them.
        scales: Columns of the kernel scales and what to call them; may be empty.
        theme: The colours.
    """
    figure = new_figure(4.2, theme)
    groups = [group for group in (parts, scales) if group]
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    titles = {id(parts): "Parts of the loss", id(scales): "Kernel scales"}
    labels = {id(parts): "mean over the epoch", id(scales): "sigma"}
    for axes, group in zip(panels, groups, strict=True):
        # "<layer>, teacher" is the dashed line in the colour of "<layer>, student".
        subjects = list(dict.fromkeys(label.partition(",")[0] for label in group.values()))
        for column, label in group.items():
            index = subjects.index(label.partition(",")[0])
            axes.plot(
                *zip(*_course(rows, column), strict=True),
                color=theme.classes[index % len(theme.classes)],
                linestyle=(0, (4, 2)) if label.endswith(", teacher") else "-",
                linewidth=2,
                marker="o" if len(rows) <= MAX_MARKED_EPOCHS else "",
                markersize=3.5,
                label=label,
            )
        style_axes(axes, theme, title=titles[id(group)], xlabel="epoch", ylabel=labels[id(group)])
        log_scale(axes)
        _epoch_axis(axes)
        legend = axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=3 if len(group) <= 3 else 2,
            handlelength=2.4,
        )
        style_legend(legend, theme)
    return figure


def spread(layers: Sequence[Item], count: int) -> list[Item]:
    """At most `count` layers, evenly spread over the net, the first and the last among them."""
    if len(layers) <= count:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)]


def _course(rows: Sequence[dict[str, float]], column: str) -> list[tuple[float, float]]:
    """(epoch, value) of a column, where there is one."""
    return [(row["epoch"], row[column]) for row in rows if column in row]


def _draw_course(
    axes: Axes,
    curve: Curve,
    points: Sequence[tuple[float, float]],
    theme: Theme,
    *,
    is_train: bool,
) -> None:
    if not points:
        return
    is_marked = len(curve.rows) <= MAX_MARKED_EPOCHS
    axes.plot(
        *zip(*points, strict=True),
        color=theme.nets[curve.kind],
        linewidth=1.3 if is_train else 2.0,
        linestyle=(0, (4, 2)) if is_train else "-",
        marker="o" if is_marked else "",
        markersize=2.5 if is_train else 4.0,
        zorder=2 if is_train else 3,
    )


def _draw_histogram(axes: Axes, layer: LayerWeights, colour: str, theme: Theme):
    fits = fit_weights(layer.values)
    low, high = np.quantile(layer.values, (0.001, 0.999))
    reach = 1.15 * max(fits.normal.location - low, high - fits.normal.location)
    span = (fits.normal.location - reach, fits.normal.location + reach)
    bins = int(np.clip(np.sqrt(fits.num_weights), 12, 60))
    # Densities refer to all weights, also to the few beyond the edges of the panel.
    counts, edges = np.histogram(layer.values, bins, span)
    heights = counts / (fits.num_weights * np.diff(edges))
    axes.stairs(heights, edges, fill=True, color=colour, alpha=0.45, linewidth=0)
    x = np.linspace(*span, 401)
    axes.plot(x, laplace_density(x, fits.laplace), color=theme.text, linewidth=1.8)
    axes.plot(
        x, normal_density(x, fits.normal), color=theme.text, linewidth=1.4, linestyle=(0, (4, 2))
    )
    axes.set_xlim(span)
    axes.set_ylim(bottom=0)
    return fits


def _square(axes: Axes, points: NDArray[np.floating]) -> None:
    """Limits that give both axes the same scale in a square panel."""
    low, high = points.min(0), points.max(0)
    centre, half = (low + high) / 2, max(float((high - low).max()) / 2, 1e-6) * 1.06
    axes.set_xlim(centre[0] - half, centre[0] + half)
    axes.set_ylim(centre[1] - half, centre[1] + half)
    axes.set_box_aspect(1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _epoch_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    low, high = axes.get_xlim()
    if high - low < 1:
        axes.set_xlim(low - 0.5, high + 0.5)


def log_scale(axes: Axes) -> None:
    """A logarithmic scale with plain numbers, where the values differ enough to need one."""
    drawn = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    values = np.concatenate(drawn) if drawn else np.empty(0)
    values = values[values > 0]
    if not values.size or values.max() < MIN_LOG_RATIO * values.min():
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    decades = np.log10(values.max() / values.min())
    subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend_below(
    figure: Figure, handles: Sequence[Line2D | Patch], theme: Theme, columns: int | None = None
) -> None:
    legend = figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=columns or len(handles),
        handlelength=1.8,
        columnspacing=1.6,
    )
    style_legend(legend, theme)


def _tick_size(count: int) -> float:
    return TICK_SIZE if count <= 20 else 6.5
