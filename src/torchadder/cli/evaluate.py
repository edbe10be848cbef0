"""`torchadder evaluate`: what a checkpoint reaches on annotated images, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.cli import detectors, robust, set_threads
from torchadder.cli.checkpoint_options import (
    add_checkpoint,
    add_images,
    given_data,
    underscored,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder evaluate`."""
    add_checkpoint(parser)
    add_images(parser, "256; robust: 100; detectors: as in training")
    parser.add_argument("--threads", type=int | None, help="Threads of torch on the CPU.")
    parser.add_argument("--accelerator", type=str, default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    robust.add_arguments(parser)
    detectors.add_evaluation_arguments(parser)


def rewrite(argv: list[str]) -> list[str]:
    """Lets options be spelled with dashes."""
    return underscored(argv)


def run(args: Any) -> None:
    """Evaluates and prints."""
    given = given_data(args)
    set_threads(args.threads)
    if args.robust:
        detectors.refuse_evaluation_options(args, "--robust attacks nets that name images")
        robust.run(args, given)
        return
    robust.refuse_options(args)
    from torchadder.training.evaluation import evaluate, is_detector

    if is_detector(args.checkpoint):
        detectors.evaluate(args, given)
        return
    detectors.refuse_evaluation_options(args, f"{args.checkpoint} holds none")
    result = evaluate(
        args.checkpoint,
        given,
        batch_size=args.batch_size or 256,
        threads=args.threads,
        accelerator=args.accelerator,
    )
    if args.json:
        print(json.dumps(result, indent=2))
        return
    lines = {
        "checkpoint": Path(result["checkpoint"]),
        "images": f"{result['num_images']:,} of {result['source']}, split {result['split']}",
        "accuracy": f"{100 * result['accuracy']:.2f} %",
        "top-5": f"{100 * result['top5']:.2f} %" if result["top5"] is not None else "-",
        "loss": f"{result['loss']:.4f}",
        "multiplications": f"{result['num_mul']:,} per image",
        "additions": f"{result['num_add']:,} per image",
        "energy": f"{result['energy_uj']:,.3f} uJ per image",
        "time": f"{result['seconds']:.1f} s",
    }
    for name, value in lines.items():
        print(f"{name:<16}{value}")
