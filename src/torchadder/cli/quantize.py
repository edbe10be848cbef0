"""`torchadder quantize`: a trained net or detector in integers, its accuracy beside the float's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.cli import UserError, set_threads
from torchadder.cli.checkpoint_options import (
    add_checkpoint,
    add_images,
    given_data,
    underscored,
)
from torchadder.cli.detectors import show_left_out

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from torchadder.training.detector_quantization import Precision, QuantizedDetections
    from torchadder.training.quantization import Accuracy, Quantized

# What a table has every value of, or does not write.
_OF_ONE_NET = {"bits": 8, "groups": 1, "clamp": True, "output": None, "report": None}
_CONFIG_OPTIONS = ("bits", "range", "percentile", "groups", "clamp", "first", "last")


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder quantize`."""
    add_checkpoint(parser)
    parser.add_argument(
        "--output", type=str | None, help="A new file (default: beside the checkpoint, -int8)."
    )
    parser.add_argument("--bits", type=int, default=8, help="Width of the integers, 2 to 8.")
    parser.add_argument("--range", type=str, default="mse", help="max, percentile or mse.")
    parser.add_argument(
        "--percentile", type=float, default=0.9997, help="Share that --range percentile covers."
    )
    parser.add_argument(
        "--groups", type=int, default=1, help="Groups of filters with a range each (paper: 4)."
    )
    parser.add_argument(
        "--clamp", type=bool, default=True, help="Cut filters to the range of their input."
    )
    parser.add_argument("--first", type=str, default="int8", help="First layer: int8 or float.")
    parser.add_argument("--last", type=str, default="int8", help="Last layer: int8 or float.")
    parser.add_argument(
        "--images",
        type=int | None,
        help="Training images to calibrate on (default: 500; detectors: 100).",
    )
    parser.add_argument("--report", type=str | None, help="Also write the layers to this CSV file.")
    parser.add_argument(
        "--table",
        type=str | None,
        help="Write accuracies at 8, 6, 5, 4 bits with every scheme to this folder, no checkpoint.",
    )
    add_images(parser, "250; detectors: as in training")
    parser.add_argument("--threads", type=int | None, help="Threads of torch on the CPU.")


def rewrite(argv: list[str]) -> list[str]:
    """Lets options be spelled with dashes."""
    return underscored(argv)


def run(args: Any) -> None:
    """Quantises and prints."""
    from torchadder.quantize import Int8Config

    config = Int8Config(**{name: args[name] for name in _CONFIG_OPTIONS})
    data = given_data(args)
    if args.table:
        _refuse_options_of_one_net(args)
    from torchadder.training.weights import weights_of

    set_threads(args.threads)
    output = None if args.table else _output(args.output, weights_of(args.checkpoint))
    net = _opened(args, data)
    if output is None:
        from torchadder.training.quantization_table import write_table

        rows = []
        for row in net.table(config):
            print(_line(row), flush=True)
            rows.append(row)
        print(f"table: {write_table(args.table, rows, net.about(config))}")
        show_left_out(net.images.left_out)
        return
    result = net.save(config, output)
    if args.report is not None:
        result.report.to_csv(args.report)
    _show(result)
    show_left_out(net.images.left_out)


def _opened(args: Any, data: dict[str, Any]) -> Any:
    """The checkpoint with its images."""
    from torchadder.training.evaluation import is_detector

    sizes = {"num_images": args.images, "batch_size": args.batch_size}
    given = {name: value for name, value in sizes.items() if value is not None}
    if is_detector(args.checkpoint):
        from torchadder.training.detector_quantization import QuantizedDetector

        return QuantizedDetector(args.checkpoint, data, **given)
    from torchadder.training.quantization import QuantizedCheckpoint

    return QuantizedCheckpoint(args.checkpoint, data, **given)


def _output(given: str | None, checkpoint: Path) -> Path:
    """Where the integer net goes; nothing is overwritten."""
    from torchadder.checkpoint import file_of

    beside = checkpoint.with_name(f"{checkpoint.stem}-int8.safetensors")
    path = file_of(Path(given) if given else beside)
    if path.exists():
        raise UserError(f"--output {str(path)!r}: the file exists and is not overwritten")
    return path


def _refuse_options_of_one_net(args: Any) -> None:
    for option, default in _OF_ONE_NET.items():
        if args[option] != default:
            raise UserError(
                f"--{option} and --table: a table has all widths and schemes, and no checkpoint"
            )


def _show(result: Quantized | QuantizedDetections) -> None:
    from torchadder.training.quantization import Quantized

    print(result.report)
    print()
    if isinstance(result, Quantized):
        lines = {
            "float32": f"{100 * result.float_accuracy:.2f} % of {result.num_images:,} images",
            "integers": f"{100 * result.accuracy:.2f} %",
            "same class": f"{100 * result.agreement:.2f} %",
        }
    else:
        lines = {
            "float32": f"{_precision(result.float_figures)}, {result.num_images:,} images",
            "integers": _precision(result.figures),
        }
    for name, value in (lines | {"checkpoint": result.path}).items():
        print(f"{name:<12}{value}")


def _line(row: Accuracy | Precision) -> str:
    noise = "" if row.sqnr_db is None else f"  logits {row.sqnr_db:5.1f} dB"
    accuracy = getattr(row, "accuracy", None)
    figure = _precision(row) if accuracy is None else f"{100 * accuracy:6.2f} %"
    return f"{row.scheme:<28}{row.bits:>3} bit  {figure}{noise}"


def _precision(figures: Any) -> str:
    """AP and AP50 of a detector; a dash where no object defines them."""
    shares = (("AP", figures.ap), ("AP50", figures.ap50))
    return ", ".join(
        f"{name} {'-' if share is None else f'{100 * share:.2f} %'}" for name, share in shares
    )
