"""`torchadder predict`: the classes of image files, or the objects in them."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.cli import UserError, detectors, set_threads
from torchadder.cli.checkpoint_options import add_checkpoint, underscored

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder predict`."""
    add_checkpoint(parser)
    parser.add_argument("images", help="An image file, or a folder of them.")
    parser.add_argument(
        "--top", type=int | None, help="Classes to name for each image (default: 5)."
    )
    parser.add_argument("--csv", type=str | None, help="Also write a CSV file (a new one).")
    parser.add_argument("--threads", type=int | None, help="Threads of torch on the CPU.")
    detectors.add_prediction_arguments(parser)


def rewrite(argv: list[str]) -> list[str]:
    """Lets options be spelled with dashes."""
    return underscored(argv)


def run(args: Any) -> None:
    """Classifies, or finds objects, and prints; ends in an error if an image cannot be read."""
    if args.top is not None and args.top < 1:
        raise UserError(f"--top = {args.top}: at least 1 is wanted")
    if args.csv is not None and Path(args.csv).exists():
        raise UserError(f"--csv {args.csv!r}: the file exists and is not overwritten")
    if args.csv is not None and not Path(args.csv).parent.is_dir():
        raise UserError(f"--csv {args.csv!r}: there is no folder {str(Path(args.csv).parent)!r}")
    from rich.progress import Progress

    from torchadder.training.evaluation import (
        image_files,
        is_detector,
        open_checkpoint,
        predict,
    )

    set_threads(args.threads)
    if is_detector(args.checkpoint):
        detectors.predict(args)
        return
    detectors.refuse_prediction_options(args)
    net, top = open_checkpoint(args.checkpoint), args.top or 5
    paths = image_files(args.images)
    predictions = []
    # The bar goes to stderr so that the lines can be piped.
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("images", total=len(paths))
        for prediction in predict(net, paths, top=top):
            predictions.append(prediction)
            progress.advance(task)
    failed = [prediction for prediction in predictions if prediction.error]
    for prediction in predictions:
        if not prediction.error:
            pairs = zip(prediction.names, prediction.probabilities, strict=True)
            words = "  ".join(f"{name} {100 * probability:.1f} %" for name, probability in pairs)
            print(f"{prediction.path}  {words}")
    if args.csv is not None:
        _write(Path(args.csv), predictions, top)
    detectors.report_unread([(p.path, str(p.error)) for p in failed], len(paths))


def _write(path: Path, predictions: list[Any], top: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ranks = range(1, top + 1)
        columns = [f"{kind}{rank}" for rank in ranks for kind in ("class", "probability")]
        writer.writerow(["file", *columns, "error"])
        for prediction in predictions:
            pairs = list(zip(prediction.names, prediction.probabilities, strict=True))
            pairs += [("", "")] * (top - len(pairs))
            cells = [cell for pair in pairs for cell in pair]
            writer.writerow([prediction.path, *cells, prediction.error or ""])
