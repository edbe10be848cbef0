"""`torchadder evaluate`: what a checkpoint reaches on annotated images, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.cli import UserError, detectors, robust, set_threads

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

# Of the data recorded at training time, what may be replaced on the command line.
_DATA_OPTIONS = ("source", "image_column", "label_column", "val_split", "val_fraction")


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder evaluate`."""
    parser.add_argument(
        "checkpoint", help="A .safetensors file written by training, or a run folder (its best)."
    )
    parser.add_argument(
        "--data.source", type=str | None, help="Images (default: those of the training run)."
    )
    parser.add_argument("--data.image_column", type=str | None, help="Column of the images.")
    parser.add_argument("--data.label_column", type=str | None, help="Column of the labels.")
    parser.add_argument("--data.val_split", type=str | None, help="Split to evaluate on.")
    parser.add_argument("--data.val_fraction", type=float | None, help="Part to hold out.")
    parser.add_argument(
        "--batch_size",
        type=int | None,
        help="Images per batch (default: 256; robust: 100; detectors: as in training).",
    )
    parser.add_argument("--threads", type=int | None, help="Threads of torch on the CPU.")
    parser.add_argument("--accelerator", type=str, default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    robust.add_arguments(parser)
    detectors.add_evaluation_arguments(parser)


def rewrite(argv: list[str]) -> list[str]:
    """Lets options be spelled with dashes."""
    return [_underscored(word) if word.startswith("--") else word for word in argv]


def run(args: Any) -> None:
    """Evaluates and prints."""
    given = {key: args.data[key] for key in _DATA_OPTIONS if args.data[key] is not None}
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch_size = {args.batch_size}: at least 1 is wanted")
    set_threads(args.threads)
    if args.robust:
        robust.run(args, given)
        return
    robust.refuse_options(args)
    from torchadder.training.evaluation import evaluate, is_detector

    if is_detector(args.checkpoint):
        detectors.evaluate(args, given)
        return
    detectors.refuse_evaluation_options(args)
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


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
