"""Opens a source of annotated images, whatever it is, and divides it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchadder.data.detection import coco, columns, digits, voc, yolo
from torchadder.data.detection.digits import DigitScenes
from torchadder.data.detection.options import BOX_FORMATS, Options
from torchadder.data.detection.problems import DetectionDataError, Problems
from torchadder.data.detection.tables import Categories, DetectionSource, DetectionSplit
from torchadder.data.sources import SPLIT_SEED, DataError

FORMATS = ("coco", "voc", "yolo", "columns", "digit-scenes")


def open_detection(
    source: Any = "digit-scenes",
    *,
    format: str | None = None,
    images: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    fallback_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    box_format: str = "xywh",
    first_pixel: int = 1,
    image_column: str | None = None,
    objects_column: str | None = None,
    scenes: DigitScenes | None = None,
    skip_bad: bool = False,
    check_images: bool = False,
) -> DetectionSource:
    """Opens annotated images and checks every annotation; images are decoded when they are used.

    Args:
        source: "digit-scenes"; a folder of COCO, VOC or YOLO layout, of parquet files or saved by
            `datasets`; a COCO JSON, YOLO YAML or parquet file; an id on the Hugging Face hub; or a
            `datasets.Dataset` or `DatasetDict`.
        format: "coco", "voc", "yolo", "columns" or "digit-scenes"; None finds it out.
        images: Folder of the images, if it is not where the format has it (COCO, VOC, YOLO without
            a YAML file).
        class_names: Names of the classes where the source has none, and their order for VOC;
            refused if the source has others.
        fallback_names: Names of the classes for a source that has none of its own and would be
            refused, or for which they would be made of the objects in it: those of a checkpoint,
            for instance.
        num_classes: Number of classes; refused if the source has another number.
        box_format: "xywh" or "xyxy", for columns.
        first_pixel: What VOC files call the first pixel: 1, or 0.
        image_column: Column of the images, if its name is unusual.
        objects_column: Column of the objects, if its name is unusual.
        scenes: How digit scenes are composed.
        skip_bad: Go on without entries that cannot be used, and list them in `left_out`: an object
            whose box or class is bad, an image that is missing, or whose annotation cannot be read,
            with all its objects.
        check_images: Decode every image once: damaged ones and wrong sizes are found now.

    Returns:
        The splits, the classes, and what was left out.

    Raises:
        DetectionDataError: If the source is none of these, or holds something that cannot be used;
            the message names the file and the entry.
        ValueError: If an argument is none of the values above.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if box_format not in BOX_FORMATS:
        raise ValueError(f"box_format must be one of {', '.join(BOX_FORMATS)}, got {box_format!r}")
    if first_pixel not in (0, 1):
        raise ValueError(f"first_pixel must be 0 or 1, got {first_pixel!r}")
    options = Options(
        images,
        class_names,
        fallback_names,
        num_classes,
        box_format,
        first_pixel,
        image_column,
        objects_column,
        scenes,
    )
    problems = Problems(skip_bad)
    format = format or find_format(source)
    try:
        categories, splits = _read(source, format, options, problems)
    except DetectionDataError:
        raise
    except DataError as error:  # of the readers that classification shares
        raise DetectionDataError(str(error)) from error
    opened = DetectionSource(format, categories, splits, problems.entries)
    if num_classes is not None:
        opened.check_num_classes(num_classes, "num_classes")
    if check_images:
        found: dict[str, str | None] = {}
        for name, split in splits.items():
            splits[name] = _check_images(split, problems, found)
    problems.settle()
    for name, split in splits.items():
        if len(split) == 0:
            left_out = f", {len(problems.entries)} entries were left out" * bool(problems.entries)
            named = f"{source}: " if isinstance(source, str | Path) else ""
            raise DetectionDataError(f"{named}split {name!r} is empty{left_out}")
    return opened


