"""`torchadder diagnose`: what PKKD's kernels and a loss do to nets, how stable nets trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.cli import UserError, set_threads

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder diagnose`."""
    parser.epilog = (
        "Prints, layer by layer, how far features and weights are from a Laplace and from a normal "
        "distribution, and student from teacher, before and behind the kernels: Wasserstein-1 "
        "distances in standard deviations. Writes diagnosis.json, two CSV tables and two figures. "
        "With --gradients: how hard each term of a distillation loss pulls at the weights of each "
        "layer of the student, on training images; writes gradients.json, gradients.csv and a "
        "figure. "
        "With --stability: compares what runs trained with --trainer.record_stability recorded, "
        "and predicts their output variances; writes stability.html, stability.json, "
        "predictions.csv and figures. --debug shows the traceback of an error."
    )
    parser.add_argument(
        "run", nargs="+", help="Run folder of the student; with --stability one or more runs."
    )
    parser.add_argument(
        "--stability",
        action="store_true",
        help="Compare variances, batch norm's movement and gradients of runs.",
    )
    parser.add_argument(
        "--gradients",
        action="store_true",
        help="Compare the gradients of the terms of a distillation loss.",
    )
    parser.add_argument(
        "--teacher", type=str | None, help="Run folder of the teacher (default: the run's own)."
    )
    parser.add_argument("--weights", type=str, default="last", help="Epoch: last or best.")
    parser.add_argument(
        "--layers", type=str | None, help="Names or patterns of layers, with commas (default: all)."
    )
    parser.add_argument(
        "--images",
        type=int | None,
        help="Images to use, validation images but for --gradients (default: 128; with --stability "
        "256).",
    )
    parser.add_argument("--threads", type=int | None, help="Threads of torch on the CPU.")
    parser.add_argument(
        "--output",
        type=str | None,
        help="Folder of the files (default: RUN/diagnosis, or RUN/stability).",
    )


def run(args: Any) -> None:
    """Measures, writes and prints."""
    if args.weights not in ("last", "best"):
        raise UserError(f"--weights {args.weights}: last or best is wanted")
    if args.images is not None and args.images < 2:
        raise UserError(f"--images {args.images}: at least 2 are wanted")
    if args.stability and args.gradients:
        raise UserError("--stability and --gradients: one of them is wanted")
    if args.stability:
        _compare_stability(args)
    elif len(args.run) > 1:
        raise UserError(f"{len(args.run)} runs: one is wanted, or --stability to compare them")
    elif args.gradients:
        _compare_gradients(args)
    else:
        _diagnose_kernels(args)


def _compare_gradients(args: Any) -> None:
    if args.teacher is not None:
        raise UserError("--teacher: no option of --gradients, which looks at the run's own loss")
    from torchadder.distill import term_gradients
    from torchadder.report.gradients import write_gradients
    from torchadder.training.diagnosis import open_distiller, some_training_images

    set_threads(args.threads)
    (folder,) = args.run
    distiller, data = open_distiller(folder, which=args.weights)
    images, labels = some_training_images(data, args.images or 128)
    layers = None if args.layers is None else args.layers.split(",")
    pulls = term_gradients(distiller, images, labels, layers)
    output = Path(folder) / "diagnosis" if args.output is None else Path(args.output)
    facts = {"run": str(folder), "weights": args.weights, "num_images": len(images)}
    _print_gradients(write_gradients(output, pulls, facts))
    print(f"files: {output}")


def _print_gradients(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from torchadder.report.gradients import name_of

    title = "Gradient of each term: norm over that of the labels, and cosine with it"
    table = Table(box=box.SIMPLE_HEAD, title=title)
    table.add_column("layer", no_wrap=True)
    for term in report["median"]:
        table.add_column(name_of(term), justify="right", no_wrap=True)
        table.add_column("cosine", justify="right", no_wrap=True)
    by_layer: dict[str, dict[str, Any]] = {}
    for row in report["gradients"]:
        by_layer.setdefault(row["layer"], {})[row["term"]] = row
    for layer, rows in [*by_layer.items(), ("median", report["median"])]:
        found = [rows[term] for term in report["median"]]
        cells = [(f"{one['ratio']:.3g}", f"{one['cosine']:.2f}") for one in found]
        table.add_row(layer, *(cell for pair in cells for cell in pair))
    Console(soft_wrap=True).print(table)


def _compare_stability(args: Any) -> None:
    for option, default in (("teacher", None), ("layers", None), ("weights", "last")):
        if getattr(args, option) != default:
            raise UserError(f"--{option}: no option of --stability")
    from torchadder.report.stability import write_stability

    set_threads(args.threads)
    paths = [Path(path) for path in args.run]
    output = paths[0] / "stability" if args.output is None else Path(args.output)
    report = write_stability(output, paths, num_images=args.images or 256)
    _print_stability(report)
    print(f"page: {output / 'stability.html'}")


def _print_stability(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from torchadder.report.stability import PREDICTIONS, QUANTITIES, geometric_mean, number

    title = "Geometric means over the layers at the end of training"
    table = Table(box=box.SIMPLE_HEAD, title=title)
    table.add_column("quantity")
    for run in report["runs"]:
        table.add_column(run["label"].replace(" + ", "\n+ "), justify="right", no_wrap=True)
    for quantity, name in QUANTITIES.items():
        means = [run["mean_at_end"][quantity] for run in report["runs"]]
        table.add_row(name, *("-" if mean is None else number(mean) for mean in means))
    for prediction, (name, _) in PREDICTIONS.items():
        cells = []
        for run in report["runs"]:
            ratios = [
                layer[prediction] / layer["measured"]
                for layer in run["predictions"]
                if layer[prediction] is not None and layer["measured"] > 0
            ]
            mean = geometric_mean(ratios)
            cells.append("-" if mean is None else number(mean))
        table.add_row(f"Output variance, predicted over measured: {name}", *cells)
    Console(soft_wrap=True).print(table)


def _diagnose_kernels(args: Any) -> None:
    from torchadder.distill import check_taps
    from torchadder.report.diagnosis import write_diagnosis
    from torchadder.report.kernel_space import sample_layers
    from torchadder.training.diagnosis import open_pair, some_images

    set_threads(args.threads)
    (folder,) = args.run
    pkkd, data = open_pair(folder, args.teacher, which=args.weights)
    assert pkkd.teacher is not None
    layers = None
    if args.layers is not None:
        layers = check_taps(pkkd.student, pkkd.teacher, args.layers.split(","))
        unknown = [name for name in layers if name not in pkkd.taps]
        if unknown:
            raise UserError(f"--layers: {unknown[0]!r} is not tapped; {', '.join(pkkd.taps)} are")
    images = some_images(data, args.images or 128)
    samples = sample_layers(pkkd, images, layers)
    output = Path(folder) / "diagnosis" if args.output is None else Path(args.output)
    facts = {
        "student": str(folder),
        "teacher": str(args.teacher or folder),
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
