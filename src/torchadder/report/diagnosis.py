"""The files of a diagnosis: tables and figures of what the kernels do to two nets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchadder.atomic import write_atomically
from torchadder.provenance import provenance
from torchadder.report import figures
from torchadder.report.kernel_space import Sample, compare_sides
from torchadder.report.kernel_space_figure import kernel_space
from torchadder.report.style import THEMES, save

MAX_LAYERS = 4
"""Layers in a figure; the tables hold all."""

KINDS = ("features", "weights")


def write_diagnosis(
    folder: Path, samples: Sequence[Sample], facts: dict[str, Any], command: str | None = None
) -> dict[str, Any]:
    """Writes `diagnosis.json`, `shapes.csv`, `student_teacher.csv` and two figures.

    Files of an earlier diagnosis are replaced.

    Args:
        folder: Where the files go; created.
        samples: From `torchadder.report.kernel_space.sample_layers`.
        facts: What to record about nets and images.
        command: The command to record; None: that of this process.

    Returns:
        What `diagnosis.json` holds: `facts`, `shapes` (`Sample.describe`), `student_teacher`
        (`compare_sides`), and where the numbers come from.

    Raises:
        ValueError: If there are no samples.
    """
    if not samples:
        raise ValueError("no layer to diagnose: the values of every layer are equal or not finite")
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "facts": facts,
        "shapes": [sample.describe() for sample in samples],
        "student_teacher": compare_sides(samples),
        **provenance(command),
    }
    write_atomically(folder / "diagnosis.json", json.dumps(report, indent=2) + "\n")
    for name in ("shapes", "student_teacher"):
        write_atomically(folder / f"{name}.csv", csv_text(report[name]))
    layers = figures.spread(list(dict.fromkeys(s.layer for s in samples)), MAX_LAYERS)
    shown = [sample for sample in samples if sample.layer in layers]
    for kind in KINDS:
        if any(sample.kind == kind for sample in shown):
            drawn = [kernel_space(shown, kind, theme) for theme in THEMES]
            save(drawn, folder, f"kernel_space_{kind}")
    return report


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Dicts of the same keys as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
