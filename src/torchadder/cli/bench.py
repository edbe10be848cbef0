"""`torchadder bench`: the adder operator against convolution, shape by shape."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json as json_format
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from torchadder.bench.gpu_report import measure_gpu
from torchadder.bench.gpu_rig import Rig, current_gpu
from torchadder.bench.gpu_table import gpu_tables
from torchadder.bench.int8_layers import INT8_SHAPES, measure_int8_layer
from torchadder.bench.int8_nets import NETS, measure_int8_net
from torchadder.bench.int8_table import int8_tables
from torchadder.bench.layers import LayerResult, measure_layer, measure_peak
from torchadder.bench.shapes import GPU_SHAPES, SHAPES, Shape
from torchadder.bench.step import StepResult, measure_step
from torchadder.ops import cpu_library_info
from torchadder.provenance import provenance

DEVICES = ("cpu", "cuda")

PAGE_WIDTH = 120
"""Columns of the table where the output is no terminal."""

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def bench(
    device: str = "cpu",
    json: str | None = None,
    shapes: str | None = None,
    seconds: float = 0.5,
    baseline: bool = True,
    step: bool = True,
    threads: int | None = None,
    int8: bool = False,
    nets: str | None = None,
) -> None:
    """Time forward, input gradient, weight gradient and step against conv2d; or int8 inference.

    Sides are timed in turns and compared by their medians. The unfold-and-broadcast version takes
    most of the time; --baseline false leaves it out. With --int8, layers of bytes are timed against
    conv2d in float32, convolutions of bytes and the adder layer in float32, and then whole nets.

    Args:
        device: "cpu" or "cuda", a CUDA or ROCm device; CUDA_VISIBLE_DEVICES chooses among several.
        json: File to write the results to, with hardware, versions, date and command; "-" for the
            standard output, where the table then goes to the standard error.
        shapes: Layers to time, separated by commas, such as "3x3 64->128 @56 /2 b8"; by default
            the layers of ResNets, on a GPU with 256 images and beside them one of a detector.
        seconds: Time for each side of each measurement.
        baseline: Whether to time the unfold-and-broadcast version, too.
        step: Whether to time a training step of ResNet-20, too.
        threads: Number of threads; by default torch's.
        int8: Whether to time integer inference instead, on the processor.
        nets: Nets that --int8 times, separated by commas; by default resnet20, resnet18 and
            resnet50; "none" for layers alone.

    Raises:
        ValueError: An argument is wrong.
        OSError: The JSON file cannot be written.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be {' or '.join(DEVICES)}, got {device!r}")
    if seconds <= 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if int8 and device != "cpu":
        raise ValueError(f"int8 is timed on device cpu, got {device!r}")
    if int8 and not (baseline and step):
        raise ValueError("baseline and step are for layers in float, int8 has neither")
    if nets is not None and not int8:
        raise ValueError(f"nets is for --int8, got {nets!r} without it")
    chosen_nets = _parse_nets(nets)
    rig = current_gpu() if device == "cuda" else None
    chosen = INT8_SHAPES if int8 else SHAPES if rig is None else GPU_SHAPES
    if shapes is not None:
        chosen = tuple(Shape.parse(part) for part in shapes.split(","))
    to_stdout = json == "-"
    path = None if json is None or to_stdout else Path(json)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    stream = sys.stderr if to_stdout else sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else PAGE_WIDTH)
    report: dict[str, Any] = provenance()
    if int8:
        _bench_int8(report, console, chosen, chosen_nets, seconds)
    elif rig is None:
        _bench_cpu(report, console, chosen, seconds, baseline, step)
    else:
        _bench_gpu(report, console, rig, chosen, seconds, baseline, step)
    text = json_format.dumps(report, indent=2)
    if to_stdout:
        print(text)
    elif path is not None:
        path.write_text(text + "\n", encoding="utf-8")
        console.print(f"written to {path}", highlight=False)


@contextlib.contextmanager
def _announcer(console: Console) -> Iterator[Callable[[str], None]]:
    """Tells what is measured now: on a terminal in one line that goes away."""
    with console.status("") as status:

        def announce(what: str) -> None:
            status.update(what)
            if not console.is_terminal:
                console.print(what, highlight=False)

        yield announce


def _bench_cpu(
    report: dict[str, Any],
    console: Console,
    shapes: Sequence[Shape],
    seconds: float,
    baseline: bool,
    step: bool,
) -> None:
    """Measure the processor, add to the report and print tables."""
    hardware = report["hardware"]
    console.print(
        f"{hardware['cpu']}, {hardware['torch_threads']} threads, {hardware['instruction_set']}, "
        f"torch {report['versions']['torch']}",
        highlight=False,
    )
    peak = measure_peak() if cpu_library_info()["backend"] == "cpu" else None
    if peak:
        console.print(
            f"limits in registers: {peak['max_add'] / 1e9:.1f} G max-add pairs/s, "
            f"{peak['multiply_add'] / 1e9:.1f} G multiply-adds/s",
            highlight=False,
        )
    report["peak_pairs_per_second"] = peak
    layers: list[LayerResult] = []
    whole = None
    with _announcer(console) as announce:
        for shape in shapes:
            announce(f"timing {shape.name}")
            layers += measure_layer(shape, seconds, baseline, peak["max_add"] if peak else None)
        report["layers"] = [result.to_dict() for result in layers]
        if step:
            announce("timing a training step of ResNet-20")
            whole = measure_step(seconds=10 * seconds, baseline=baseline)
            report["step"] = whole.to_dict()
    console.print(layer_table(layers))
    if whole is not None:
        console.print(describe_step(whole), highlight=False)


