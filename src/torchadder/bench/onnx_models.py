"""Nets exported to ONNX against the same nets in torch: ``python -m torchadder.bench.onnx_models``.

onnxruntime runs `Adder2d` by its definition in the file, operator by operator, torch by our
kernels. The CNN of the same shape, exported likewise, shows what the runtime does with layers it
has a kernel for. All four are called in turns with the same number of threads, and compared by
their fastest calls, which what else the machine does disturbs least.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchadder import models
from torchadder.bench.timing import CpuTimer
from torchadder.export import to_onnx
from torchadder.provenance import provenance

NETS = (("lenet5_bn", 1), ("resnet20", 1), ("resnet20", 32), ("resnet18", 1))
"""Names of models, and images of a batch."""

LEAST_CALLS = 7


def measure(name: str, batch: int, *, seconds: float, threads: int) -> dict[str, Any]:
    """Milliseconds of a net in torch and under onnxruntime, as adder net and as CNN.

    Args:
        name: A model of :mod:`torchadder.models`.
        batch: Images a call.
        seconds: Time to spend on each side.
        threads: Threads of both.

    Returns:
        Milliseconds of the fastest call and of the median one, and the size of the adder net's
        file in bytes.
    """
    calls: dict[str, Callable[[], object]] = {}
    found: dict[str, Any] = {"model": name, "batch": batch, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        for conv in ("adder", "conv"):
            net = models.build(name, conv=conv).eval()
            shape = net.image_shape  # type: ignore[attr-defined]
            images = torch.randn(batch, *shape)  # type: ignore[arg-type]
            path = to_onnx(net, Path(folder) / f"{conv}.onnx", images)
            run = _session(path, images.numpy(), threads)
            if conv == "adder":
                found["file_bytes"] = path.stat().st_size
            calls[f"{conv}_torch"] = lambda net=net, images=images: net(images)
            calls[f"{conv}_onnxruntime"] = run
        with torch.inference_mode():
            times = _in_turns(calls, seconds)
    found["calls"] = len(times["adder_torch"])
    for side, taken in times.items():
        found |= {f"{side}_ms": min(taken), f"{side}_median_ms": statistics.median(taken)}
    return found


def _in_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call, one after the other, until each has had its seconds."""
    times: dict[str, list[float]] = {side: [] for side in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds * len(calls)
    while len(times["adder_torch"]) < LEAST_CALLS or time.perf_counter() < end:
        for side, call in calls.items():
            times[side].append(CpuTimer().read(call).ms)
    return times


def _session(path: Path, images: np.ndarray, threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would go on spinning on the cores that the next side is timed on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"input": images})


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    text = io.StringIO()
    print(
        "| net | batch | adder, torch | adder, onnxruntime | CNN, torch | CNN, onnxruntime | "
        "file |\n|---|---|---|---|---|---|---|",
        file=text,
    )
    for row in rows:
        times = " | ".join(
            f"{row[f'{side}_ms']:.1f} ms"
            for side in ("adder_torch", "adder_onnxruntime", "conv_torch", "conv_onnxruntime")
        )
        size = f"{row['file_bytes'] / 2**20:.1f} MB"
        print(f"| {row['model']} | {row['batch']} | {times} | {size} |", file=text)
    return text.getvalue()


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m torchadder.bench.onnx_models", description="Time exported nets."
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each side of a net")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = [
        measure(name, batch, seconds=arguments.seconds, threads=arguments.threads)
        for name, batch in NETS
    ]
    print(table(rows), end="")
    if arguments.json:
        import onnxruntime

        command = " ".join(["python -m torchadder.bench.onnx_models", *sys.argv[1:]])
        report = provenance(command)
        report["versions"]["onnxruntime"] = onnxruntime.__version__
        text = json.dumps(report | {"nets": rows}, indent=2)
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
