"""What `torchadder bench --device cuda --json` wrote, as the Markdown that README shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchadder.bench.layers import PARTS
from torchadder.bench.shapes import GPU_BATCH, GPU_SHAPES

NOT_MEASURED = "not measured"
NAMES = {
    "adder": "adder net",
    "conv": "CNN twin",
    "ratio": "ratio",
    "pkkd": "PKKD, both nets",
}


def gpu_speed_table(report: dict[str, Any]) -> str:
    """Conditions, one row a layer with the ratios to conv2d, and the training step.

    A figure that the report does not have stands as "not measured"; of a report that holds nothing
    but its device, every figure.

    Args:
        report: What ``torchadder bench --device cuda --json`` wrote.
    """
    lines = [
        _conditions(report),
        "",
        f"| layer | {' | '.join(PARTS)} | TF32 | bf16 | T pairs/s | of limit, forward "
        "| of limit, input gradient | faster | memory |",
        "|" + "---|" * 12,
    ]
    layers: dict[str, dict[str, Any]] = {}
    for result in report.get("layers", []):
        layers.setdefault(result["shape"], {})[result["part"]] = result
    for name in report.get("shapes", [shape.name for shape in GPU_SHAPES]):
        lines.append(f"| {name} | {' | '.join(_layer_cells(layers.get(name, {})))} |")
    return "\n".join([*lines, "", *_step_rows(report.get("step") or {})])


def _conditions(report: dict[str, Any]) -> str:
    hardware, versions = report.get("hardware", {}), report.get("versions", {})
    gpu = hardware.get("gpu")
    where = NOT_MEASURED
    if gpu:
        platform = "CUDA" if versions.get("cuda") else "ROCm"
        where = (
            f"{gpu} (driver {_known(hardware.get('gpu_driver'))}, {platform} "
            f"{_known(versions.get('cuda') or versions.get('hip'))}, Triton "
            f"{_known(versions.get('triton'))}, torch {_known(versions.get('torch'))}), "
            f"{_known(report.get('date'))[:10]}"
        )
    return (
        f"Hardware: {where}. Times over those of torch's `conv2d` in float32 without TF32: medians "
        "of graph replays over rotating inputs, all sides in turns; *TF32* and *bf16*: a step over "
        "`conv2d`'s step on tensor cores. *T pairs/s* is the forward's rate, *of limit* a rate "
        "over half a pair a lane and cycle, at the clock read while the kernel ran "
        f"({_limit(report.get('limit') or {})}). *faster* is a step against "
        "unfold-and-broadcast, as in AdderNet's released code, *memory* its peak over `conv2d`'s."
    )


def _limit(limit: dict[str, Any]) -> str:
    """The chip's limit and what a kernel without memory reaches of it."""
    by_sheet, in_registers = NOT_MEASURED, NOT_MEASURED
    if limit.get("pairs_per_second") is not None:
        by_sheet = (
            f"{limit['lanes']} lanes at {limit['clock_hz'] / 1e9:.2f} GHz: "
            f"{limit['pairs_per_second'] / 1e12:.2f} T pairs/s"
        )
    if limit.get("measured_pairs_per_second") is not None:
        in_registers = f"{limit['measured_pairs_per_second'] / 1e12:.2f} T pairs/s"
    return f"{by_sheet}; a kernel in registers: {in_registers}"


def _layer_cells(parts: dict[str, Any]) -> list[str]:
    forward, step = parts.get("forward", {}), parts.get("step", {})

    def ratio(part: str, precision: str) -> str:
        return _cell(parts.get(part, {}).get("ratio_to_conv", {}).get(precision), "{:.2f}".format)

    def share(part: str) -> str:
        return _cell(parts.get(part, {}).get("share_of_limit"), "{:.0%}".format)

    peaks = step.get("adder_peak_bytes"), step.get("conv_peak_bytes")
    return [
        *(ratio(part, "fp32") for part in PARTS),
        ratio("step", "tf32"),
        ratio("step", "bf16"),
        _cell(forward.get("elements_per_second"), lambda rate: f"{rate / 1e12:.2f}"),
        share("forward"),
        share("input gradient"),
        _cell(step.get("speedup_over_unfold"), "{:.0f}x".format),
        _cell(peaks[0] / peaks[1] if all(peaks) else None, "{:.2f}".format),
    ]


def _step_rows(step: dict[str, Any]) -> list[str]:
    """The training step, launched call by call and as a graph, and its memory."""
    title = f"{step.get('model', 'resnet20')} step, batch {step.get('batch', GPU_BATCH)}"
    ratios, peaks = step.get("ratio_to_conv", {}), step.get("peak_bytes", {})
    milliseconds = "{:.2f} ms".format
    rows: dict[str, tuple[dict[str, Any], Callable[[float], str]]] = {
        "launched call by call": (
            {**step.get("eager_ms", {}), "ratio": ratios.get("eager")},
            milliseconds,
        ),
        "CUDA graph": ({**step.get("graph_ms", {}), "ratio": ratios.get("graph")}, milliseconds),
        "peak memory": (
            {**peaks, "ratio": step.get("memory_ratio")},
            lambda peak: f"{peak / 2**20:.0f} MiB",
        ),
    }
    lines = [f"| {title} | {' | '.join(NAMES.values())} |", "|" + "---|" * (len(NAMES) + 1)]
    for name, (values, show) in rows.items():
        cells = [
            _cell(values.get(key), "{:.2f}".format if key == "ratio" else show) for key in NAMES
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    faster = step.get("speedup_over_unfold")
    if faster is not None:
        sentence = f"Launched alike, it is {faster:.0f} times faster than unfold-and-broadcast."
        lines += ["", sentence]
    return lines


def _cell(value: float | None, show: Callable[[float], str]) -> str:
    return NOT_MEASURED if value is None else show(value)


def _known(value: object) -> str:
    return NOT_MEASURED if value is None else str(value)
