"""The accuracy of a net at several widths, as files under `results/`: CSV, Markdown and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchadder.atomic import write_atomically
from torchadder.training.quantization import TABLE_BITS

FIGURES = {"accuracy": "Accuracy", "ap": "AP", "ap50": "AP50"}
"""Attributes of rows that say how good a net is, as far as they have them, and their names."""


def write_table(folder: str | os.PathLike[str], rows: Sequence[Any], about: dict[str, Any]) -> Path:
    """Writes `accuracy.csv`, `accuracy.md` and `accuracy.json` into a folder.

    Args:
        folder: Made if it is missing; files of the same names are replaced.
        rows: The table, the float net's row first: `Accuracy` of nets that name images or
            `Precision` of detectors.
        about: Where it comes from.

    Returns:
        The Markdown file.

    Raises:
        OSError: If a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cells = [dataclasses.asdict(row) for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([list(cells[0]), *(row.values() for row in cells)])
    write_atomically(folder / "accuracy.csv", text.getvalue().encode())
    page = json.dumps(about | {"rows": cells}, indent=2) + "\n"
    write_atomically(folder / "accuracy.json", page.encode())
    target = folder / "accuracy.md"
    write_atomically(target, markdown(rows, about).encode())
    return target


def markdown(rows: Sequence[Any], about: dict[str, Any]) -> str:
    """The table with one line for each scheme, and what it was measured with."""
    figures = [name for name in FIGURES if hasattr(rows[0], name)]
    found = {
        (row.scheme, row.bits): " / ".join(_percent(getattr(row, name)) for name in figures) + " %"
        for row in rows
    }
    schemes = list(dict.fromkeys(row.scheme for row in rows if row.scheme != "float"))
    lines = [
        "| range of input and filters | float32 | "
        + " | ".join(f"{bits} bit" for bits in TABLE_BITS)
        + " |",
        "|---|" + "---:|" * (1 + len(TABLE_BITS)),
    ]
    for scheme in schemes:
        numbers = [found["float", 32], *(found[scheme, bits] for bits in TABLE_BITS)]
        lines.append(f"| {scheme} | " + " | ".join(numbers) + " |")
    origin = about["provenance"]
    hardware, versions = origin["hardware"], origin["versions"]
    lines += [
        "",
        f"{' / '.join(FIGURES[name] for name in figures)} on "
        f"{about['num_validation_images']:,} images of {Path(about['source']).name} "
        f"(split {about['split']}), calibrated on {about['num_calibration_images']:,} training "
        f"images, ranges by {about['range']}; first and last layer {about['first']} and "
        f"{about['last']}, with 8 bits at every width.",
        "",
        f"`{origin['command']}`, {origin['date'][:10]}, {hardware['cpu']}, torch "
        f"{versions['torch']}, torchadder {versions['torchadder']}.",
    ]
    return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
