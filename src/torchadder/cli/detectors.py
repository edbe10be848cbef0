"""What `torchadder evaluate`, `predict` and `train` do with a detector."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchadder.cli import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from torchadder.training.detector_evaluation import Evaluation, Found, TrainedDetector

OWN_FOLDER = "runs/"
"""What `--save` without a folder stands for: a new folder in there."""

_NAMES = {"fcos": "FCOS", "retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN"}

# Keys of the recipe's section `detection` that say how annotated images are opened.
_OPENING = ("format", "images", "box_format", "first_pixel", "objects_column", "skip_bad")


def add_evaluation_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder evaluate` that only detectors have."""
    parser.add_argument(
        "--detection.format",
        type=str | None,
        help="Detectors: what the source is: coco, voc, yolo, columns or digit-scenes.",
    )
    parser.add_argument(
        "--detection.images", type=str | None, help="Detectors: folder of the images."
    )
    parser.add_argument(
        "--detection.box_format", type=str | None, help="Detectors: xywh or xyxy, for columns."
    )
    parser.add_argument(
        "--detection.first_pixel",
        type=int | None,
        help="Detectors: what VOC files call the first pixel, 1 or 0.",
    )
    parser.add_argument(
        "--detection.objects_column", type=str | None, help="Detectors: column of the objects."
    )
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help="Detectors: go on without annotations that cannot be used, and list them.",
    )
    parser.add_argument(
        "--save",
        nargs="?",
        const=OWN_FOLDER,
        type=str | None,
        help="Detectors: folder, new or empty, for figures, curves and what was found "
        "(alone: runs/evaluate-TIME).",
    )


def refuse_evaluation_options(args: Any, reason: str) -> None:
    """Refuses options that mean nothing for other nets.

    Args:
        args: What was given.
        reason: Why no detector is evaluated here.

    Raises:
        UserError: Naming the first one.
    """
    given = [f"detection.{key}" for key in _opening(args) if key != "skip_bad"]
    given += [name for name in ("skip_bad", "save") if args[name]]
    if given:
        raise UserError(f"--{given[0]} is for detectors, and {reason}")


def evaluate(args: Any, data: dict[str, Any]) -> None:
    """Evaluates a detector and prints its figures."""
    from torchadder.training.detector_evaluation import evaluate_detector, open_detector

    if "label_column" in data:
        raise UserError(
            f"--data.label_column is for nets that name images, and {args.checkpoint} holds a "
            "detector; --detection.objects_column names the column of the objects"
        )
    folder = None if args.save is None else _new_folder(args.save, "evaluate")
    net = open_detector(args.checkpoint)
    result = evaluate_detector(
        net,
        data,
        _opening(args),
        batch_size=args.batch_size,
        threads=args.threads,
        accelerator=args.accelerator,
    )
    if folder is not None:
        write_evaluation(folder, net, result)
    figures = {"checkpoint": str(net.path)} | result.to_dict()
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    show(figures)
    if folder is not None:
        print(f"written to {folder}")


