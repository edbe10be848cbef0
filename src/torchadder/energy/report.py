"""The result of a count: rows, totals, and their renderings as text, CSV and JSON values."""

import csv
import io
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rich.markup import escape

from torchadder.energy.costs import CostTable


@dataclass(frozen=True)
class LayerCount:
    """All calls of one kind of operator inside one module.

    Attributes:
        name: path of the module, as in `named_modules`; "" is the model itself.
        op: kind of operator, such as "conv2d", "adder2d", "matmul".
        output_shape: shape of the first call's output.
        calls: how often the operator was called.
        num_mul: multiplications of all calls.
        num_add: additions of all calls.
        weight_bytes: size of the module's own parameters, on the first row of that module.
        dtype: number format the energy was taken for.
        energy_pj: energy of all calls, in pJ.
        num_bytes: bytes that are read and written; of rows of the kind "memory" only.
    """

    name: str
    op: str
    output_shape: tuple[int, ...]
    calls: int
    num_mul: int
    num_add: int
    weight_bytes: int
    dtype: str
    energy_pj: float
    num_bytes: int = 0


@dataclass(frozen=True)
class EnergyReport:
    """Multiplications, additions and energy of one forward pass; `str()` gives a table.

    Attributes:
        model: name of the model or of its class.
        layers: one row for each module and kind of operator, in the order of their first calls.
        weight_bytes: size of all parameters of the model.
        costs: the table the energies come from.
        device: "meta" if shapes alone decided the count; otherwise the device of a run in which
            the counted operators returned zeros and everything else was computed.
        note: why the count needed more than shapes, "" if it did not.
        memory: name of the memory that rows of the kind "memory" were costed for, "" without any.
    """

    model: str
    layers: tuple[LayerCount, ...]
    weight_bytes: int
    costs: CostTable
    device: str = "meta"
    note: str = ""
    memory: str = ""

    @property
    def num_mul(self) -> int:
        """Number of multiplications."""
        return sum(layer.num_mul for layer in self.layers)

    @property
    def num_add(self) -> int:
        """Number of additions."""
        return sum(layer.num_add for layer in self.layers)

    @property
    def energy_pj(self) -> float:
        """Energy of everything that was counted, in pJ."""
        return sum(layer.energy_pj for layer in self.layers)

    @property
    def energy_mj(self) -> float:
        """Energy of everything that was counted, in mJ."""
        return self.energy_pj * 1e-9

    @property
    def num_bytes(self) -> int:
        """Bytes that are read and written, where memory traffic was counted."""
        return sum(layer.num_bytes for layer in self.layers)

    def energy_pj_of(self, op: str) -> float:
        """Energy of the rows of one kind, such as "requantise" or "memory", in pJ."""
        return sum(layer.energy_pj for layer in self.layers if layer.op == op)

    def to_dict(self) -> dict[str, Any]:
        """Return totals and rows as JSON values."""
        return {
            "model": self.model,
            "num_mul": self.num_mul,
            "num_add": self.num_add,
            "energy_pj": self.energy_pj,
            "energy_mj": self.energy_mj,
            "weight_bytes": self.weight_bytes,
            "num_bytes": self.num_bytes,
            "costs": self.costs.name,
            "memory": self.memory,
            "device": self.device,
            "note": self.note,
            "layers": [self._row(layer) for layer in self.layers],
        }

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the rows as CSV, and write them to `path` if one is given.

        Args:
            path: file to write; its folder must exist.

        Raises:
            OSError: if the file cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(
            text, [f.name for f in fields(LayerCount)] + ["energy_share"], lineterminator="\n"
        )
        writer.writeheader()
        for layer in self.layers:
            row = self._row(layer)
            writer.writerow({**row, "output_shape": "x".join(map(str, layer.output_shape))})
        if path is not None:
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(text.getvalue())
        return text.getvalue()

    def share(self, layer: LayerCount) -> float:
        """Return the part of the total energy that `layer` takes, between 0 and 1."""
        total = self.energy_pj
        return layer.energy_pj / total if total else 0.0

    def __str__(self) -> str:
        columns = ["name", "op", "output", "mul", "add", "weights", "energy", "share"]
        rows = [
            [
                layer.name or "(model)",
                layer.op if layer.calls == 1 else f"{layer.op} ({layer.calls} calls)",
                "x".join(map(str, layer.output_shape)),
                short_number(layer.num_mul),
                short_number(layer.num_add),
                f"{short_number(layer.weight_bytes)}B",
                short_energy(layer.energy_pj),
                f"{self.share(layer):.1%}",
            ]
            for layer in self.layers
        ]
        total = [
            *("total", "", ""),
            short_number(self.num_mul),
            short_number(self.num_add),
            f"{short_number(self.weight_bytes)}B",
            short_energy(self.energy_pj),
            "100.0%" if self.energy_pj else "-",
        ]
        if self.memory:
            columns.append("moved")
            for row, layer in zip(rows, self.layers, strict=True):
                row.append(f"{short_number(layer.num_bytes)}B" if layer.num_bytes else "")
            total.append(f"{short_number(self.num_bytes)}B")
        formats = ", ".join(dict.fromkeys(layer.dtype for layer in self.layers))
        lines = [
            f"{self.model}: {len(self.layers)} layers",
            render_table(columns, rows, left=("name", "op", "output"), total=total),
            f"costs: {self.costs.name}; {formats or 'nothing counted'}",
        ]
        if self.memory:
            lines.append(f"memory: {self.memory}")
        if self.note:
            lines.append(f"counted on {self.device}: {self.note}")
        return "\n".join(lines)

    def _row(self, layer: LayerCount) -> dict[str, Any]:
        row = {f.name: getattr(layer, f.name) for f in fields(LayerCount)}
        row["output_shape"] = list(layer.output_shape)
        row["energy_share"] = self.share(layer)
        return row


