"""The benchmark's JSON as the Markdown that README shows.

python -m torchadder.bench.markdown results/bench_cpu.json
python -m torchadder.bench.markdown results/bench_cuda.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torchadder.bench.gpu_markdown import gpu_speed_table
from torchadder.bench.int8_table import int8_markdown
from torchadder.bench.layers import PARTS


def speed_table(report: dict[str, Any]) -> str:
    """Conditions, one row a layer with the ratios to conv2d, and the training step.

    Args:
        report: What ``torchadder bench --json`` wrote, on either device or with ``--int8``.
    """
    if report.get("device") == "cuda":
        return gpu_speed_table(report)
    if "int8_layers" in report:
        return int8_markdown(report)
    hardware, versions = report["hardware"], report["versions"]
    peak = report["peak_pairs_per_second"]
    limit = "not measured" if peak is None else f"{peak['max_add'] / 1e9:.0f} G pairs/s"
    lines = [
        f"Times over those of torch's `conv2d` on {hardware['torch_threads']} threads of an "
        f"{hardware['cpu']} ({hardware['instruction_set']}), float32, torch {versions['torch']}, "
        f"{report['date'][:10]}: medians, both sides timed in turns. *G pairs/s* is the forward's "
        f"rate, *of peak* its share of what the processor does in registers ({limit}); "
        "*faster* is a step against unfold-and-broadcast, as in AdderNet's released code. "
        "`3x3 64->128 @56 /2 b8`: 3x3 filters, 64 channels in, 128 out, images of 56x56, stride 2, "
        "batch 8; a pair is one input value and one weight.",
        "",
        f"| layer | {' | '.join(PARTS)} | G pairs/s | of peak | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    layers: dict[str, dict[str, Any]] = {}
    for result in report["layers"]:
        layers.setdefault(result["shape"], {})[result["part"]] = result
    for name, parts in layers.items():
        ratios = " | ".join(f"{parts[part]['ratio_to_conv']:.2f}" for part in PARTS)
        rate, share = parts["forward"]["elements_per_second"], parts["forward"]["share_of_peak"]
        faster = parts["step"]["speedup_over_unfold"]
        speedup = "not measured" if faster is None else f"{faster:.0f}x"
        of_peak = "not measured" if share is None else f"{share:.0%}"
        lines.append(f"| {name} | {ratios} | {rate / 1e9:.0f} | {of_peak} | {speedup} |")
    step = report.get("step")
    if step:
        sentence = (
            f"A training step of {step['model']} at batch {step['batch']} takes "
            f"{step['adder_ms']:.0f} ms, {step['ratio_to_conv']:.2f} times its CNN twin's"
        )
        if step["speedup_over_unfold"]:
            sentence += (
                f", and is {step['speedup_over_unfold']:.0f} times faster than with "
                "unfold-and-broadcast"
            )
        if step["memory_ratio"]:
            sentence += f"; its peak memory is {step['memory_ratio']:.2f} times the twin's"
        lines += ["", sentence + "."]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Print the table of a report; 2 and one line on stderr where it cannot be read."""
    try:
        (file,) = argv
        report = json.loads(Path(file).read_text(encoding="utf-8"))
        if not {"device", "int8_layers", "layers"} & set(report):
            raise ValueError(f"{file} holds another kind of report")
    except (OSError, ValueError) as error:
        wanted = "wanted one file that `torchadder bench --json` wrote"
        print(f"{wanted}: {error}", file=sys.stderr)
        return 2
    print(speed_table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
