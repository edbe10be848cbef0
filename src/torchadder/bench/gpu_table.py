"""The GPU benchmark's report as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from torchadder.bench.gpu_step import SIDES

MIB = 1 << 20


def gpu_tables(report: dict[str, Any]) -> list[Table]:
    """Layers, and the training step where it was measured.

    Args:
        report: What `torchadder.bench.gpu_report.measure_gpu` returned.
    """
    tables = [_layer_table(report["layers"])]
    if report["step"]:
        tables.append(_step_table(report["step"]))
    return tables


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i > 1 else "left", no_wrap=True)
    return table


def _layer_table(results: list[dict[str, Any]]) -> Table:
    """One row a part of a layer."""
    table = _table(
        "layer", "part", "adder ms", "conv2d ms", "x conv2d", "x TF32", "x bf16", "T pairs/s",
        "GHz", "of limit", "faster", "x memory",
    )  # fmt: skip
    for i, result in enumerate(results):
        first = i == 0 or results[i - 1]["shape"] != result["shape"]
        ratios = result["ratio_to_conv"]
        peaks = result["adder_peak_bytes"], result["conv_peak_bytes"]
        table.add_row(
            result["shape"] if first else "",
            result["part"],
            f"{result['adder_ms']:.4f}",
            f"{result['conv_ms']['fp32']:.4f}",
            *(_shown("{:.2f}", ratios.get(precision)) for precision in ("fp32", "tf32", "bf16")),
            f"{result['elements_per_second'] / 1e12:.2f}",
            _shown("{:.2f}", result["clock_hz"], 1e9),
            _shown("{:.0%}", result["share_of_limit"]),
            _shown("{:.0f}x", result["speedup_over_unfold"]),
            _shown("{:.2f}", peaks[0], peaks[1]) if all(peaks) else "",
        )
    return table


def _step_table(step: dict[str, Any]) -> Table:
    """One row a net, launched call by call and as a graph."""
    table = _table(
        f"{step['model']} step, batch {step['batch']}", "", "launched ms", "graph ms", "peak MiB"
    )
    for side in SIDES:
        peak = _shown("{:.0f}", step["peak_bytes"][side], MIB)
        eager, graph = step["eager_ms"][side], step["graph_ms"][side]
        table.add_row(side, "", f"{eager:.2f}", f"{graph:.2f}", peak)
    ratios = step["ratio_to_conv"]
    table.add_row(
        "adder / conv", "", f"{ratios['eager']:.2f}", f"{ratios['graph']:.2f}",
        _shown("{:.2f}", step["memory_ratio"]),
    )  # fmt: skip
    if step["unfold_ms"] is not None:
        table.add_row("unfold-and-broadcast", "", f"{step['unfold_ms']:.2f}")
    return table


def _shown(form: str, value: float | None, unit: float = 1) -> str:
    return "" if value is None else form.format(value / unit)
