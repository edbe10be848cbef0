"""Tables of `torchadder bench --int8`, for a terminal and for a page, from its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

LAYER_COLUMNS = (
    "layer", "ours ms", "conv2d ms", "x conv2d", "our float ms", "int8 conv ms", "torch", "onnxrt",
    "x int8 conv", "G pairs/s",
)  # fmt: skip
NET_COLUMNS = (
    "net", "batch", "ours ms", "CNN ms", "x CNN", "our float ms", "int8 CNN ms", "x int8 CNN",
    "MB", "float MB",
)  # fmt: skip


def layer_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a layer: what the columns say, in milliseconds and as ratios."""
    return [
        (
            layer["shape"],
            _ms(layer["int8_ms"]),
            _ms(layer["conv_ms"]),
            f"{layer['ratio_to_conv']:.2f}",
            _ms(layer["adder_ms"]),
            _ms(layer["int8_conv_ms"]),
            _ms(layer["torch_int8_ms"]),
            _ms(layer["onnxruntime_int8_ms"]),
            f"{layer['ratio_to_int8_conv']:.2f}",
            f"{layer['pairs_per_second'] / 1e9:.0f}",
        )
        for layer in report["int8_layers"]
    ]


def net_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a net and batch size."""
    return [
        (
            f"{net['net']} @{net['size']}",
            str(net["batch"]),
            _ms(net["int8_ms"]),
            _ms(net["conv_ms"]),
            f"{net['ratio_to_conv']:.2f}",
            _ms(net["adder_ms"]),
            _ms(net["int8_conv_ms"]),
            f"{net['ratio_to_int8_conv']:.2f}",
            f"{net['weight_bytes'] / 1e6:.2f}",
            f"{net['float_weight_bytes'] / 1e6:.2f}",
        )
        for net in report["int8_nets"]
    ]


def int8_tables(report: dict[str, Any]) -> list[Table]:
    """The layers and the nets, for a terminal."""
    tables = [_table(LAYER_COLUMNS, layer_rows(report))]
    if report["int8_nets"]:
        tables.append(_table(NET_COLUMNS, net_rows(report)))
    return tables


def int8_markdown(report: dict[str, Any]) -> str:
    """Conditions and both tables, for a page.

    Args:
        report: What ``torchadder bench --int8 --json`` wrote.
    """
    hardware, versions = report["hardware"], report["versions"]
    lines = [
        f"{hardware['torch_threads']} threads of an {hardware['cpu']} "
        f"({hardware['instruction_set']}), torch {versions['torch']}, onnxruntime "
        f"{versions['onnxruntime'] or 'not installed'}, {report['date'][:10]}: medians, all sides "
        "timed in turns.",
        "",
        *_markdown(LAYER_COLUMNS, layer_rows(report)),
    ]
    if report["int8_nets"]:
        lines += ["", *_markdown(NET_COLUMNS, net_rows(report))]
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    if value is None:
        return "not installed"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        "|---|" + "---:|" * (len(columns) - 1),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
