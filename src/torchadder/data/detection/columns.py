"""Reads Hugging Face tables: a column of images, and `objects` with their boxes and categories.

`objects` is a list of structs or a struct of lists with `bbox` and `category`, perhaps `area`,
`iscrowd`, `difficult`. Boxes are (x, y, width, height) as in COCO, or (x1, y1, x2, y2) by
`box_format`: numbers alone do not tell. Everything is opened by `datasets`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchadder.data.detection.options import BOX_FORMATS, Options, checked_names
from torchadder.data.detection.pictures import TablePictures, size_of
from torchadder.data.detection.problems import DetectionDataError, Problems
from torchadder.data.detection.tables import Categories, DetectionSplit, SplitBuilder
from torchadder.data.detection.values import is_box, is_id, is_real, side_problem
from torchadder.data.sources import (
    DataError,
    find_column,
    open_hub,
    open_parquet,
    parquet_by_split,
    quiet_datasets,
)

_OBJECTS = ("objects", "annotations", "faces")
_CATEGORY = ("category", "categories", "category_id", "label", "labels", "class")
_CROWD = ("iscrowd", "is_crowd")
_SAVED = ("dataset_dict.json", "dataset_info.json")

Tables = dict[str, tuple[Any, list[tuple[str, int]]]]


def is_folder(folder: Path) -> bool:
    """Whether a folder holds parquet files or a table saved by `datasets`."""
    is_saved = any((folder / name).is_file() for name in _SAVED)
    return is_saved or next(folder.rglob("*.parquet"), None) is not None


def read(
    source: Any, options: Options, problems: Problems
) -> tuple[Categories, dict[str, DetectionSplit]]:
    """The classes and splits of a table, a folder, or a data set on the hub.

    Raises:
        DetectionDataError: If a column is missing, holds something else, or classes are unknown.
    """
    tables = _open(source)
    names: list[str] | None = None
    chosen = {}
    for split, (table, _) in tables.items():
        where = f"split {split!r}"
        columns = table.column_names
        image = find_column(columns, options.image_column, "image", where)
        wanted = [options.objects_column] if options.objects_column else list(_OBJECTS)
        objects = next((name for name in wanted if name in columns), None)
        if objects is None:
            raise DetectionDataError(
                f"{where}: no column {' or '.join(wanted)} among {', '.join(columns)}; "
                "objects_column names another"
            )
        fields = _fields(table.features[objects], f"{where}, column {objects!r}")
        category = next((name for name in _CATEGORY if name in fields), None)
        if "bbox" not in fields or category is None:
            raise DetectionDataError(
                f"{where}, column {objects!r}: fields {', '.join(fields)}; bbox and category are "
                "wanted"
            )
        chosen[split] = (image, objects, category)
        names = names or getattr(_innermost(fields[category]), "names", None)
    if options.class_names is not None:
        if names is not None and list(options.class_names) != list(names):
            raise DetectionDataError(
                f"class_names are {', '.join(options.class_names)}; the classes of the table are "
                f"{', '.join(names)}"
            )
        names = checked_names(options.class_names, "class_names")
    if names is None and options.fallback_names is not None:
        names = list(options.fallback_names)
    if names is None:
        names = _names_in(tables, chosen, options)
    categories = Categories.numbered(names)
    splits = {
        split: _read_split(split, table, files, chosen[split], categories, options, problems)
        for split, (table, files) in tables.items()
    }
    return categories, splits


def _open(source: Any) -> Tables:
    if isinstance(source, Mapping):
        return {str(name): (table, []) for name, table in source.items()}
    if not isinstance(source, (str, Path)):
        return {"train": (source, [])}
    path = Path(source).expanduser()
    if path.is_file():
        return open_parquet(path.parent, {"train": [path]})
    if not path.is_dir():
        return {name: (table, []) for name, table in open_hub(str(source)).items()}
    if any((path / name).is_file() for name in _SAVED):
        with quiet_datasets() as datasets:
            try:
                return _open(datasets.load_from_disk(str(path)))
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise DetectionDataError(f"{path}: no table of `datasets` ({reason})") from error
    files = parquet_by_split(path)
    if not files:
        raise DetectionDataError(f"{path}: no parquet files in it")
    return open_parquet(path, files)


def _fields(feature: Any, where: str) -> dict[str, Any]:
    while hasattr(feature, "feature"):
        feature = feature.feature
    if not isinstance(feature, dict):
        raise DetectionDataError(f"{where} holds {feature}; structs with bbox, category are wanted")
    return feature


def _innermost(feature: Any) -> Any:
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature


def _objects(table: Any, column: str, category: str) -> Iterator[list[dict[str, Any]] | str]:
    """The objects of each row as structs, or what is wrong with them."""
    for batch in table.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        for cell in batch[column].to_pylist():
            if isinstance(cell, dict):
                yield _structs(cell, category)
            else:
                yield [entry or {} for entry in cell or []]


def _structs(cell: dict[str, Any], category: str) -> list[dict[str, Any]] | str:
    """A struct of lists as a list of structs; fields that are no lists say nothing of an object."""
    for name in ("bbox", category):
        if not isinstance(cell[name], (list, type(None))):
            return f"{name} {cell[name]!r} is no list"
    lists = {key: value for key, value in cell.items() if isinstance(value, list)}
    lengths = {key: len(value) for key, value in lists.items()}
    if len(set(lengths.values())) > 1:
        return f"lists of different lengths {lengths}"
    rows = zip(*lists.values(), strict=True)
    return [dict(zip(lists, values, strict=True)) for values in rows]


def _names_in(
    tables: Tables, chosen: dict[str, tuple[str, str, str]], options: Options
) -> list[str]:
    """Names of classes that the table does not list: its texts, or numbers from 0."""
    found: set[str | int] = set()
    for split, (table, _) in tables.items():
        _, objects, category = chosen[split]
        for cell in _objects(table, objects, category):
            if not isinstance(cell, str):
                values = [entry.get(category) for entry in cell]
                found |= {value for value in values if isinstance(value, (str, int))}
    texts = sorted(value for value in found if isinstance(value, str))
    if texts:
        return texts
    numbers = [value for value in found if isinstance(value, int) and value >= 0]
    count = options.num_classes or max(numbers, default=-1) + 1
    if count < 1:
        raise DetectionDataError("no object has a category; class_names or num_classes is wanted")
    if options.num_classes is None and len(set(numbers)) < count:
        raise DetectionDataError(
            f"category {count - 1} is the largest, but {count - len(set(numbers))} of those below "
            f"it never occur; num_classes={count} accepts them"
        )
    return [str(label) for label in range(count)]


def _read_split(
    split: str,
    table: Any,
    files: list[tuple[str, int]],
    columns: tuple[str, str, str],
    categories: Categories,
    options: Options,
    problems: Problems,
) -> DetectionSplit:
    import numpy as np
    from datasets import Image

    image, objects, category = columns
    try:
        encoded = table.select_columns([image]).cast_column(image, Image(decode=False))
    except (TypeError, ValueError) as error:
        kind = table.features[image]
        raise DetectionDataError(
            f"split {split!r}: column {image!r} holds {kind}, not images"
        ) from error
    pictures = TablePictures(encoded, image, split, files)
    builder = SplitBuilder(categories, problems, _hint(options))
    labels = {name: label for label, name in enumerate(categories.names)}
    image_ids = _whole_numbers(table, "image_id")
    heights, widths = _whole_numbers(table, "height"), _whole_numbers(table, "width")
    kept = []
    for index, cell in enumerate(_objects(table, objects, category)):
        where = pictures.where(index)
        if isinstance(cell, str):
            problems.report(where, cell)
            continue
        if heights is not None and widths is not None:
            size = heights[index], widths[index]
        else:
            try:
                size = size_of(pictures.encoded(index))
            except DetectionDataError as error:
                problems.report(where, str(error).removeprefix(f"{where}: "))
                continue
            except DataError as error:
                problems.report(where, f"the image {error}")
                continue
        reason = side_problem(*size)
        if reason is not None:
            problems.report(where, reason)
            continue
        row = builder.add_image(index + 1 if image_ids is None else image_ids[index], *size)
        kept.append(index)
        for number, entry in enumerate(cell):
            _read_object(
                entry, row, f"{where}, object {number}", category, labels, builder, options
            )
    return builder.finish(split, pictures.select(np.array(kept, dtype=np.int64)))


def _read_object(
    entry: dict[str, Any],
    row: int,
    where: str,
    category: str,
    labels: dict[str, int],
    builder: SplitBuilder,
    options: Options,
) -> None:
    value = entry.get(category)
    label = labels.get(value) if isinstance(value, str) else value
    if not isinstance(label, int) or not 0 <= label < len(labels):
        builder.problems.report(where, f"{category} {value!r} is unknown")
        return
    box = entry.get("bbox")
    if not is_box(box):
        wanted = ", ".join(options.box_format if options.box_format == "xywh" else BOX_CORNERS)
        builder.problems.report(where, f"bbox {box!r}: four numbers {wanted} are wanted")
        return
    area = entry.get("area")
    if not (area is None or is_real(area)):
        builder.problems.report(where, f"area {area!r}: a number is wanted")
        return
    x1, y1, x2, y2 = box
    if options.box_format == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    builder.add_object(
        row,
        where,
        (x1, y1, x2, y2),
        label,
        is_crowd=any(bool(entry.get(name)) for name in _CROWD),
        is_difficult=bool(entry.get("difficult")),
        area=area,
    )


BOX_CORNERS = ("x1", "y1", "x2", "y2")


def _hint(options: Options) -> str:
    other = next(name for name in BOX_FORMATS if name != options.box_format)
    return f" (read as {options.box_format}; box_format={other!r} is the other way)"


def _whole_numbers(table: Any, column: str) -> list[int] | None:
    """A column of positive integers, or None if it is none or a number is missing."""
    if column not in table.column_names:
        return None
    values = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    if not all(is_id(value) and value >= 0 for value in values):
        return None
    return values if column != "image_id" or len(set(values)) == len(values) else None