def show(figures: dict[str, Any]) -> None:
    """Prints what a detector reaches."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    lines = {
        "checkpoint": figures["checkpoint"],
        "images": f"{figures['num_images']:,} of {figures['source']}, split {figures['split']}, "
        f"with {figures['num_objects']:,} objects",
        "AP": percent(figures["ap"]),
        "AP50": percent(figures["ap50"]),
        "AP75": percent(figures["ap75"]),
        "AP small": percent(figures["ap_small"]),
        "AP medium": percent(figures["ap_medium"]),
        "AP large": percent(figures["ap_large"]),
        "VOC AP, area": percent(figures["voc_ap"]),
        "VOC AP, 11 points": percent(figures["voc_ap11"]),
        "multiplications": f"{figures['num_mul']:,} at {figures['height']}x{figures['width']}",
        "additions": f"{figures['num_add']:,}",
        "energy": f"{figures['energy_mj']:,.3f} mJ",
        "time": f"{figures['seconds']:.1f} s",
    }
    for name, value in lines.items():
        print(f"{name:<20}{value}")
    width = max(map(len, figures["per_class"]))
    print(f"\n{'class':<{width}}  {'AP':>8}  {'AP50':>8}  {'VOC AP':>8}")
    for name, values in figures["per_class"].items():
        cells = "  ".join(f"{percent(values[key]):>8}" for key in ("ap", "ap50", "voc_ap"))
        print(f"{name:<{width}}  {cells}")
    show_left_out(figures["left_out"])


def show_left_out(entries: Sequence[Any]) -> None:
    """Prints what could not be used and was skipped."""
    if entries:
        print(f"\nleft out ({len(entries)}):")
    for entry in entries:
        print(f"  {entry}")


def write_evaluation(folder: Path, net: TrainedDetector, result: Evaluation) -> None:
    """Writes `evaluation.json`, `predictions.json` and `pr_curve.png` into a folder."""
    from torchadder.atomic import write_atomically
    from torchadder.data.detection import write_json
    from torchadder.provenance import provenance
    from torchadder.report.detection import draw_precision, kind_of

    figures = {"checkpoint": net.path.name} | result.to_dict() | provenance()
    write_atomically(folder / "evaluation.json", json.dumps(figures, indent=2) + "\n")
    write_json(folder / "predictions.json", result.found)
    draw_precision(folder, result.coco.precision_50, result.coco.per_class_50, kind_of(net.config))


def report_run(result: Any) -> None:
    """Says what the training of a detector came to, and draws it into its run folder."""
    from torchadder.report.detection import draw_course, kind_of
    from torchadder.training import distributed
    from torchadder.training.detector_evaluation import evaluate_detector, open_detector
    from torchadder.training.recipe import read_recipe

    distributed.leave()
    monitor = next(name for name in result.metrics if name.startswith("best_val_"))
    words = {"best_val_ap": "AP", "best_val_voc_ap": "VOC AP"}
    print(
        f"best epoch {result.metrics['best_epoch']:.0f}: validation {words[monitor]} "
        f"{100 * result.metrics[monitor]:.2f} %"
    )
    net = open_detector(result.best_checkpoint)
    accelerator = read_recipe(result.folder).trainer.accelerator
    found = evaluate_detector(net, accelerator=accelerator)
    draw_course(result.folder, result.history, kind_of(net.config))
    write_evaluation(result.folder, net, found)
    print(f"run folder: {result.folder}")


def add_prediction_arguments(parser: ArgumentParser) -> None:
    """Declares the options of `torchadder predict` that only detectors have."""
    parser.add_argument(
        "--score", type=float | None, help="Detectors: smallest score of a box (default: 0.5)."
    )
    parser.add_argument(
        "--save",
        nargs="?",
        const=OWN_FOLDER,
        type=str | None,
        help="Detectors: folder, new or empty, for the images with boxes drawn on them and "
        "predictions.json (alone: runs/predict-TIME).",
    )
    parser.add_argument(
        "--beside",
        type=str | None,
        help="Detectors: another checkpoint, whose boxes are drawn beside those of the first.",
    )
    parser.add_argument(
        "--maps",
        action="store_true",
        help="Detectors: also draw where the feature maps of each level are zero.",
    )


def refuse_prediction_options(args: Any) -> None:
    """Refuses options that mean nothing for other nets.

    Raises:
        UserError: Naming the first one.
    """
    given = [name for name in ("score", "save", "beside") if args[name] is not None]
    given += ["maps"] if args.maps else []
    if given:
        raise UserError(f"--{given[0]} is for detectors, and {args.checkpoint} holds none")


def predict(args: Any) -> None:
    """Prints what is found in image files and draws it; ends in an error if one cannot be read."""
    from torchadder.training.detector_evaluation import find, open_detector
    from torchadder.training.evaluation import image_files

    score = 0.5 if args.score is None else args.score
    if not 0 <= score <= 1:
        raise UserError(f"--score = {score}: a share in 0..1 is wanted")
    if args.csv is not None:
        raise UserError("--csv is for nets that name images; --save writes what a detector finds")
    if args.top is not None:
        raise UserError("--top is for nets that name images; --score says what a detector lists")
    for name in ("beside", "maps"):
        if args[name] and args.save is None:
            raise UserError(f"--{name} draws, and wants --save")
    nets = [open_detector(path) for path in (args.checkpoint, args.beside) if path is not None]
    paths = image_files(args.images)
    folder = None if args.save is None else _new_folder(args.save, "predict")
    names = _drawing_names(paths)
    entries: list[dict[str, Any]] = []
    failed: list[tuple[Path, str]] = []
    for number, path in enumerate(paths, 1):
        found = [next(find(net, [path], score=score)) for net in nets]
        first = found[0]
        if first.error is not None:
            failed.append((path, first.error))
            continue
        print(f"{path}  {_words(first, nets[0])}")
        entries += _entries(first, nets[0], number)
        if folder is not None:
            _draw(folder, names[path], nets, found, maps=args.maps)
    if folder is not None:
        from torchadder.data.detection import write_json

        write_json(folder / "predictions.json", entries)
        print(f"written to {folder}")
    report_unread(failed, len(paths))


def report_unread(failed: Sequence[tuple[Path, str]], num_files: int) -> None:
    """Ends in an error if files could not be read.

    Raises:
        UserError: Naming the file, or how many.
    """
    if len(failed) == 1:
        raise UserError(f"{failed[0][0]}: {failed[0][1]}")
    for path, error in failed:
        print(f"{path}: {error}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {num_files} files could not be read")


def _words(found: Found, net: TrainedDetector) -> str:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    words = [
        f"{net.class_names[label]} {100 * score:.1f} % ({', '.join(f'{v:.0f}' for v in box)})"
        for box, score, label in rows
    ]
    return "  ".join(words) or "nothing found"


def _entries(found: Found, net: TrainedDetector, number: int) -> list[dict[str, Any]]:
    """What was found in an image as entries of a COCO results file, with the file's name."""
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [
        {
            "image_id": number,
            "file_name": str(found.path),
            "category_id": label + 1,
            "category": net.class_names[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label in rows
    ]


def _drawing_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for the drawing of each image: its own, with its number in front if two would meet.

    `NAME.png` and `NAME_zeros.png` are written.
    """
    plain = [path.stem for path in paths]
    written = [*plain, *(f"{name}_zeros" for name in plain)]
    if len(set(written)) == len(written):
        return dict(zip(paths, plain, strict=True))
    digits = len(str(len(paths)))
    return {path: f"{number:0{digits}}_{path.stem}" for number, path in enumerate(paths, 1)}


def _draw(
    folder: Path, name: str, nets: Sequence[TrainedDetector], found: Sequence[Found], *, maps: bool
) -> None:
    from torchadder.report.detection import Panel, draw_panels, draw_zeros, kind_of

    titles = [_title(net) for net in nets]
    panels = [
        Panel(
            title=title if len(nets) > 1 else "",
            image=each.image,  # type: ignore[arg-type]
            boxes=each.boxes.numpy(),
            words=[
                f"{net.class_names[label]} {score:.2f}"
                for label, score in zip(each.labels.tolist(), each.scores.tolist(), strict=True)
            ],
            classes=each.labels.tolist(),
        )
        for title, net, each in zip(titles, nets, found, strict=True)
    ]
    draw_panels(folder / f"{name}.png", panels)
    if maps:
        from torchadder.detection import zero_maps

        assert found[0].image is not None
        image = found[0].image.float() / 255
        shares = {
            (title, kind_of(net.config)): zero_maps(net.model, image)
            for title, net in zip(titles, nets, strict=True)
        }
        draw_zeros(folder / f"{name}_zeros.png", found[0].image, shares)


def _title(net: TrainedDetector) -> str:
    """A detector in a few words.

    FCOS, adder B+N, for instance.
    """
    letters = "+".join(net.config.adder)
    return f"{_NAMES[net.model.config['name']]}, {f'adder {letters}' if letters else 'conv'}"


def _opening(args: Any) -> dict[str, Any]:
    """The keys of the section `detection` that were given."""
    given = {key: args.detection[key] for key in _OPENING if key != "skip_bad"}
    found = {key: value for key, value in given.items() if value is not None}
    return found | ({"skip_bad": True} if args.skip_bad else {})


def _new_folder(path: str, command: str) -> Path:
    """The folder of `--save`, made."""
    from torchadder.training.folders import dated_folder

    folder = dated_folder(command) if path == OWN_FOLDER else Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{path!r} exists and is not empty; nothing in it is overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
