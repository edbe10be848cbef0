"""The figure of distributions before and behind PKKD's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from torchadder.report.kernel_space import Sample
from torchadder.report.statistics import laplace_density, normal_density
from torchadder.report.style import (
    LABEL_SIZE,
    NOTE_SIZE,
    Theme,
    new_figure,
    style_axes,
    style_legend,
)

COLUMNS = (
    ("before", "student"),
    ("before", "teacher"),
    ("kernel", "student"),
    ("kernel", "teacher"),
)
BINS = 50
WIDTH = 10.0
"""Of the figure, in inches: four panels stand side by side."""


def kernel_space(samples: Sequence[Sample], kind: str, theme: Theme) -> Figure:
    """Histograms of two nets before and behind the kernels, with both fitted densities.

    One row a layer, with its name at the left; student and teacher before the kernel at the left,
    behind it at the right. Under each title stands the Wasserstein-1 distance to either fit, in
    standard deviations.

    Args:
        samples: Samples of one or more layers.
        kind: "features" or "weights".
        theme: The colours.
    """
    found = {(s.layer, s.stage, s.side): s for s in samples if s.kind == kind}
    layers = list(dict.fromkeys(key[0] for key in found))
    figure = new_figure(2.5 * len(layers) + 0.5, theme, WIDTH)
    panels = figure.subplots(len(layers), len(COLUMNS), squeeze=False)
    for layer, row in zip(layers, panels, strict=True):
        for (stage, side), axes in zip(COLUMNS, row, strict=True):
            sample = found.get((layer, stage, side))
            if sample is None:
                axes.set_visible(False)
                continue
            _draw(axes, sample, theme)
        first = next(axes for axes in row if axes.get_visible())
        first.set_ylabel(layer, color=theme.text, fontsize=LABEL_SIZE, fontweight="bold")
    adder = any(s.is_adder for s in found.values())
    handles = [
        *([Patch(color=theme.nets["adder"], alpha=0.45, label="adder layer")] if adder else []),
        Patch(color=theme.nets["conv"], alpha=0.45, label="convolution"),
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
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    style_legend(legend, theme)
    return figure


def _draw(axes: Axes, sample: Sample, theme: Theme) -> None:
    values, fits, row = sample.values, sample.fits, sample.describe()
    low, high = np.quantile(values, (0.002, 0.99 if sample.stage == "kernel" else 0.998))
    margin = 0.05 * (high - low)
    span = (low - margin, high + margin)
    # Densities refer to all values, also to those beyond the edges of the panel.
    counts, edges = np.histogram(values, BINS, span)
    colour = theme.nets["adder" if sample.is_adder else "conv"]
    heights = counts / (len(values) * np.diff(edges))
    axes.stairs(heights, edges, fill=True, color=colour, alpha=0.45, linewidth=0)
    x = np.linspace(*span, 401)
    laplace, normal = laplace_density(x, fits.laplace), normal_density(x, fits.normal)
    axes.plot(x, laplace, color=theme.text, linewidth=1.8)
    axes.plot(x, normal, color=theme.text, linewidth=1.4, linestyle=(0, (4, 2)))
    axes.set_xlim(span)
    axes.set_ylim(0, 1.08 * max(curve.max() for curve in (heights, laplace, normal)))
    value = {"before": "weight" if sample.kind == "weights" else "output less its mean"}
    style_axes(axes, theme, xlabel=value.get(sample.stage, "kernel value"))
    behind = ", kernel" if sample.stage == "kernel" else ""
    axes.set_title(
        f"{sample.side}{behind}",
        loc="left",
        color=theme.text,
        fontsize=LABEL_SIZE,
        fontweight="bold",
        pad=20,
    )
    axes.text(
        0,
        1.035,
        f"Laplace {row['laplace_w1']:.3f}, normal {row['normal_w1']:.3f}",
        transform=axes.transAxes,
        color=theme.muted,
        fontsize=NOTE_SIZE,
    )
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    # A power of ten taken out of the labels would be drawn over the text beside the axis.
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.7g}"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.7g}"))
