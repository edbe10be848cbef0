"""One look for all figures: colours, sizes, and axes without clutter.

Figures are made through matplotlib's object interface and never touch its global state. Each is
drawn in two themes; the page shows the one that the reader's system asks for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.typing import ColorType

DPI = 160
WIDTH = 9.0
"""Width of a full figure in inches; on the page it is as wide as the text."""

TITLE_SIZE, LABEL_SIZE, TICK_SIZE, NOTE_SIZE = 11.5, 10.0, 9.0, 8.5


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    The kinds of net take blue, vermilion, bluish green and reddish purple from the set of Okabe
    and Ito (2008), the ten classes the set of Petroff (arXiv 2107.02270): both can be told apart
    with the common forms of colour blindness. The dark theme lightens them.

    Attributes:
        suffix: What a file of this theme is called after its stem.
        background: Colour behind everything, that of the page's figures.
        text: Colour of titles.
        muted: Colour of axis labels and ticks.
        grid: Colour of grid lines.
        fill: A neutral surface.
        cell: A surface that hardly shows.
        nets: Colour of each kind of net: "conv", "adder", "pkkd", "teacher".
        classes: Colours of classes, used in turn.
    """

    suffix: str
    background: str
    text: str
    muted: str
    grid: str
    fill: str
    cell: str
    nets: dict[str, str]
    classes: tuple[str, ...]

    def readable_on(self, colour: ColorType) -> str:
        """The colour, of text or of the background, that stands out more from `colour`."""
        own = _luminance(colour)
        return max(
            (self.text, self.background),
            key=lambda other: abs(math.log((_luminance(other) + 0.05) / (own + 0.05))),
        )

    def ramp(self, colour: str) -> LinearSegmentedColormap:
        """A colour map from the background to `colour`."""
        return LinearSegmentedColormap.from_list("ramp", [self.background, colour])


LIGHT = Theme(
    suffix="",
    background="#ffffff",
    text="#1b1f24",
    muted="#57606a",
    grid="#e4e7eb",
    fill="#e3e7ec",
    cell="#f6f7f9",
    nets={"conv": "#0072b2", "adder": "#d55e00", "pkkd": "#008f68", "teacher": "#b0568a"},
    classes=(
        "#3f90da",
        "#ffa90e",
        "#bd1f01",
        "#94a4a2",
        "#832db6",
        "#a96b59",
        "#e76300",
        "#b9ac70",
        "#717581",
        "#5fc4c8",
    ),
)
DARK = Theme(
    suffix="-dark",
    background="#161b22",
    text="#e6e9ed",
    muted="#a3adb8",
    grid="#2b323b",
    fill="#2b333e",
    cell="#1b2129",
    nets={"conv": "#56b4e9", "adder": "#ff8a4c", "pkkd": "#2fc79a", "teacher": "#e39ac4"},
    classes=(
        "#5aa5ea",
        "#ffb733",
        "#ec5a41",
        "#b4c2c0",
        "#b878e4",
        "#c98d7b",
        "#ff8a3d",
        "#d2c68c",
        "#8d93a3",
        "#92dadd",
    ),
)
THEMES = (LIGHT, DARK)


def _luminance(colour: ColorType) -> float:
    """Relative luminance as in the Web Content Accessibility Guidelines, 0..1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def new_figure(height: float, theme: Theme, width: float = WIDTH) -> Figure:
    """An empty figure whose parts keep clear of each other.

    Args:
        height: Height in inches.
        theme: The colours.
        width: Width in inches.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.05, hspace=0.05)
    return Figure(figsize=(width, height), layout=layout, facecolor=theme.background)


def style_axes(
    axes: Axes,
    theme: Theme,
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    grid: str = "y",
) -> None:
    """Gives axes their title, labels and the house's look.

    Args:
        axes: The axes.
        theme: The colours.
        title: Title, set at the left.
        xlabel: Label of the horizontal axis, with its unit.
        ylabel: Label of the vertical axis, with its unit.
        grid: Lines along "x", "y", "both", or "" for none.
    """
    axes.set_facecolor(theme.background)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.tick_params(which="both", colors=theme.muted, labelsize=TICK_SIZE, length=0, pad=5)
    if grid:
        axes.grid(axis=grid, color=theme.grid, linewidth=0.8)  # type: ignore[arg-type]
        axes.set_axisbelow(True)
    axes.set_title(
        title, loc="left", color=theme.text, fontsize=TITLE_SIZE, fontweight="bold", pad=10
    )
    axes.set_xlabel(xlabel, color=theme.muted, fontsize=LABEL_SIZE)
    axes.set_ylabel(ylabel, color=theme.muted, fontsize=LABEL_SIZE)


def style_legend(legend: Legend, theme: Theme) -> None:
    """Gives a legend the house's look: no frame, muted text."""
    legend.set_frame_on(False)
    for text in legend.get_texts():
        text.set_color(theme.muted)
        text.set_fontsize(TICK_SIZE)
    legend.get_title().set_color(theme.muted)
    legend.get_title().set_fontsize(TICK_SIZE)


def write(figure: Figure, path: Path, **options: Any) -> None:
    """Writes a figure with all its texts as they are: names of classes and folders are no formulas.

    A character that the font lacks is drawn as a box, without a warning for each.

    Args:
        figure: The figure.
        path: The file.
        **options: Further arguments of `Figure.savefig`.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(path, dpi=DPI, metadata={"Software": "torchadder"}, **options)


def save(figures: Sequence[Figure], folder: Path, stem: str) -> tuple[Path, ...]:
    """Writes one figure per theme as `<stem>.png` and `<stem>-dark.png` into `folder`.

    Args:
        figures: The figure in each of `THEMES`.
        folder: An existing folder.
        stem: Name of the files, without theme and ending.
    """
    paths = []
    for figure, theme in zip(figures, THEMES, strict=True):
        path = folder / f"{stem}{theme.suffix}.png"
        write(figure, path)
        paths.append(path)
    return tuple(paths)
