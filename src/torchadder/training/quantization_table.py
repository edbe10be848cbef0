"""The accuracy of a net at several widths, as files under `results/`: CSV, Markdown and JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchadder.atomic import write_atomically
from torchadder.training.quantization import TABLE_BITS, Accuracy

COLUMNS = ("scheme", "bits", "accuracy", "sqnr_db", "weight_bytes")


def write_table(
    folder: str | os.PathLike[str], rows: Sequence[Accuracy], about: dict[str, Any]
) -> Path:
    """Writes `accuracy.csv`, `accuracy.md` and `accuracy.json` into a folder.

    Args:
        folder: Made if it is missing; files of the same names are replaced.
        rows: The table, the float net's row first.
        about: Where it comes from.

    Returns:
        The Markdown file.

    Raises:
        OSError: If a file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cells = [{name: getattr(row, name) for name in COLUMNS} for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *(row.values() for row in cells)])
    write_atomically(folder / "accuracy.csv", text.getvalue().encode())
    page = json.dumps(about | {"rows": cells}, indent=2) + "\n"
    write_atomically(folder / "accuracy.json", page.encode())
    target = folder / "accuracy.md"
    write_atomically(target, markdown(rows, about).encode())
    return target


def markdown(rows: Sequence[Accuracy], about: dict[str, Any]) -> str:
    """The table with one line for each scheme, and what it was measured with."""
    found = {(row.scheme, row.bits): row.accuracy for row in rows}
    schemes = list(dict.fromkeys(row.scheme for row in rows if row.scheme != "float"))
    full = next(row.accuracy for row in rows if row.scheme == "float")
    lines = [
        "| range of input and filters | float32 | "
        + " | ".join(f"{bits} bit" for bits in TABLE_BITS)
        + " |",
        "|---|" + "---:|" * (1 + len(TABLE_BITS)),
    ]
    for scheme in schemes:
        numbers = [full, *(found[scheme, bits] for bits in TABLE_BITS)]
        lines.append(f"| {scheme} | " + " | ".join(f"{100 * x:.2f} %" for x in numbers) + " |")
    origin = about["provenance"]
    hardware, versions = origin["hardware"], origin["versions"]
    lines += [
        "",
        f"Accuracy on {about['num_validation_images']:,} images of {Path(about['source']).name} "
        f"(split {about['split']}), calibrated on {about['num_calibration_images']:,} training "
        f"images, ranges by {about['range']}; first and last layer {about['first']} and "
        f"{about['last']}, with 8 bits at every width.",
        "",
        f"`{origin['command']}`, {origin['date'][:10]}, {hardware['cpu']}, torch "
        f"{versions['torch']}, torchadder {versions['torchadder']}.",
    ]
    return "\n".join(lines) + "\n"
