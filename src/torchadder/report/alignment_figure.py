"""The figure of how alike student and teacher become, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchadder.report.style import Theme, new_figure, style_axes, style_legend

MAX_MARKED_EPOCHS = 20


def alignment(rows: Sequence[dict[str, float]], columns: dict[str, str], theme: Theme) -> Figure:
    """Alignment of the two nets over the epochs, a line for each layer.

    Args:
        rows: One dict per epoch.
        columns: Columns with the alignment of layers and what to call them, first layer first.
        theme: The colours.
    """
    figure = new_figure(3.6, theme)
    axes = figure.subplots()
    for index, (column, label) in enumerate(columns.items()):
        points = [(row["epoch"], row[column]) for row in rows if column in row]
        axes.plot(
            *zip(*points, strict=True),
            color=theme.classes[index % len(theme.classes)],
            linewidth=2,
            marker="o" if len(rows) <= MAX_MARKED_EPOCHS else "",
            markersize=3.5,
            label=label,
        )
    style_axes(
        axes, theme, title="Student and teacher", xlabel="epoch", ylabel="alignment (linear CKA)"
    )
    lowest = min(row[column] for row in rows for column in columns if column in row)
    axes.set_ylim(min(0.0, lowest), 1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=2.0)
    style_legend(legend, theme)
    return figure
