"""What an attack costs beside training passes: ``python -m torchadder.bench.attacks``.

PGD-7 is timed against eight forward and backward passes with the gradients of all weights, in turns
in one process, so that what else the machine does hits both sides alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from torchadder import models
from torchadder.bench.step import IMAGE
from torchadder.provenance import provenance
from torchadder.robustness import pgd

ITERATIONS = 7


def calls(model: str, conv: str, batch: int) -> dict[str, Callable[[], object]]:
    """The two sides: an attack on every image of a batch, and passes of training.

    Args:
        model: A CIFAR model of :mod:`torchadder.models`.
        conv: "adder" or "conv".
        batch: Images.
    """
    net = models.build(model, conv=conv).eval()
    images, labels = torch.rand(batch, *IMAGE), torch.randint(10, (batch,))

    def attack() -> object:
        return pgd(net, images, labels, iterations=ITERATIONS, everything=True)

    def passes() -> None:
        for _ in range(ITERATIONS + 1):
            net.zero_grad()
            leaf = images.clone().requires_grad_()
            F.cross_entropy(net(leaf), labels).backward()

    return {"attack": attack, "passes": passes}


def measure(model: str, conv: str, batch: int, turns: int) -> dict[str, Any]:
    """Medians of both sides, and of the ratio of the two of a turn.

    Raises:
        ValueError: If batch or turns is below 1.
    """
    if turns < 1 or batch < 1:
        raise ValueError(f"turns and batch must be at least 1, got {turns} and {batch}")
    sides = calls(model, conv, batch)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for turn in range(turns):
        for name in sorted(sides, reverse=turn % 2 == 0):
            start = time.perf_counter()
            sides[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    pairs = zip(times["attack"], times["passes"], strict=True)
    return {
        "model": model,
        "conv": conv,
        "batch": batch,
        "turns": turns,
        "iterations": ITERATIONS,
        "attack_ms": statistics.median(times["attack"]),
        "passes_ms": statistics.median(times["passes"]),
        "ratio": statistics.median(one / other for one, other in pairs),
        "ratio_of_fastest": min(times["attack"]) / min(times["passes"]),
    }


def main() -> None:
    """Print the results, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m torchadder.bench.attacks", description="Time PGD-7 beside training passes."
    )
    parser.add_argument("--model", default="resnet20", help="a CIFAR model")
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--turns", type=int, default=5, help="calls of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    results = []
    for conv in ("adder", "conv"):
        result = measure(arguments.model, conv, arguments.batch, arguments.turns)
        results.append(result)
        print(
            f"{result['model']}, {conv}, {result['batch']} images: PGD-{ITERATIONS} "
            f"{result['attack_ms']:.0f} ms, {ITERATIONS + 1} forward and backward passes "
            f"{result['passes_ms']:.0f} ms, ratio {result['ratio']:.3f} (of the fastest "
            f"{result['ratio_of_fastest']:.3f})"
        )
    if arguments.json:
        command = " ".join(["python -m torchadder.bench.attacks", *sys.argv[1:]])
        report = provenance(command) | {"results": results}
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
