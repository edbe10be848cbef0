"""Figures of detectors: the course of a training, precision over recall, boxes, zeros of features.

Functions take numbers and pictures and write files; how nets are trained is unknown here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from torchadder.report.style import (
    LIGHT,
    NOTE_SIZE,
    THEMES,
    TICK_SIZE,
    TITLE_SIZE,
    WIDTH,
    Theme,
    new_figure,
    save,
    style_axes,
    style_legend,
    write,
)

MAX_CURVES = 10
"""Classes whose curves are drawn one by one; of more, only the mean."""

LEVELS = ("c2", "c3", "c4", "c5", "p2", "p3", "p4", "p5")
"""Levels of backbone and neck in the order in which they are drawn."""


@dataclass(frozen=True)
class Panel:
    """An image with boxes on it.

    Attributes:
        title: What stands above it; empty for nothing.
        image: uint8 (3, H, W).
        boxes: x1, y1, x2, y2 in pixels, (M, 4), the most certain first.
        words: What stands at each box.
        classes: The class of each box, which decides its colour.
    """

    title: str
    image: Tensor
    boxes: np.ndarray
    words: Sequence[str]
    classes: Sequence[int]


def kind_of(config: Any) -> str:
    """The kind of net that decides a colour: "adder" if any part of a detector is, else "conv"."""
    adder = config["adder"] if isinstance(config, Mapping) else config.adder
    return "adder" if adder else "conv"


def draw_course(folder: Path, rows: Sequence[Mapping[str, float]], kind: str) -> tuple[Path, ...]:
    """Draws `results.png`: losses and average precision over the epochs.

    Args:
        folder: Where to.
        rows: One mapping an epoch, the rows of `metrics.csv`.
        kind: "conv" or "adder".

    Returns:
        The files written.
    """
    return save([_course(rows, kind, theme) for theme in THEMES], folder, "results")


def _course(rows: Sequence[Mapping[str, float]], kind: str, theme: Theme) -> Figure:
    figure = new_figure(4.0, theme)
    loss_axes, ap_axes = figure.subplots(1, 2)
    parts = [name for name in rows[0] if name.startswith("train_") and name.endswith("_loss")]
    lines = [("train_loss", "sum", theme.nets[kind])]
    lines += [
        (name, name.removeprefix("train_").removesuffix("_loss").replace("_", " "), colour)
        for name, colour in zip(parts, theme.classes, strict=False)
        if name != "train_loss"
    ]
    for column, label, colour in lines:
        _line(loss_axes, rows, column, label, colour)
    for column, label, style in (
        ("val_ap", "AP", "-"),
        ("val_ap50", "AP50", (0, (4, 2))),
        ("val_ap75", "AP75", (0, (1, 1.5))),
    ):
        _line(ap_axes, rows, column, label, theme.nets[kind], scale=100, style=style)
    style_axes(loss_axes, theme, title="Training loss", xlabel="epoch", ylabel="loss")
    style_axes(ap_axes, theme, title="Validation", xlabel="epoch", ylabel="average precision in %")
    for axes in (loss_axes, ap_axes):
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        style_legend(axes.legend(), theme)
    return figure


def _line(
    axes: Axes,
    rows: Sequence[Mapping[str, float]],
    column: str,
    label: str,
    colour: str,
    *,
    scale: float = 1.0,
    style: Any = "-",
) -> None:
    points = [(row["epoch"], scale * row[column]) for row in rows if column in row]
    if points:
        marker = "o" if len(points) == 1 else ""
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linestyle=style,
            marker=marker,
            linewidth=2,
            label=label,
        )


def draw_precision(
    folder: Path,
    precision: Mapping[str, np.ndarray],
    average: Mapping[str, float | None],
    kind: str,
) -> tuple[Path, ...]:
    """Draws `pr_curve.png`: precision over recall at an overlap of one half.

    Args:
        folder: Where to.
        precision: Precision at the recalls 0, 0.01, ..., 1 by class.
        average: AP50 by class.
        kind: "conv" or "adder".

    Returns:
        The files written; none if no class has an object.
    """
    if not precision:
        return ()
    figures = [_precision(precision, average, kind, theme) for theme in THEMES]
    return save(figures, folder, "pr_curve")


def _precision(
    precision: Mapping[str, np.ndarray],
    average: Mapping[str, float | None],
    kind: str,
    theme: Theme,
) -> Figure:
    figure = new_figure(4.6, theme)
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    if len(precision) <= MAX_CURVES:
        for (name, values), colour in zip(precision.items(), theme.classes, strict=False):
            label = f"{name} ({100 * (average[name] or 0):.1f})"
            axes.plot(recall, values, color=colour, linewidth=1.3, label=label)
    mean = np.mean(list(precision.values()), axis=0)
    label = f"mean of {len(precision)} classes ({100 * mean.mean():.1f})"
    axes.plot(recall, mean, color=theme.nets[kind], linewidth=3, label=label)
    style_axes(axes, theme, xlabel="recall", ylabel="precision", grid="both")
    axes.set_title(
        "Precision at an overlap of 0.5 (AP50 in %)",
        loc="left",
        color=theme.text,
        fontsize=TITLE_SIZE,
        fontweight="bold",
        pad=10,
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    style_legend(axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5)), theme)
    return figure


def draw_panels(path: Path, panels: Sequence[Panel], *, columns: int | None = None) -> None:
    """Draws images with their boxes side by side.

    Args:
        path: The file.
        panels: The images.
        columns: Images of a row; None: all in one.
    """
    columns = min(columns or len(panels), len(panels))
    num_rows = -(-len(panels) // columns)
    height, width = (int(side) for side in panels[0].image.shape[-2:])
    panel_width = max(WIDTH / columns, 3.0)
    figure = new_figure(
        num_rows * (panel_width * height / width + 0.35), LIGHT, width=panel_width * columns
    )
    grid = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, panel in zip(grid, panels, strict=False):
        axes.imshow(panel.image.permute(1, 2, 0).numpy(), interpolation="nearest")
        if panel.title:
            axes.set_title(panel.title, loc="left", fontsize=TICK_SIZE, color=LIGHT.text)
        marks = list(zip(panel.boxes, panel.words, panel.classes, strict=True))
        for box, words, label in reversed(marks):  # the most certain one on top
            _box(axes, box, words, LIGHT.classes[label % len(LIGHT.classes)])
    _save_trimmed(figure, path)


def _box(axes: Axes, box: np.ndarray, words: str, colour: str) -> None:
    """A box; its words stand on its upper edge, or below that where the image has no room above."""
    top = min(axes.get_ylim())
    bottom = max(axes.get_ylim())
    x1, y1, x2, y2 = (float(value) for value in box)
    axes.add_patch(
        Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2)
    )
    if words:
        axes.text(
            x1 - 0.5,
            y1 - 0.5,
            words,
            va="top" if y1 - top < 0.04 * (bottom - top) else "bottom",
            fontsize=NOTE_SIZE - 2,
            color=LIGHT.readable_on(colour),
            clip_on=True,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.0},
        )


def draw_zeros(
    path: Path, image: Tensor, maps: Mapping[tuple[str, str], Mapping[str, Tensor]]
) -> None:
    """Draws where the features of detectors are zero, a row each, beside the image.

    Every level is drawn as large as the image.

    Args:
        path: The file.
        image: uint8 (3, H, W).
        maps: By (title, kind of net) and level the share of channels that are zero at each place
            (h, w), as of `torchadder.detection.zero_maps`.
    """
    levels = [level for level in LEVELS if level in next(iter(maps.values()))]
    height, width = (int(side) for side in image.shape[-2:])
    side = 2.0
    figure = new_figure(
        len(maps) * (side * height / width + 0.55) + 0.3, LIGHT, width=side * (len(levels) + 1)
    )
    grid = figure.subplots(len(maps), len(levels) + 1, squeeze=False)
    for row, ((title, kind), shares) in zip(grid, maps.items(), strict=True):
        for axes in row:
            axes.set(xticks=[], yticks=[])
            for edge in axes.spines.values():
                edge.set(color=LIGHT.muted, linewidth=0.6)
        row[0].imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        row[0].set_title(title, loc="left", fontsize=TICK_SIZE, color=LIGHT.text)
        drawn = None
        for axes, level in zip(row[1:], levels, strict=True):
            share = shares[level].numpy()
            drawn = axes.imshow(
                share,
                cmap=LIGHT.ramp(LIGHT.nets[kind]),
                vmin=0,
                vmax=1,
                interpolation="nearest",
                extent=(0, width, height, 0),
            )
            words = f"{level.upper()}: {100 * share.mean():.0f} % zeros"
            axes.set_title(words, loc="left", fontsize=TICK_SIZE, color=LIGHT.muted)
        assert drawn is not None, "there is at least one level"
        bar = figure.colorbar(drawn, ax=list(row), pad=0.01)
        bar.set_label("share that is zero", color=LIGHT.muted, fontsize=NOTE_SIZE)
        bar.ax.tick_params(colors=LIGHT.muted, labelsize=NOTE_SIZE)
    _save_trimmed(figure, path)


def _save_trimmed(figure: Figure, path: Path) -> None:
    """Writes a figure of pictures without the white around them."""
    write(figure, path, bbox_inches="tight", pad_inches=0.1)
