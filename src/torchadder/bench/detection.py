"""What an adder detector costs beside its conv twin: ``python -m torchadder.bench.detection``.

Training steps of the two are taken in turns in one process, so that what else the machine does hits
both sides alike. On a busy machine the time of the processor says more than that of the clock, as
long as one thread computes. The memory of inference is that of a fresh process for each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from torchadder import detection
from torchadder.bench.step import peak_resident_bytes
from torchadder.provenance import provenance

SIDES = {"adder": "BN", "conv": ""}
"""The two sides and the letters of their adder parts."""

NUM_CLASSES = 80
STEP_SIZE = (320, 320)
STEP_BATCH = 8
PEAK_SIZE = (800, 1344)


def build(backbone: str, side: str, size: tuple[int, int]) -> Any:
    """A detector of one side for images of a size, which it leaves as they are.

    Both sides have the same layers, an R-PAFPN with batch norm among them.
    """
    return detection.fcos(
        NUM_CLASSES,
        backbone=backbone,
        adder=SIDES[side],
        neck="r_pafpn",
        neck_norm="batch",
        min_size=min(size),
        max_size=max(size),
    )


def training_step(side: str, batch: int) -> Callable[[], object]:
    """A function that does one step (forward, losses, backward, SGD) on random images."""
    generator = torch.Generator().manual_seed(0)
    height, width = STEP_SIZE
    images = [torch.rand(3, height, width, generator=generator) for _ in range(batch)]
    scale = torch.tensor([width, height])
    corners = torch.rand(batch, 6, 2, generator=generator) * 0.6
    sizes = 0.1 + torch.rand(batch, 6, 2, generator=generator) * 0.3
    boxes = torch.cat([corners * scale, (corners + sizes) * scale], dim=2)
    labels = torch.randint(NUM_CLASSES, (batch, 6), generator=generator)
    targets = [
        {"boxes": own, "labels": classes} for own, classes in zip(boxes, labels, strict=True)
    ]
    net = build("resnet18", side, STEP_SIZE).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)

    def step() -> object:
        optimizer.zero_grad()
        torch.stack(list(net(images, targets).values())).sum().backward()
        return optimizer.step()

    return step


def measure_step(turns: int, batch: int = STEP_BATCH) -> dict[str, Any]:
    """Medians of both sides, and of the ratio of the two of a turn, by clock and by processor.

    Raises:
        ValueError: If turns or batch is below 1.
    """
    if turns < 1 or batch < 1:
        raise ValueError(f"turns and batch must be at least 1, got {turns} and {batch}")
    steps = {side: training_step(side, batch) for side in SIDES}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    processor: dict[str, list[float]] = {side: [] for side in SIDES}
    for step in steps.values():
        step()
    for turn in range(turns):
        for side in sorted(SIDES, reverse=turn % 2 == 0):
            start, begun = time.perf_counter(), time.process_time()
            steps[side]()
            times[side].append(1e3 * (time.perf_counter() - start))
            processor[side].append(1e3 * (time.process_time() - begun))
    pairs = zip(times["adder"], times["conv"], strict=True)
    return {
        "backbone": "resnet18",
        "batch": batch,
        "height": STEP_SIZE[0],
        "width": STEP_SIZE[1],
        "turns": turns,
        "adder_ms": statistics.median(times["adder"]),
        "conv_ms": statistics.median(times["conv"]),
        "ratio": statistics.median(one / other for one, other in pairs),
        "ratio_of_fastest": min(times["adder"]) / min(times["conv"]),
        "adder_processor_ms": statistics.median(processor["adder"]),
        "conv_processor_ms": statistics.median(processor["conv"]),
        "processor_ratio": statistics.median(processor["adder"])
        / statistics.median(processor["conv"]),
    }


def _peak_of_inference(side: str, threads: int) -> tuple[int | None, int | None]:
    """Peak of this process's resident set before and after one image."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = build("resnet50", side, PEAK_SIZE).eval()
    image = torch.rand(3, *PEAK_SIZE)
    before = peak_resident_bytes()
    with torch.inference_mode():
        net([image])
    return before, peak_resident_bytes()


def measure_peak(threads: int) -> dict[str, Any]:
    """Peak memory of inference of each side, in a fresh process each."""
    spawn = multiprocessing.get_context("spawn")
    peaks: dict[str, tuple[int | None, int | None]] = {}
    for side in SIDES:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            peaks[side] = pool.submit(_peak_of_inference, side, threads).result()
    (adder_before, adder), (conv_before, conv) = peaks["adder"], peaks["conv"]
    return {
        "backbone": "resnet50",
        "batch": 1,
        "height": PEAK_SIZE[0],
        "width": PEAK_SIZE[1],
        "adder_bytes": adder,
        "conv_bytes": conv,
        "adder_bytes_before": adder_before,
        "conv_bytes_before": conv_before,
        "ratio": adder / conv if adder and conv else None,
    }


def main() -> None:
    """Print the results, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m torchadder.bench.detection",
        description="Time a training step of Adder FCOS, and weigh its inference, beside FCOS.",
    )
    parser.add_argument("--turns", type=int, default=7, help="steps of each side")
    parser.add_argument("--batch", type=int, default=STEP_BATCH, help="images of a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    peak = measure_peak(arguments.threads)
    if peak["ratio"] is not None:
        print(
            f"{peak['backbone']}, B+N, one image of {peak['height']}x{peak['width']}: peak "
            f"{peak['adder_bytes'] / 2**20:.0f} MiB, conv {peak['conv_bytes'] / 2**20:.0f} MiB, "
            f"ratio {peak['ratio']:.3f}",
            flush=True,
        )
    step = measure_step(arguments.turns, arguments.batch)
    print(
        f"{step['backbone']}, B+N, training step of {step['batch']} images of "
        f"{step['height']}x{step['width']}: {step['adder_ms']:.0f} ms, conv "
        f"{step['conv_ms']:.0f} ms, ratio {step['ratio']:.3f} (of the fastest "
        f"{step['ratio_of_fastest']:.3f}); processor time {step['adder_processor_ms']:.0f} ms, "
        f"conv {step['conv_processor_ms']:.0f} ms, ratio {step['processor_ratio']:.3f}"
    )
    if arguments.json:
        command = " ".join(["python -m torchadder.bench.detection", *sys.argv[1:]])
        report = provenance(command) | {"peak": peak, "step": step}
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
