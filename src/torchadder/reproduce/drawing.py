"""The table as a figure: rows as dots at one budget, as curves over several."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from torchadder.report.style import (
    NOTE_SIZE,
    THEMES,
    TICK_SIZE,
    Theme,
    new_figure,
    save,
    style_axes,
    style_legend,
)
from torchadder.reproduce.results import Line, Results
from torchadder.wording import counted

ROW_HEIGHT = 0.3
"""Height of a row in inches."""

LINE_STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw(folder: Path, results: Results) -> tuple[Path, ...]:
    """Draws `table.png`, and `table-dark.png` for dark backgrounds, if any run is finished.

    Args:
        folder: Where to.
        results: What was measured.

    Returns:
        The files written.
    """
    if all(line.spread("accuracy") is None for line in results.lines):
        return ()
    function = curves if len(results.budgets) > 1 else dots
    return save([function(results, theme) for theme in THEMES], folder, "table")


def dots(results: Results, theme: Theme) -> Figure:
    """Accuracy of each row: every seed a small dot, the mean a large one, spread as a bar.

    A diamond is what the paper prints.
    """
    groups = _groups(results.lines)
    height = 1.2 + sum(ROW_HEIGHT * len(lines) + 0.5 for lines in groups.values())
    figure = new_figure(height, theme)
    panels = figure.subplots(
        len(groups),
        1,
        squeeze=False,
        height_ratios=[len(lines) + 1 for lines in groups.values()],
    )[:, 0]
    for axes, (group, lines) in zip(panels, groups.items(), strict=True):
        for position, line in enumerate(lines):
            colour = theme.nets[_kind(line)]
            accuracy = line.spread("accuracy")
            if accuracy is not None:
                axes.errorbar(
                    accuracy.mean,
                    position,
                    xerr=accuracy.deviation,
                    marker="o",
                    markersize=7,
                    color=colour,
                    elinewidth=2,
                    zorder=3,
                )
                axes.scatter(
                    accuracy.values,
                    [position] * len(accuracy.values),
                    s=9,
                    color=theme.text,
                    alpha=0.5,
                    linewidths=0,
                    zorder=4,
                )
            if line.row.printed is not None:
                axes.scatter(
                    line.row.printed.accuracy,
                    position,
                    marker="D",
                    s=42,
                    facecolors="none",
                    edgecolors=theme.muted,
                    linewidths=1.4,
                    zorder=2,
                )
        style_axes(axes, theme, title=group, grid="both")
        axes.set_yticks(range(len(lines)), [line.row.label for line in lines], fontsize=TICK_SIZE)
        axes.set_ylim(len(lines) - 0.5, -0.5)
    budget = counted(results.budgets[0], "epoch")
    name = results.table.figure.name
    panels[-1].set_xlabel(f"validation {name} in % after {budget}", color=theme.muted)
    handles = [
        Line2D([], [], marker="o", markersize=7, linewidth=2, color=theme.muted, label="mean"),
        Line2D(
            [], [], marker="o", markersize=3, linestyle="", color=theme.text, label="single seeds"
        ),
    ]
    if any(line.row.printed for line in results.lines):
        diamond = Line2D(
            [],
            [],
            marker="D",
            markersize=6,
            linestyle="",
            markerfacecolor="none",
            markeredgecolor=theme.muted,
            label="printed in the paper, at its own budget",
        )
        handles.append(diamond)
    _legend(figure, handles, theme)
    return figure


def curves(results: Results, theme: Theme) -> Figure:
    """Accuracy of each row over the budget: mean and spread over the seeds, one panel a net."""
    groups = _groups(results.lines)
    figure = new_figure(4.6 if len(groups) == 1 else 4.2 * len(groups), theme)
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, (group, lines) in zip(panels, groups.items(), strict=True):
        looks = itertools.cycle(itertools.product(LINE_STYLES, theme.classes))
        rows = dict.fromkeys(line.row for line in lines)
        for number, (row, (style, colour)) in enumerate(zip(rows, looks, strict=False)):
            known = [
                (line.epochs, accuracy)
                for line in lines
                if line.row == row and (accuracy := line.spread("accuracy")) is not None
            ]
            if not known:
                continue
            axes.errorbar(
                [epochs for epochs, _ in known],
                [accuracy.mean for _, accuracy in known],
                yerr=[accuracy.deviation or 0.0 for _, accuracy in known],
                color=colour,
                linestyle=style,
                linewidth=1.8,
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                capsize=2.5,
                elinewidth=1.2,
                label=row.label,
            )
        label = f"validation {results.table.figure.name} in %"
        style_axes(axes, theme, title=group, ylabel=label, grid="both")
        _budget_axis(axes, results.budgets)
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3)
        style_legend(legend, theme)
    panels[-1].set_xlabel("budget in epochs", color=theme.muted)
    return figure


def _budget_axis(axes: Axes, budgets: Sequence[int]) -> None:
    """A logarithmic axis with a mark at each budget."""
    axes.set_xscale("log")
    axes.set_xticks(budgets)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _groups(lines: Sequence[Line]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.row.group, []).append(line)
    return groups


def _kind(line: Line) -> str:
    """The kind of net that decides a row's colour."""
    recipe = line.runs[0].job.recipe
    if recipe.method == "detection":
        return "adder" if recipe.detection.adder else "conv"
    conv = recipe.model.conv
    kind = conv["type"] if isinstance(conv, dict) else conv
    return "pkkd" if kind == "adder" and recipe.method != "supervised" else kind


def _legend(figure: Figure, handles: Sequence[Line2D], theme: Theme) -> None:
    legend = figure.legend(handles=list(handles), loc="outside lower center", ncols=len(handles))
    style_legend(legend, theme)
    for text in legend.get_texts():
        text.set_fontsize(NOTE_SIZE)
