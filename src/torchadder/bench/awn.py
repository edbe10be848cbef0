"""What normalised weights add to a training step: ``python -m torchadder.bench.awn``.

Steps with and without (forward, backward, adaptive rate, SGD) are timed in turns, and compared pair
by pair, so that what else the machine does hits both sides alike.
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

from torchadder import awn, models
from torchadder.bench.step import IMAGE
from torchadder.optim import AdaptiveLR
from torchadder.provenance import provenance


def training_step(model: str, batch: int, config: awn.AwnConfig | None) -> Callable[[], object]:
    """A function that does one step of an adder net on random images.

    Args:
        model: A CIFAR model of :mod:`torchadder.models`.
        batch: Images a step.
        config: How the weights are normalised; None leaves them plain.
    """
    net = models.build(model, conv="adder")
    if config is not None:
        awn.apply_(net, config)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    AdaptiveLR(optimizer, net)
    images, labels = torch.randn(batch, *IMAGE), torch.randint(10, (batch,))

    def step() -> object:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        return optimizer.step()

    return step


def measure(model: str = "resnet20", batch: int = 256, turns: int = 15) -> dict[str, Any]:
    """Medians of both steps, and of the ratio of the two steps of a turn.

    Args:
        model: A CIFAR model of :mod:`torchadder.models`.
        batch: Images a step.
        turns: Steps of each side; which of the two comes first alternates.
    """
    if turns < 1 or batch < 2:
        raise ValueError(f"turns >= 1 and batch >= 2 are wanted, got {turns} and {batch}")
    steps = {
        "plain": training_step(model, batch, None),
        "awn": training_step(model, batch, awn.AwnConfig()),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for turn in range(turns):
        for name in sorted(steps, reverse=turn % 2 == 0):
            start = time.perf_counter()
            steps[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    pairs = zip(times["awn"], times["plain"], strict=True)
    return {
        "model": model,
        "batch": batch,
        "turns": turns,
        "plain_ms": statistics.median(times["plain"]),
        "awn_ms": statistics.median(times["awn"]),
        "ratio": statistics.median(one / other for one, other in pairs),
        "ratio_of_fastest": min(times["awn"]) / min(times["plain"]),
        "norm_ms": measure_norm(model),
    }


def measure_norm(model: str, turns: int = 50) -> float:
    """Median time of computing all normalised weights of a net, and of their gradients, alone."""
    net = models.build(model, conv="adder")
    awn.apply_(net)
    layers = awn.normalised_layers(net).values()
    gradients = [torch.randn_like(layer.weight) for layer in layers]  # type: ignore[arg-type]
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        torch.autograd.backward([layer.weight for layer in layers], gradients)  # type: ignore[arg-type]
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    """Print the result, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m torchadder.bench.awn", description="Time steps with normalised weights."
    )
    parser.add_argument("--model", default="resnet20", help="a CIFAR model")
    parser.add_argument("--batch", type=int, default=256, help="images a step")
    parser.add_argument("--turns", type=int, default=15, help="steps of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    result = measure(arguments.model, arguments.batch, arguments.turns)
    print(
        f"{result['model']} training step, batch {result['batch']}: {result['plain_ms']:.1f} ms "
        f"plain, {result['awn_ms']:.1f} ms with normalised weights, ratio {result['ratio']:.4f} "
        f"(of the fastest steps {result['ratio_of_fastest']:.4f}); the normalisation alone, "
        f"forward and backward, {result['norm_ms']:.2f} ms"
    )
    if arguments.json:
        command = " ".join(["python -m torchadder.bench.awn", *sys.argv[1:]])
        text = json.dumps(provenance(command) | result, indent=2)
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
