"""The figures of a robustness evaluation: accuracy over epsilon, and images before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from torch import Tensor

from torchadder.report.style import (
    LABEL_SIZE,
    NOTE_SIZE,
    THEMES,
    WIDTH,
    Theme,
    new_figure,
    save,
    style_axes,
    style_legend,
)
from torchadder.robustness import RobustnessReport
from torchadder.robustness.report import GRADIENTS, STATISTICS, Curve, Examples

DASHES = {"running": "solid", "batch": (0, (4, 2))}
KINDS = {"surrogate": "adder", "sign": "teacher", "true": "conv"}


def write_figures(report: RobustnessReport, class_names: Sequence[str], folder: Path) -> list[Path]:
    """Draws what the report has into a folder, in both themes.

    Args:
        report: The report.
        class_names: Names of the classes.
        folder: An existing folder.

    Returns:
        The files.
    """
    paths: list[Path] = []
    if report.curves:
        figures = [accuracy_over_epsilon(report.curves, theme) for theme in THEMES]
        paths += save(figures, folder, "accuracy_over_epsilon")
    if report.examples is not None:
        epsilon = report.settings.epsilon
        figures = [perturbed(report.examples, epsilon, class_names, theme) for theme in THEMES]
        paths += save(figures, folder, "perturbed_images")
    return paths


def accuracy_over_epsilon(curves: Sequence[Curve], theme: Theme) -> Figure:
    """Accuracy under PGD over the largest change of a pixel, a line for each setting."""
    figure = new_figure(4.0, theme)
    axes = figure.subplots()
    # 0 has no place on a logarithmic axis: it stands half an octave left of the first radius.
    first = min(curve.epsilons[1] for curve in curves)
    origin = 255 * first / 2
    ticks = {origin: "0"}
    for curve in curves:
        radii = [origin, *(255 * epsilon for epsilon in curve.epsilons[1:])]
        ticks |= {radius: f"{radius:.3g}" for radius in radii[1:]}
        axes.plot(
            radii,
            [100 * accuracy for accuracy in curve.accuracies],
            color=theme.nets[KINDS[curve.gradient]],
            linestyle=DASHES[curve.statistics],
            linewidth=2,
            marker="o",
            markersize=4,
            label=f"{STATISTICS[curve.statistics]}, {GRADIENTS[curve.gradient]}",
        )
    style_axes(
        axes,
        theme,
        title="Accuracy under PGD",
        xlabel="largest change of a pixel, in 255ths (logarithmic)",
        ylabel="images named right in %",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _nearest(ticks, value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-2, 102)
    style_legend(axes.legend(loc="best", handlelength=2.6), theme)
    return figure


def perturbed(
    examples: Examples, epsilon: float, class_names: Sequence[str], theme: Theme
) -> Figure:
    """Images, what an attack adds to them, magnified, and the result with what the net says."""
    count = len(examples.clean)
    size = WIDTH / max(count, 6)
    figure = new_figure(3 * size + 0.9, theme, width=max(size * count, 4.0))
    panels = figure.subplots(3, count, squeeze=False)
    change = examples.adversarial - examples.clean
    magnified = 0.5 + change / (2 * max(epsilon, 1e-12))
    titles = ("clean", f"change, x {0.5 / epsilon:.0f}", examples.label)
    for row, images in enumerate((examples.clean, magnified, examples.adversarial)):
        for column in range(count):
            axes = panels[row][column]
            _show(axes, images[column])
            if column == 0:
                axes.set_ylabel(titles[row], color=theme.muted, fontsize=LABEL_SIZE)
    for column in range(count):
        names = [class_names[int(v[column])] for v in (examples.labels, examples.named)]
        panels[0][column].set_title(names[0], color=theme.text, fontsize=NOTE_SIZE)
        fooled = names[0] != names[1]
        colour = theme.nets["adder"] if fooled else theme.text
        panels[2][column].set_xlabel(names[1], color=colour, fontsize=NOTE_SIZE)
    return figure


def _show(axes: Axes, image_CHW: Tensor) -> None:
    pixels = image_CHW.float().clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _nearest(ticks: dict[float, str], value: float) -> str:
    return ticks[min(ticks, key=lambda tick: abs(np.log(tick / value)))]
