"""The HTML page: a template, the numbers as text, the figures embedded. Measures nothing.

A page is one file that needs no other and no network: styles and figures are inside. The PNG files
lie beside it for other uses.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from torchadder.energy.report import energy_unit

NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes:
        paths: PNG files in the order of `style.THEMES`: light, dark.
        alt: What it shows, for those who cannot see it.
        caption: The text below.
    """

    paths: tuple[Path, ...]
    alt: str
    caption: str

    @property
    def name(self) -> str:
        """Name of the light file."""
        return self.paths[0].name

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        header = self.paths[0].read_bytes()[16:24]  # the IHDR chunk comes first in every PNG
        return int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")

    @property
    def light(self) -> str:
        """The light file as a data URI."""
        return _data_uri(self.paths[0])

    @property
    def dark(self) -> str:
        """The dark file as a data URI."""
        return _data_uri(self.paths[1])


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than text.

    Attributes:
        text: The text.
        kind: Kind of net whose colour marks the cell; empty for none.
        share: Length of a bar behind the text, 0..1; None for none.
    """

    text: str
    kind: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table on the page.

    Attributes:
        caption: What it holds.
        columns: Headers; those that begin with ">" head a column of numbers.
        rows: Cells; the first of a row is its header.
        footer: Totals; may be empty.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    footer: Sequence[str | Cell] = ()


def write_page(template: str, path: Path, **values: Any) -> Path:
    """Renders a template of this package into a file, which appears only when it is complete.

    Args:
        template: Name of the template.
        path: The file.
        **values: What the template asks for; a missing value is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("torchadder.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(**values)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def percent(share: float, num_images: int) -> str:
    """A share of images in percent, with as many digits as their number allows.

    >>> percent(0.968, 1000).replace(NO_BREAK, " "), percent(0.968, 10000).replace(NO_BREAK, " ")
    ('96.8 %', '96.80 %')
    """
    return f"{100 * share:.{percent_digits(num_images)}f}{NO_BREAK}%"


def percent_digits(num_images: int) -> int:
    """Digits after the point that a percentage of so many images has.

    >>> percent_digits(1000), percent_digits(50_000), percent_digits(60)
    (1, 3, 0)
    """
    return max(0, math.ceil(math.log10(max(num_images, 1))) - 2)


def energy(energy_pj: float) -> str:
    """An energy with its unit.

    >>> energy(1.916e6).replace(NO_BREAK, " "), energy(4_380).replace(NO_BREAK, " ")
    ('1.92 µJ', '4.38 nJ')
    """
    scale, unit = page_energy_unit(energy_pj)
    value = energy_pj / scale
    digits = 2 if round(value, 2) < 10 else 1 if round(value, 1) < 100 else 0
    return f"{value:.{digits}f}{NO_BREAK}{unit}"


def page_energy_unit(energy_pj: float, *, decimals: int = 0) -> tuple[float, str]:
    """As `torchadder.energy.report.energy_unit`, with a Greek letter.

    >>> page_energy_unit(1.916e6)
    (1000000.0, 'µJ')
    """
    scale, unit = energy_unit(energy_pj, decimals=decimals)
    return scale, unit.replace("u", "µ")


def duration(seconds: float) -> str:
    """A duration, as one says it.

    >>> duration(4.25), duration(75), duration(4000)
    ('4.2 s', '1 min 15 s', '1 h 6 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
