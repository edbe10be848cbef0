"""What an exported net needs: memory, tables and operations, step by step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchadder.energy.report import render_table, short_number


@dataclass(frozen=True)
class StepCost:
    """One step of an exported net, for one image.

    Attributes:
        name: Of the step.
        kind: "adder", "conv", "add" and so on.
        table_bytes: Bytes of its constants.
        num_add: Additions and subtractions of bytes in its sums: two for each tap of an adder
            layer, one for each of a convolution or a mean.
        num_mul: Products of bytes in its sums; 0 for everything but convolutions.
        num_requantise: Products of the change of scale behind it, each of 32 bits by 32 bits.
    """

    name: str
    kind: str
    table_bytes: int
    num_add: int
    num_mul: int
    num_requantise: int


@dataclass(frozen=True)
class CReport:
    """An exported net.

    Attributes:
        folder: Where it is.
        name: Of its files and functions.
        ram_bytes: Static memory that it writes: activations, one window, the numbers of a pixel.
            The stack is not in it: a few hundred bytes.
        activation_bytes: The activations' share of it.
        least_activation_bytes: Activations that live at once: no placing could do with less.
        table_bytes: Constants; the code comes on top.
        steps: Cost of each step.
    """

    folder: Path
    name: str
    ram_bytes: int
    activation_bytes: int
    least_activation_bytes: int
    table_bytes: int
    steps: tuple[StepCost, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the folder."""
        values = dataclasses.asdict(self)
        del values["folder"]
        return values

    def __str__(self) -> str:
        rows = [
            (
                step.name,
                step.kind,
                f"{step.table_bytes:,}",
                short_number(step.num_add),
                short_number(step.num_mul),
                short_number(step.num_requantise),
            )
            for step in self.steps
        ]
        total = (
            "total",
            "",
            f"{sum(step.table_bytes for step in self.steps):,}",
            short_number(sum(step.num_add for step in self.steps)),
            short_number(sum(step.num_mul for step in self.steps)),
            short_number(sum(step.num_requantise for step in self.steps)),
        )
        columns = ("step", "kind", "bytes", "additions", "products", "requantisation")
        table = render_table(columns, rows, left=("step", "kind"), total=total)
        return (
            f"{table}\n"
            f"RAM    {self.ram_bytes:,} bytes, of which activations {self.activation_bytes:,} "
            f"(at once: {self.least_activation_bytes:,})\n"
            f"flash  {self.table_bytes:,} bytes of tables, and the code\n"
            f"{self.folder}: make -C {self.folder}"
        )
