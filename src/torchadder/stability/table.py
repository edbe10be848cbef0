"""`stability.csv`: one row for each quantity of each layer in each measured step."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("step", "layer", "quantity", "value")


def table_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as lines of CSV, floats with the digits that single precision has."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(
        [f"{cell:.7g}" if isinstance(cell, float) else cell for cell in row] for row in rows
    )
    return text.getvalue()


def read_table(path: Path) -> list[tuple[int, str, str, float]]:
    """The rows of a `stability.csv`.

    A last row without an end is left out: its process was killed while it wrote.

    Raises:
        ValueError: If the file is something else.
    """
    text = path.read_text(encoding="utf-8")
    lines = csv.reader(text[: text.rfind("\n") + 1].splitlines())
    if tuple(next(lines, ())) != COLUMNS:
        raise ValueError(f"{path}: the columns {', '.join(COLUMNS)} are wanted")
    try:
        return [(int(step), layer, name, float(value)) for step, layer, name, value in lines]
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
