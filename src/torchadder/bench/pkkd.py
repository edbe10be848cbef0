"""What PKKD costs: training steps of both nets with and without its terms, and its sums by width.

python -m torchadder.bench.pkkd --json results/bench_pkkd.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from torchadder import models
from torchadder.bench.step import IMAGE, LAYERS
from torchadder.bench.timing import median_ms
from torchadder.distill import EXPONENT_LIMIT, PKKD
from torchadder.nn import AdderModule
from torchadder.ops import pkkd
from torchadder.ops.pkkd import dispatch
from torchadder.optim import AdaptiveLR
from torchadder.provenance import provenance

Step = Callable[[], object]

TERMS: dict[str, dict[str, Any]] = {
    "soft labels": {"beta": 0.0},
    "without kernel": {"kernel": False},
    "pkkd": {},
}
"""Options of `PKKD` by the name of the step: with soft labels alone, without and with kernels."""


WIDTHS = (16, 32, 64, 128, 256)
ELEMENTS = 2**21


def net_step(model: str, batch: int, conv: str) -> Step:
    """A step of one net on random images, with the adaptive rate for adder layers.

    Args:
        model: A CIFAR model of `torchadder.models`.
        batch: Images of a step.
        conv: "adder" or "conv".
    """
    net = _net(model, conv)
    return _step(net, batch, lambda images, labels: F.cross_entropy(net(images), labels))


def distilled_step(model: str, batch: int, options: dict[str, Any]) -> Step:
    """A step of an adder net and of its CNN twin, which trains beside it.

    Args:
        model: A CIFAR model of `torchadder.models`.
        batch: Images of a step.
        options: Of `PKKD`.
    """
    distiller = PKKD(_net(model, "adder"), _net(model, "conv"), **options)

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        output = distiller(images, labels)
        return output.loss + output.teacher_loss

    return _step(distiller, batch, loss)


def _net(model: str, conv: str) -> torch.nn.Module:
    net = models.build(model, conv=LAYERS[conv])
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _step(module: torch.nn.Module, batch: int, loss: Callable[..., torch.Tensor]) -> Step:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    if any(isinstance(layer, AdderModule) for layer in module.modules()):
        AdaptiveLR(optimizer, module)
    images = torch.randn(batch, *IMAGE).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))

    def step() -> object:
        optimizer.zero_grad()
        loss(images, labels).backward()
        return optimizer.step()

    return step


@contextmanager
def by_matrix_products() -> Iterator[None]:
    """A `with` block in which torch sums up what the kernels for narrow layers would."""
    kept = dispatch.MAX_CHANNELS
    dispatch.MAX_CHANNELS = 0
    try:
        yield
    finally:
        dispatch.MAX_CHANNELS = kept


def measure(model: str, batch: int, seconds: float) -> dict[str, Any]:
    """Median times of the steps, and their ratios to the steps of both nets alone.

    Args:
        model: A CIFAR model of `torchadder.models`.
        batch: Images of a step.
        seconds: Time for each kind of step.
    """
    step = distilled_step(model, batch, TERMS["pkkd"])

    def by_torch() -> object:
        with by_matrix_products():
            return step()

    steps: dict[str, Step] = {kind: net_step(model, batch, kind) for kind in ("conv", "adder")}
    for name in ("soft labels", "without kernel"):
        steps[name] = distilled_step(model, batch, TERMS[name])
    times = median_ms(steps | {"pkkd": step, "pkkd by torch": by_torch}, seconds)
    both = times["conv"] + times["adder"]
    return {
        "model": model,
        "batch": batch,
        "step_ms": times,
        "times_both_nets": {name: ms / both for name, ms in times.items()},
    }


def measure_widths(seconds: float) -> list[dict[str, float]]:
    """Median times of the sums and their gradient, by the kernels for narrow layers and by torch.

    Kernels stand on both sides, and gradients for both scales are wanted.

    Args:
        seconds: Time for each width.
    """
    limit, results = dispatch.MAX_CHANNELS, []
    for channels in WIDTHS:
        shape = (1, ELEMENTS // channels, channels)
        student, teacher = ((20 * torch.randn(shape)).mT for _ in range(2))
        rate = torch.tensor(0.03)
        sides = pkkd.Sides(
            student, teacher, student.mean(2).mT, teacher.mean(2).mT, rate, rate, EXPONENT_LIMIT
        )
        matrix = torch.randn(2 * channels, 2 * channels)
        vectors = torch.randn(2 * channels), torch.randn(channels)

        def both(
            sides: pkkd.Sides = sides,
            matrix: torch.Tensor = matrix + matrix.mT,
            vectors: tuple[torch.Tensor, torch.Tensor] = vectors,
        ) -> object:
            return pkkd.sums(sides), pkkd.gradient(sides, matrix, *vectors, True)

        def by_torch(both: Step = both) -> object:
            with by_matrix_products():
                return both()

        try:
            dispatch.MAX_CHANNELS = max(WIDTHS)
            times = median_ms({"kernels_ms": both, "torch_ms": by_torch}, seconds)
        finally:
            dispatch.MAX_CHANNELS = limit
        results.append({"channels": channels, "positions": shape[1]} | times)
    return results


def main() -> None:
    """Print the result, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m torchadder.bench.pkkd", description="Time training steps of PKKD."
    )
    parser.add_argument("--model", default="resnet20", help="a CIFAR model")
    parser.add_argument("--batch", type=int, default=256, help="images of a step")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each kind of step")
    parser.add_argument("--threads", type=int, help="by default those of torch")
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    result = measure(arguments.model, arguments.batch, arguments.seconds)
    result["widths"] = measure_widths(arguments.seconds)
    print(f"training steps of {result['model']}, batch {result['batch']}:")
    for name, ms in result["step_ms"].items():
        share = result["times_both_nets"][name]
        print(f"  {name:<16}{ms:8.0f} ms  {share:5.2f} of both nets alone")
    print(f"sums and gradient of {ELEMENTS:,} values a side, kernels on both:")
    for row in result["widths"]:
        print(
            f"  {row['channels']:>4} channels{row['kernels_ms']:8.1f} ms  by torch"
            f"{row['torch_ms']:8.1f} ms"
        )
    if arguments.json:
        command = " ".join(["python -m torchadder.bench.pkkd", *sys.argv[1:]])
        text = json.dumps(provenance(command) | result, indent=2)
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