def render_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[str] = (),
    total: Sequence[str] | None = None,
) -> str:
    """Return a table as text, as wide as its cells need.

    Args:
        columns: headings.
        rows: cells.
        left: headings of the left-aligned columns; the others are numbers, aligned right.
        total: cells of a last row, set apart by a rule.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE if total else box.SIMPLE_HEAD, show_footer=total is not None)
    for index, heading in enumerate(columns):
        table.add_column(
            heading,
            total[index] if total else "",
            justify="left" if heading in left else "right",
            no_wrap=True,
        )
    for row in rows:
        table.add_row(*map(escape, row))
    text = io.StringIO()
    Console(file=text, width=10_000, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def short_number(value: float) -> str:
    """Return `value` with the unit letter that keeps it short, as the papers print counts.

    >>> short_number(69_124_096), short_number(640), short_number(214.7e9)
    ('69.12M', '640', '214.70G')
    """
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        # As it is printed: 999,996 is 1.00M, for as thousands it would be rounded to 1000.00K.
        if round(abs(value) / factor * 1e3, 2 if factor > 1e3 else 0) >= 1e3:
            return f"{value / factor:.2f}{letter}"
    return f"{value:.0f}"


def short_energy(energy_pj: float) -> str:
    """Return an energy in the unit that keeps it short.

    >>> short_energy(987.7e9), short_energy(318e6)
    ('987.7 mJ', '318.0 uJ')
    """
    scale, unit = energy_unit(energy_pj, decimals=1)
    return f"{energy_pj / scale:.1f} {unit}"


def energy_unit(energy_pj: float, *, decimals: int) -> tuple[float, str]:
    """Return the unit in which an energy is printed below 1000: its size in pJ, and its name.

    Args:
        energy_pj: the energy.
        decimals: digits after the point that a number of three digits before it has.

    >>> energy_unit(999_940, decimals=1), energy_unit(999_960, decimals=1)
    ((1000.0, 'nJ'), (1000000.0, 'uJ'))
    """
    for scale, unit in ((1e12, "J"), (1e9, "mJ"), (1e6, "uJ"), (1e3, "nJ")):
        if round(energy_pj / scale * 1e3, decimals) >= 1e3:
            return scale, unit
    return 1.0, "pJ"
