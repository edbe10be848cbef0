"""What quantisation did to each layer, as a table and as CSV."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LayerReport:
    """One layer, or one group of its filters.

    Attributes:
        layer: Its name.
        kind: "adder" or "conv".
        num_filters: Number of filters.
        bits: Width of the integers.
        low: Smallest real number of its input range.
        high: Largest.
        scale: Real number of one step of its input, and of its filters if it is an adder layer.
        zero_point: Integer of the real zero.
        clipped: Share of its input beyond the range, 0..1.
        clipped_weights: Share of its weights beyond it; without loss where filters are clamped.
        sqnr_db: `10 log10(sum y^2 / sum (y - y_int)^2)` of the layer's result after what was folded
            into it, y of the float net, everything before quantised, too; infinite if equal.
    """

    layer: str
    kind: str
    num_filters: int
    bits: int
    low: float
    high: float
    scale: float
    zero_point: int
    clipped: float
    clipped_weights: float
    sqnr_db: float


_COLUMNS = {
    "layer": "layer",
    "kind": "kind",
    "num_filters": "filters",
    "bits": "bits",
    "low": "low",
    "high": "high",
    "scale": "scale",
    "zero_point": "zero",
    "clipped": "clipped",
    "clipped_weights": "weights clipped",
    "sqnr_db": "SQNR dB",
}
_NUM_WORDS = 2  # columns that are no numbers


@dataclass(frozen=True)
class QuantizationReport:
    """What quantisation found out about a net; `str` is a table.

    Attributes:
        layers: One row for each layer or group of filters.
        num_images: Images of the calibration.
        sqnr_db: Of the logits; of all outputs together if there are several.
        weight_bytes: Memory of all filters, in bytes.
        float_weight_bytes: The same of the float32 net.
        float_layers: Names of layers and norms that compute in float between integers.
    """

    layers: list[LayerReport]
    num_images: int
    sqnr_db: float
    weight_bytes: int
    float_weight_bytes: int
    float_layers: tuple[str, ...] = ()

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes one row for each layer.

        Raises:
            OSError: If the file cannot be written.
        """
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for layer in self.layers:
                writer.writerow([getattr(layer, name) for name in _COLUMNS])

    def __str__(self) -> str:
        rows = [list(_COLUMNS.values()), *([*_cells(layer)] for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < _NUM_WORDS else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        if self.float_layers:
            lines.append(f"in float: {', '.join(self.float_layers)}")
        filters = "no filters"
        if self.float_weight_bytes:
            share = self.weight_bytes / self.float_weight_bytes
            filters = f"filters {self.weight_bytes:,} bytes, {share:.2f} of float32"
        return "\n".join(
            [
                *lines,
                f"{self.num_images:,} calibration images; logits {self.sqnr_db:.1f} dB; {filters}",
            ]
        )


def _cells(layer: LayerReport) -> list[str]:
    return [
        layer.layer,
        layer.kind,
        str(layer.num_filters),
        str(layer.bits),
        f"{layer.low:.3f}",
        f"{layer.high:.3f}",
        f"{layer.scale:.5f}",
        str(layer.zero_point),
        f"{100 * layer.clipped:.3f} %",
        f"{100 * layer.clipped_weights:.2f} %",
        f"{layer.sqnr_db:.1f}",
    ]


def decibels(signal: float, noise: float) -> float:
    """`10 log10(signal / noise)`; infinite without noise, minus infinite without a signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