def _parse_nets(nets: str | None) -> dict[str, int]:
    """Size of the images by name of the net."""
    if nets is None:
        return NETS
    names = [name.strip() for name in nets.split(",") if name.strip() not in ("", "none")]
    for name in names:
        if name not in NETS:
            raise ValueError(f"nets must be among {', '.join(NETS)}, or none, got {name!r}")
    return {name: NETS[name] for name in names}


def _bench_int8(
    report: dict[str, Any],
    console: Console,
    shapes: Sequence[Shape],
    nets: dict[str, int],
    seconds: float,
) -> None:
    """Measure integer layers and nets, add to the report and print tables."""
    hardware = report["hardware"]
    runtime = importlib.util.find_spec("onnxruntime")
    version = importlib.metadata.version("onnxruntime") if runtime else None
    report["versions"]["onnxruntime"] = version
    console.print(
        f"{hardware['cpu']}, {hardware['torch_threads']} threads, {hardware['instruction_set']}, "
        f"torch {report['versions']['torch']}, onnxruntime {version or 'not installed'}",
        highlight=False,
    )
    report["int8_layers"], report["int8_nets"] = [], []
    with _announcer(console) as announce:
        for shape in shapes:
            announce(f"timing {shape.name}")
            report["int8_layers"].append(measure_int8_layer(shape, seconds).to_dict())
        for name, size in nets.items():
            announce(f"quantising and timing {name}")
            results = measure_int8_net(name, size, seconds=4 * seconds)
            report["int8_nets"] += [result.to_dict() for result in results]
    for table in int8_tables(report):
        console.print(table)


def _bench_gpu(
    report: dict[str, Any],
    console: Console,
    rig: Rig,
    shapes: Sequence[Shape],
    seconds: float,
    baseline: bool,
    step: bool,
) -> None:
    """Measure the GPU, add to the report and print tables."""
    hardware, versions = report["hardware"], report["versions"]
    console.print(
        f"{hardware['gpu']}, torch {versions['torch']}, Triton {versions.get('triton')}",
        highlight=False,
    )
    with _announcer(console) as announce:
        report |= measure_gpu(
            shapes, rig, seconds=seconds, baseline=baseline, step=step, announce=announce
        )
    for table in gpu_tables(report):
        console.print(table)


def layer_table(results: list[LayerResult]) -> Table:
    """The results as a table, one row a part of a layer."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column("part", no_wrap=True)
    columns = ("adder ms", "conv2d ms", "x conv2d", "G pairs/s", "of peak", "unfold ms", "faster")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for i, result in enumerate(results):
        first = i == 0 or results[i - 1].shape != result.shape
        share = "" if result.share_of_peak is None else f"{result.share_of_peak:.0%}"
        unfold = "" if result.unfold_ms is None else f"{result.unfold_ms:.0f}"
        faster = "" if result.speedup_over_unfold is None else f"{result.speedup_over_unfold:.0f}x"
        table.add_row(
            result.shape if first else "",
            result.part,
            f"{result.adder_ms:.2f}",
            f"{result.conv_ms:.2f}",
            f"{result.ratio_to_conv:.2f}",
            f"{result.elements_per_second / 1e9:.1f}",
            share,
            unfold,
            faster,
        )
    return table


def describe_step(result: StepResult) -> str:
    """The training step in a few lines."""
    lines = [
        f"{result.model} training step, batch {result.batch}: adder {result.adder_ms:.0f} ms, "
        f"conv {result.conv_ms:.0f} ms, ratio {result.ratio_to_conv:.2f}"
    ]
    if result.unfold_ms is not None:
        lines.append(
            f"  with the unfold-and-broadcast operator {result.unfold_ms:.0f} ms: ours is "
            f"{result.speedup_over_unfold:.0f} times faster"
        )
    if result.memory_ratio is not None:
        assert result.adder_peak_bytes
        assert result.conv_peak_bytes
        lines.append(
            f"  peak memory of the step: adder {result.adder_peak_bytes / 2**20:.0f} MiB, conv "
            f"{result.conv_peak_bytes / 2**20:.0f} MiB, ratio {result.memory_ratio:.2f}"
        )
    return "\n".join(lines)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of ``torchadder bench``."""
    parser.add_function_arguments(bench, as_positional=False)


def rewrite(argv: list[str]) -> list[str]:
    """Let ``--json`` without a file mean the standard output, and ``--int8`` alone yes."""
    meaning = {"--json": "--json=-", "--int8": "--int8=true"}
    words = [*argv, "--"]
    return [
        meaning[word] if word in meaning and after.startswith("--") else word
        for word, after in itertools.pairwise(words)
    ]


def run(args: Namespace) -> None:
    """Run ``torchadder bench``."""
    bench(**args.as_dict())
