"""Nets exported to ONNX against the same nets in torch: ``python -m torchadder.bench.onnx_models``.

onnxruntime runs `Adder2d` by its definition in the file, operator by operator, torch by our
kernels. The CNN of the same shape, exported likewise, shows what the runtime does with layers it
has a kernel for. All four are called in turns with the same number of threads.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from torchadder import models
from torchadder.bench.timing import median_ms
from torchadder.export import to_onnx
from torchadder.provenance import provenance

NETS = (("lenet5_bn", 1), ("resnet20", 1), ("resnet20", 32), ("resnet18", 1))
"""Names of models, and images of a batch."""


def measure(name: str, batch: int, *, seconds: float, threads: int) -> dict[str, Any]:
    """Milliseconds of a net in torch and under onnxruntime, as adder net and as CNN.

    Args:
        name: A model of :mod:`torchadder.models`.
        batch: Images a call.
        seconds: Time to spend on each side.
        threads: Threads of both.

    Returns:
        Milliseconds, the size of the adder net's file, and by how much the resident set grew when
        onnxruntime first ran the adder net, in bytes.
    """
    calls: dict[str, Callable[[], object]] = {}
    found: dict[str, Any] = {"model": name, "batch": batch, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        for conv in ("adder", "conv"):
            net = models.build(name, conv=conv).eval()
            shape = net.image_shape  # type: ignore[attr-defined]
            images = torch.randn(batch, *shape)  # type: ignore[arg-type]
            path = to_onnx(net, Path(folder) / f"{conv}.onnx", images)
            run = _session(path, images, threads)
            if conv == "adder":
                found["file_bytes"] = path.stat().st_size
                found["onnxruntime_grown_bytes"] = grown_bytes(run)
            calls[f"{conv}_torch"] = lambda net=net, images=images: net(images)
            calls[f"{conv}_onnxruntime"] = run
        with torch.inference_mode():
            times = median_ms(calls, seconds)
    return found | {f"{side}_ms": ms for side, ms in times.items()}


def _session(path: Path, images: torch.Tensor, threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"input": images.numpy()}
    return lambda: session.run(None, feed)


def grown_bytes(call: Callable[[], object]) -> int | None:
    """By how much the resident set was larger at its peak during a call than before it.

    None where the system does not tell: Linux keeps the peak, and forgets it when asked to.
    """
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not forget.exists():
        return None
    forget.write_text("5", encoding="ascii")
    before = _kilobytes(status, "VmRSS")
    call()
    return 1024 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status: Path, key: str) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    text = io.StringIO()
    print(
        "| net | batch | adder, torch | adder, onnxruntime | CNN, torch | CNN, onnxruntime | "
        "memory | file |\n|---|---|---|---|---|---|---|---|",
        file=text,
    )
    for row in rows:
        times = " | ".join(
            f"{row[f'{side}_ms']:.1f} ms"
            for side in ("adder_torch", "adder_onnxruntime", "conv_torch", "conv_onnxruntime")
        )
        grown = row["onnxruntime_grown_bytes"]
        memory = "not measured" if grown is None else f"{grown / 2**20:.1f} MB"
        sizes = f"{memory} | {row['file_bytes'] / 2**20:.1f} MB"
        print(f"| {row['model']} | {row['batch']} | {times} | {sizes} |", file=text)
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