def find_format(source: Any) -> str:
    """Which of `FORMATS` a source has.

    Raises:
        DetectionDataError: If it has none of them, or several.
    """
    if source == "digit-scenes":
        return "digit-scenes"
    if not isinstance(source, (str, Path)):
        tables = source.values() if isinstance(source, dict) else [source]
        if all(hasattr(table, "column_names") for table in tables):
            return "columns"
        raise DetectionDataError(f"source is a {type(source).__name__}; a path or table is wanted")
    path = Path(source).expanduser()
    if path.is_file():
        kinds = {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".parquet": "columns"}
        if path.suffix.lower() not in kinds:
            raise DetectionDataError(
                f"{path}: no annotations that are known by this suffix; a folder or one of "
                f"{', '.join(kinds)} is wanted"
            )
        return kinds[path.suffix.lower()]
    if not path.is_dir():
        name = str(source)
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or path.suffix in (".json", ".yaml"):
            raise DetectionDataError(f"{name}: no such file or folder")
        return "columns"
    kinds = {
        "coco": coco.is_folder(path),
        "voc": voc.is_folder(path),
        "yolo": yolo.is_folder(path),
        "columns": columns.is_folder(path),
    }
    found = [kind for kind, is_it in kinds.items() if is_it]
    if len(found) > 1:
        raise DetectionDataError(f"{path}: could be {' or '.join(found)}; format= chooses")
    if not found:
        raise DetectionDataError(
            f"{path}: neither COCO (annotations/*.json), VOC (Annotations/*.xml), YOLO (data.yaml "
            "or labels/*.txt) nor parquet files"
        )
    return found[0]


def divide(
    source: DetectionSource,
    *,
    train_split: str | None = None,
    val_split: str | None = None,
    val_fraction: float = 0.2,
) -> tuple[DetectionSplit, DetectionSplit]:
    """The training and the validation split.

    Args:
        source: The annotated images.
        train_split: Split to train on; None: "train", else "trainval", else the first one.
        val_split: Split to validate on; None: "validation", else "test", else a part of the
            training images that a fixed seed draws, the same in every run.
        val_fraction: That part.

    Raises:
        DetectionDataError: If a split is missing, or would be empty.
    """
    splits = source.splits
    for argument, name in (("train_split", train_split), ("val_split", val_split)):
        if name is not None and name not in splits:
            raise DetectionDataError(f"{argument}={name!r}: the data has {', '.join(splits)}")
    held_out = val_split or next(
        (name for name in ("validation", "test") if name in splits and name != train_split), None
    )
    left = [name for name in splits if name != held_out]
    usual = [name for name in ("train", "trainval", *left) if name in left]
    chosen = train_split or next(iter(usual), None)
    if chosen is None:
        raise DetectionDataError(f"the data has no split to train on, only {', '.join(splits)}")
    train = splits[chosen]
    if held_out is not None:
        return train, splits[held_out]
    order = np.random.Generator(np.random.PCG64(SPLIT_SEED)).permutation(len(train))
    num_held_out = round(len(train) * val_fraction)
    if not 0 < num_held_out < len(train):
        raise DetectionDataError(
            f"split {chosen!r} has {len(train)} images, of which val_fraction={val_fraction} are "
            f"{num_held_out}: both parts need some"
        )
    held_out_rows, rows = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
    return train.select(chosen, rows), train.select("validation", held_out_rows)


def _read(
    source: Any, format: str, options: Options, problems: Problems
) -> tuple[Categories, dict[str, DetectionSplit]]:
    if format == "digit-scenes":
        return digits.read(options.scenes or DigitScenes(), problems)
    if format == "columns":
        return columns.read(source, options, problems)
    path = Path(source).expanduser()
    if not path.exists():
        raise DetectionDataError(f"{path}: no such file or folder")
    return {"coco": coco.read, "voc": voc.read, "yolo": yolo.read}[format](path, options, problems)


def _check_images(
    split: DetectionSplit, problems: Problems, found: dict[str, str | None]
) -> DetectionSplit:
    """The images of a split that can be decoded and have their size; `found` is what is known."""
    from torchadder.data.detection.items import open_image

    good = []
    for index in range(len(split)):
        where = split.pictures.where(index)
        if where not in found:
            try:
                open_image(split, index)
                found[where] = None
            except DetectionDataError as error:
                found[where] = str(error).removeprefix(f"{where}: ")
                problems.report(where, found[where] or "")
        if found[where] is None:
            good.append(index)
    return split if len(good) == len(split) else split.select(split.name, np.array(good, int))
