"""`torchadder diagnose`: what PKKD's kernels do to the distributions of two trained nets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.cli import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder diagnose`."""
    parser.epilog = (
        "Prints, layer by layer, how far features and weights are from a Laplace and from a normal "
        "distribution, and student from teacher, before and behind the kernels: Wasserstein-1 "
        "distances in standard deviations. Writes diagnosis.json, two CSV tables and two figures. "
        "--debug shows the traceback of an error."
    )
    parser.add_argument("run", help="Run folder of the student.")
    parser.add_argument(
        "--teacher", type=str | None, help="Run folder of the teacher (default: the run's own)."
    )
    parser.add_argument("--weights", type=str, default="last", help="Epoch: last or best.")
    parser.add_argument(
        "--layers", type=str | None, help="Names or patterns of layers, with commas (default: all)."
    )
    parser.add_argument("--images", type=int, default=128, help="Validation images to use.")
    parser.add_argument("--threads", type=int | None, help="Threads of torch on the CPU.")
    parser.add_argument(
        "--output", type=str | None, help="Folder of the files (default: RUN/diagnosis)."
    )


def run(args: Any) -> None:
    """Measures, writes and prints."""
    if args.weights not in ("last", "best"):
        raise UserError(f"--weights {args.weights}: last or best is wanted")
    if args.images < 2:
        raise UserError(f"--images {args.images}: at least 2 are wanted")
    import torch

    from torchadder.distill import check_taps
    from torchadder.report.diagnosis import write_diagnosis
    from torchadder.report.kernel_space import sample_layers
    from torchadder.training.diagnosis import open_pair, some_images

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    pkkd, data = open_pair(args.run, args.teacher, which=args.weights)
    assert pkkd.teacher is not None
    layers = None
    if args.layers is not None:
        layers = check_taps(pkkd.student, pkkd.teacher, args.layers.split(","))
        unknown = [name for name in layers if name not in pkkd.taps]
        if unknown:
            raise UserError(f"--layers: {unknown[0]!r} is not tapped; {', '.join(pkkd.taps)} are")
    images = some_images(data, args.images)
    samples = sample_layers(pkkd, images, layers)
    output = Path(args.run) / "diagnosis" if args.output is None else Path(args.output)
    facts = {
        "student": str(args.run),
        "teacher": str(args.teacher or args.run),
        "weights": args.weights,
        "num_images": len(images),
    }
    report = write_diagnosis(output, samples, facts)
    _print(report)
    print(f"files: {output}")


def _print(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    between = {
        (row["layer"], row["kind"], row["stage"]): row["w1"] for row in report["student_teacher"]
    }
    by_side: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in report["shapes"]:
        key = (row["layer"], row["kind"], row["stage"])
        by_side.setdefault(key, {})[row["side"]] = row
    console = Console(soft_wrap=True)
    for kind in ("features", "weights"):
        table = Table(
            box=box.SIMPLE_HEAD, title=f"{kind.capitalize()}: Wasserstein-1 in standard deviations"
        )
        table.add_column("layer", no_wrap=True)
        table.add_column("stage", no_wrap=True)
        for side in ("student", "teacher"):
            for fit in ("Laplace", "normal"):
                table.add_column(f"{side}\nto {fit}", justify="right", no_wrap=True)
        table.add_column("to each\nother", justify="right", no_wrap=True)
        for (layer, of_kind, stage), sides in by_side.items():
            if of_kind != kind:
                continue
            cells = [
                f"{sides[side][f'{fit}_w1']:.3f}" if side in sides else "-"
                for side in ("student", "teacher")
                for fit in ("laplace", "normal")
            ]
            distance = between.get((layer, of_kind, stage))
            cells.append("-" if distance is None else f"{distance:.3f}")
            table.add_row(layer, stage, *cells)
        if table.rows:
            console.print(table)
