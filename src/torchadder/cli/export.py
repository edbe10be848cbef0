"""`torchadder export`: a checkpoint as C source, as an ONNX model or as a torch.export program."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.cli import UserError, set_threads

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from torch import Tensor, nn

FORMATS = ("c", "onnx", "torch")


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder export`."""
    parser.add_argument(
        "--to", choices=FORMATS, required=True, help="C99 source, ONNX, or torch.export (.pt2)."
    )
    parser.add_argument(
        "checkpoint",
        help="A .safetensors file of training or of quantize, or a run folder (its best).",
    )
    parser.add_argument(
        "output", help="What to write: a new folder for C, a file ending in .onnx or .pt2 else."
    )
    parser.add_argument("--force", action="store_true", help="Replace an earlier export.")
    parser.add_argument("--name", type=str, default="net", help="C: prefix of files and functions.")
    parser.add_argument(
        "--data.source",
        type=str | None,
        help="C: images to calibrate a float net with (default: those of the training run).",
    )
    parser.add_argument(
        "--any_size", action="store_true", help="ONNX, torch: take images of any size."
    )
    parser.add_argument("--threads", type=int | None, help="Threads of torch on the CPU.")


def rewrite(argv: list[str]) -> list[str]:
    """Lets options be spelled with dashes."""
    return ["--any_size" if word == "--any-size" else word for word in argv]


def run(args: Any) -> None:
    """Exports and prints what was written."""
    set_threads(args.threads)
    if args.to == "c":
        if args.any_size:
            raise UserError("--any_size: C source is for images of one size")
        _to_c(args)
        return
    for option, value in (("--name", args.name != "net"), ("--data.source", args.data.source)):
        if value:
            raise UserError(f"{option} is for --to c only")
    path = Path(args.output)
    if path.is_file() and not args.force:
        raise UserError(f"{path}: the file exists; --force replaces it")
    model, example = _net(args.checkpoint)
    if args.to == "onnx":
        from torchadder.export import to_onnx

        to_onnx(model, path, example, dynamic_size=args.any_size)
    else:
        from torchadder.export import to_torch

        to_torch(model, path, example, dynamic_size=args.any_size)
    C, H, W = example.shape[1:]
    size = "any size" if args.any_size else f"{H} x {W}"
    print(f"{path}: {os.path.getsize(path):,} bytes, takes (N, {C}, height, width) of {size}")


def _to_c(args: Any) -> None:
    from torchadder import checkpoint
    from torchadder.export import to_c
    from torchadder.export.c import check_name
    from torchadder.export.c.folder import check_place
    from torchadder.quantize import Int8Config, IntegerNet
    from torchadder.training.quantization import QuantizedCheckpoint
    from torchadder.training.weights import weights_of

    # Calibration takes a while: what is wrong with the name or the folder is said before.
    check_name(args.name)
    check_place(Path(args.output), force=args.force)
    path = _classifier(weights_of(args.checkpoint))
    model = checkpoint.load(path)
    if isinstance(model, IntegerNet):
        if args.data.source is not None:
            raise UserError(f"--data.source: {path} is quantised already")
        program = model.program()
    else:
        print(f"{path}: a float net; quantising it to 8 bits", file=sys.stderr)
        data = {} if args.data.source is None else {"source": args.data.source}
        program, _ = QuantizedCheckpoint(path, data).calibration.lower(Int8Config())
    names = checkpoint.read_info(path).metadata.get("class_names")
    print(to_c(program, args.output, name=args.name, class_names=names, force=args.force))


def _net(path: str) -> tuple[nn.Module, Tensor]:
    """The net of a checkpoint, and an image as it takes them."""
    import torch

    from torchadder import checkpoint
    from torchadder.quantize import IntegerNet
    from torchadder.training.weights import weights_of

    found = _classifier(weights_of(path))
    model = checkpoint.load(found)
    preprocess = checkpoint.read_info(found).metadata.get("preprocess")
    if isinstance(model, IntegerNet):
        shape = [model.input.channels, model.input.height, model.input.width]
    elif preprocess is not None:
        shape = [preprocess[key] for key in ("channels", "height", "width")]
    else:
        shape = list(getattr(model, "image_shape", ()))
    if not shape:
        raise UserError(f"{found}: the size of its images is not known; use torchadder.export")
    return model, torch.zeros(1, *shape)


def _classifier(path: Path) -> Path:
    from torchadder import checkpoint

    if "detection" in checkpoint.read_info(path).metadata:
        raise UserError(
            f"{path}: holds a detector, only classifiers are exported; "
            "torchadder.export.to_onnx takes a detector's backbone"
        )
    return path
