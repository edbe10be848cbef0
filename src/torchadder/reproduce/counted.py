"""Tables that are counted and not trained: how they are shown and written.

What is counted, and beside which printed figures, is the business of `detection_energy`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchadder.atomic import write_atomically
from torchadder.energy import CostTable
from torchadder.energy.report import render_table
from torchadder.provenance import provenance
from torchadder.reproduce.detection_energy import (
    NUM_CLASSES,
    SOURCE,
    CountedRow,
    Operations,
    count_groups,
)

COLUMNS = (
    *("parts", "mul", "counted", "", "add", "counted", "", "mJ", "counted", ""),
    *("saved", "int8 mJ", "saved", "by the paper's rule", "note"),
)
TEXT_COLUMNS = ("parts", "by the paper's rule", "note")
NONE = "-"

RULES = (
    f"*mul* and *add* (in G) and *mJ* are printed in {SOURCE}. *Counted* are the taps of "
    "convolutions (1 multiplication, 1 addition) and of adder layers (2 additions) of our detector "
    f"with {NUM_CLASSES} classes, on the image as the net sees it, and by how much they differ "
    "from print; = if they come out to the printed digits. *By the paper's rule*: mul / add / mJ "
    "of the same net on the image before it is padded (800x1333 for 800x1344), with 1 operation "
    "for each bias, 2 for each element of a batch norm and 1 for each element of a ReLU and each "
    "input of max pooling, taken for multiplications and for additions; the largest difference to "
    "print. It is our reading of how the figures were made; the paper does not tell. Energies are "
    "those of arithmetic at 45 nm in fp32 and int8; *saved* is the part of the conv detector's."
)


def reproduce_counted(folder: Path) -> list[CountedRow]:
    """Count the table and write `table.csv`, `table.md` and `provenance.json` to `folder`.

    Raises:
        OSError: if a file cannot be written.
    """
    rows = count_groups()
    folder.mkdir(parents=True, exist_ok=True)
    origin = provenance()
    write_atomically(folder / "table.csv", _csv([_values(row) for row in rows]))
    write_atomically(folder / "table.md", markdown(rows, origin))
    facts = {**origin, "source": SOURCE, "costs": CostTable().name, "num_classes": NUM_CLASSES}
    write_atomically(folder / "provenance.json", json.dumps(facts, indent=2) + "\n")
    return rows


def text(rows: Sequence[CountedRow]) -> str:
    """The table for a terminal."""
    notes = _notes(rows)
    parts = []
    for title, group in _groups(rows):
        cells = [_cells(row, notes) for row in group]
        parts.append(f"{title}\n{render_table(COLUMNS, cells, left=TEXT_COLUMNS)}")
    parts.append("\n".join(f"({i}) {note}" for i, note in enumerate(notes, start=1)))
    return "\n\n".join([*parts, RULES.replace("*", "")])


def markdown(rows: Sequence[CountedRow], origin: dict[str, Any]) -> str:
    """The page that `reproduce_counted` writes; `origin` is what `provenance` gives."""
    notes = _notes(rows)
    parts = ["# Operations and energy of adder detectors", RULES]
    rule = ["---" if name in TEXT_COLUMNS else "---:" for name in COLUMNS]
    for title, group in _groups(rows):
        lines = [COLUMNS, rule, *(_cells(row, notes) for row in group)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parts.append(f"## {title}\n\n{table}")
    parts.append("\n".join(f"{i}. {note}" for i, note in enumerate(notes, start=1)))
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    parts.append(f"`{origin['command']}`, {origin['date']}; {versions}. Counted on shapes alone.")
    return "\n\n".join(parts) + "\n"


def _groups(rows: Sequence[CountedRow]) -> list[tuple[str, list[CountedRow]]]:
    groups: dict[str, list[CountedRow]] = {}
    for row in rows:
        groups.setdefault(row.group.title, []).append(row)
    return list(groups.items())


def _notes(rows: Sequence[CountedRow]) -> list[str]:
    return list(dict.fromkeys(row.row.remark for row in rows if row.row.remark))


def _cells(row: CountedRow, notes: list[str]) -> tuple[str, ...]:
    counted, printed = row.counted, row.row.printed
    figures = (printed.num_mul, printed.num_add, printed.energy_mj) if printed else (NONE,) * 3
    parts = row.deviations(counted)
    differences = [NONE] * 3 if parts is None else [_percent(part) for part in parts]
    ours = (
        f"{counted.num_mul / 1e9:.2f}",
        f"{counted.num_add / 1e9:.2f}",
        f"{counted.energy_mj():.1f}",
    )
    beside = zip(figures, ours, differences, strict=True)
    is_adder = bool(row.row.arguments["adder"])
    return (
        row.row.label,
        *(cell for cells in beside for cell in cells),
        f"{row.saved():.1%}" if is_adder else NONE,
        f"{counted.energy_mj(torch.int8):.2f}",
        f"{row.saved(torch.int8):.1%}" if is_adder else NONE,
        _by_paper(row),
        f"({notes.index(row.row.remark) + 1})" if row.row.remark else "",
    )


def _by_paper(row: CountedRow) -> str:
    found = row.by_paper
    parts = None if found is None else row.deviations(found)
    if found is None or parts is None:
        return NONE
    digits = 1 if found.num_mul > 100e9 else 2
    worst = max(parts, key=abs)
    return (
        f"{found.num_mul / 1e9:.{digits}f} / {found.num_add / 1e9:.1f} / "
        f"{found.energy_mj():.1f} ({_percent(worst)})"
    )


def _percent(part: float) -> str:
    return f"{part:+.2%}".replace("-", "\N{MINUS SIGN}") if part else "="


def _values(row: CountedRow) -> dict[str, Any]:
    printed = row.row.printed
    height, width = row.group.size
    return {
        "detector": row.group.detector,
        "backbone": row.group.arguments["backbone"],
        "parts": row.row.label,
        "neck": row.row.arguments["neck"],
        "height": height,
        "width": width,
        "printed_mul_g": printed.num_mul if printed else "",
        "printed_add_g": printed.num_add if printed else "",
        "printed_mj": printed.energy_mj if printed else "",
        "num_mul": row.counted.num_mul,
        "num_add": row.counted.num_add,
        "energy_mj": f"{row.counted.energy_mj():.6g}",
        "saved": f"{row.saved():.6g}",
        "int8_energy_mj": f"{row.counted.energy_mj(torch.int8):.6g}",
        "int8_saved": f"{row.saved(torch.int8):.6g}",
        **_paper_values(row.by_paper),
        "remark": row.row.remark,
    }


def _paper_values(operations: Operations | None) -> dict[str, Any]:
    if operations is None:
        return {"paper_rule_mul": "", "paper_rule_add": "", "paper_rule_mj": ""}
    return {
        "paper_rule_mul": f"{operations.num_mul:.0f}",
        "paper_rule_add": f"{operations.num_add:.0f}",
        "paper_rule_mj": f"{operations.energy_mj():.6g}",
    }


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
