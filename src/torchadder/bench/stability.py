"""What measuring the stability of a training costs: a step with and without it, in turns.

python -m torchadder.bench.stability --json results/bench_stability.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import torchadder
from torchadder import models
from torchadder.bench.step import IMAGE, LAYERS
from torchadder.bench.timing import median_ms
from torchadder.provenance import provenance
from torchadder.stability.meter import StabilityMeter
from torchadder.stability.table import table_text

EVERY = 50


def training_steps(model: str, batch: int) -> dict[str, Callable[[], object]]:
    """A step of an adder net on random images, the same one measured, and the measuring alone.

    A step is forward, backward, AdaptiveLR and SGD; measuring includes the rows of the table as
    text. All three share the net, so that they find the same memory.
    """
    net = models.build(model, conv=LAYERS["adder"])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    torchadder.optim.AdaptiveLR(optimizer, net)
    images, labels = torch.randn(batch, *IMAGE), torch.randint(10, (batch,))
    meter = StabilityMeter(net)

    def gradients() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()

    def step() -> None:
        gradients()
        optimizer.step()

    def measured() -> object:
        meter.before_forward()
        gradients()
        meter.before_step()
        optimizer.step()
        return table_text(meter.after_step(0).rows())

    def measuring() -> object:
        meter.before_forward()
        meter.before_step()
        return table_text(meter.after_step(0).rows())

    return {"step": step, "measured": measured, "measuring": measuring}


def measure(model: str, batch: int, seconds: float, every: int = EVERY) -> dict[str, Any]:
    """Times, and what measuring adds to a step.

    Args:
        model: A CIFAR model of `torchadder.models`.
        batch: Images of a step.
        seconds: Time for each of the three.
        every: Steps from one measurement to the next.
    """
    times = median_ms(training_steps(model, batch), seconds)
    step = times["step"]
    return {
        "model": model,
        "batch": batch,
        "every": every,
        "step_ms": step,
        "measured_step_ms": times["measured"],
        "measuring_ms": times["measuring"],
        "share_of_a_measured_step": times["measuring"] / step,
        "share_of_all_steps": times["measuring"] / (every * step),
        "difference_share_of_all_steps": (times["measured"] - step) / (every * step),
    }


def main() -> None:
    """Print the shares, write the JSON."""
    parser = argparse.ArgumentParser(description="Time a training step under the stability meter.")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each side")
    parser.add_argument("--every", type=int, default=EVERY, help="steps between measurements")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result = measure(arguments.model, arguments.batch, arguments.seconds, arguments.every)
    print(
        f"{result['model']}, adder, batch {result['batch']}: a step takes {result['step_ms']:.1f} "
        f"ms, measuring it {result['measuring_ms']:.2f} ms more; every {result['every']} steps "
        f"that is {result['share_of_all_steps']:.4%} (by the difference of whole steps "
        f"{result['difference_share_of_all_steps']:.4%})"
    )
    if arguments.json:
        command = " ".join(["python -m torchadder.bench.stability", *sys.argv[1:]])
        report = provenance(command) | result
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
