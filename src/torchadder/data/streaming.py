"""Training images read in long stretches from parquet files, here or far away, without a copy.

A parquet file is a sequence of row groups, each read as a whole. In every epoch the row groups of
all files are put into a new order, and the rows in that order are cut into one contiguous piece for
each reader: a worker process of a process that trains. A reader goes through its piece from front
to back, holds a bounded number of encoded images, and draws from these at random. So every row
group is read by one reader (two, where the cut falls inside), every image of the plan is used once
per epoch, and the readers do not have to know of each other.

What is read when is a pure function of (seed, epoch, processes, workers): a run that goes on with
the same numbers goes on bit by bit. Transforms and batches are those of `torchadder.data.images`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from torchadder.data.epochs import EpochLoader
from torchadder.data.images import Images, draw
from torchadder.data.plan import BatchPlan
from torchadder.data.sources import (
    DataError,
    ImageSource,
    Split,
    find_column,
    from_tables,
    locate,
    named_classes,
    open_parquet,
    parquet_by_split,
    refuse_empty,
    same_names,
)

_FOOTER_THREADS = 16  # reading one footer of a distant file is mostly waiting


@dataclass(frozen=True)
class RowGroup:
    """Rows of a parquet file that are read together.

    Args:
        file: Path or URL of the file.
        number: Number of the group in its file.
        first: Number of its first row, counted over all files.
        num_rows: Number of its rows.
    """

    file: str
    number: int
    first: int
    num_rows: int


@dataclass
class Stream:
    """The training images of a data set whose parquet files are read as they are needed.

    Args:
        split: The images; `split.encoded` holds those that were read and are not yet used.
        groups: The row groups of all files, in their order.
        label_column: Column of the labels.
        num_classes: Number of classes.
    """

    split: Split
    groups: list[RowGroup]
    label_column: str
    num_classes: int

    def read(self, group: RowGroup, start: int = 0, stop: int | None = None) -> list[int]:
        """Reads rows of a group into the split.

        Args:
            group: Which group.
            start: First of its rows.
            stop: The row after the last one; None: all.

        Returns:
            Numbers of the rows.

        Raises:
            DataError: If they cannot be read, or a label is none.
        """
        columns = [self.split.column, self.label_column]
        try:
            with _opened(group.file) as file:
                table = pq.ParquetFile(file).read_row_group(group.number, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{group.file}: cannot be read ({str(error).strip()})") from error
        stop = group.num_rows if stop is None else stop
        cells = table[self.split.column].slice(start, stop - start).to_pylist()
        labels = table[self.label_column].slice(start, stop - start).to_pylist()
        rows = list(range(group.first + start, group.first + stop))
        for row, cell, label in zip(rows, cells, labels, strict=True):
            if not isinstance(label, int) or not 0 <= label < self.num_classes:
                where = locate(self.split.files, "train", row)
                raise DataError(
                    f"{where}: column {self.label_column!r} is {label!r}, "
                    f"0..{self.num_classes - 1} is wanted"
                )
            self.split.encoded[row] = {self.split.column: _image_cell(cell)}
            self.split.labels[row] = label
        return rows

    def first_rows(self, count: int = 1000) -> list[int]:
        """Reads some rows from the front, to find out what the images are like."""
        rows: list[int] = []
        for group in self.groups:
            rows += self.read(group, 0, min(group.num_rows, count - len(rows)))
            if len(rows) == count:
                break
        return rows


def open_stream(
    source: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
) -> tuple[Stream, ImageSource]:
    """Opens a data set without reading its training images.

    The names of its classes come from the files, or their number is given: labels are seen only
    when they are read.

    Args:
        source: A folder of parquet files or the id of a data set on the Hugging Face hub.
        image_column: Column of the images, if its name is unusual.
        label_column: Column of the labels, if its name is unusual.
        num_classes: Number of classes.

    Returns:
        The training images, and the other splits, opened as they always are.

    Raises:
        DataError: If the source has no parquet files, no training split or no other one, or the
            number of classes is unknown.
    """
    refuse_empty(source)
    path = Path(source).expanduser()
    if path.is_dir():
        files = {
            name: [str(file) for file in members]
            for name, members in parquet_by_split(path).items()
        }
    elif path.exists() or source == "mnist":
        raise DataError(f"data.streaming reads parquet files; data.source={source!r} has none")
    else:
        files = _files_on_hub(source)
    if "train" not in files or len(files) < 2:
        raise DataError(
            f"data.streaming wants a training split and one to validate on; {source} has "
            f"{', '.join(files) or 'none'}"
        )
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(_footer, files["train"]))
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    where = f"{source}, split 'train'"
    image = find_column(schemas[0].names, image_column, "image", where)
    label = find_column(schemas[0].names, label_column, "label", where)
    known = None
    for file, schema in zip(files["train"], schemas, strict=True):
        _check_columns(file, schema, files["train"][0], schemas[0], (image, label))
        known = same_names(known, file, named_classes(schema, label))
    names = None if known is None else known[1]
    if names is not None and num_classes not in (None, len(names)):
        raise DataError(f"data.num_classes={num_classes}: {source} has {len(names)} named classes")
    if names is None:
        if num_classes is None:
            raise DataError(f"{where}: the classes have no names; data.num_classes is wanted")
        names = [str(index) for index in range(num_classes)]
    groups: list[RowGroup] = []
    first = 0
    for file, footer in zip(files["train"], footers, strict=True):
        for number in range(footer.num_row_groups):
            num_rows = footer.row_group(number).num_rows
            groups.append(RowGroup(file, number, first, num_rows))
            first += num_rows
    if first == 0:
        raise DataError(f"{where} is empty")
    sizes = [(file, footer.num_rows) for file, footer in zip(files["train"], footers, strict=True)]
    split = Split("train", np.zeros(first, dtype=np.int64), {}, image, files=sizes)
    others = [name for name in files if name != "train"]
    if path.is_dir():
        tables = open_parquet(path, {name: [Path(file) for file in files[name]] for name in others})
    else:
        tables = {name: (_table_on_hub(source, name), []) for name in others}
    source_of_others = from_tables(tables, source, image, label, len(names), known)
    return Stream(split, groups, label, len(names)), ImageSource(source_of_others.splits, names)


class StreamBatches(Dataset):
    """Batch number b of epoch e, for whoever asks for a reader's batches in their order.

    Who begins with a later batch than the reader's first has those before read and left out.

    Args:
        stream: The images.
        images: The same images with their transforms.
        plan: The batches of an epoch.
        rank: Number of this process.
        buffer: Encoded images that a reader holds and draws from.
        seed: Seed of the order.
    """

    def __init__(
        self, stream: Stream, images: Images, plan: BatchPlan, *, rank: int, buffer: int, seed: int
    ) -> None:
        self.stream = stream
        self.images = images
        self.plan = plan
        self.rank = rank
        self.buffer = buffer
        self.seed = seed
        self._epoch = -1
        self._rows: Iterator[int] = iter(())

    def __len__(self) -> int:
        return self.plan.num_batches

    def __getitem__(self, ticket: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Images float32 (N, C, H, W) and labels int64 (N) for (epoch, batch)."""
        epoch, batch = ticket
        worker = get_worker_info()
        num_workers = 1 if worker is None else worker.num_workers
        # Not the worker's own number: where an epoch is begun in its middle, another one is asked
        # first, but the reader of a batch stays the same.
        number = batch % num_workers
        if epoch != self._epoch or batch == number:
            self._epoch = epoch
            self.stream.split.encoded.clear()
            self._rows = self._draw(epoch, number, num_workers)
            self._leave_out(range(number, batch, num_workers))
        rows = list(itertools.islice(self._rows, self.plan.share(batch, self.rank)))
        made = self.images.__getitems__([(epoch, row) for row in rows])
        for row in rows:
            del self.stream.split.encoded[row]
        return made

    def _leave_out(self, batches: range) -> None:
        """Reads on to a later batch."""
        num_rows = sum(self.plan.share(batch, self.rank) for batch in batches)
        for row in itertools.islice(self._rows, num_rows):
            del self.stream.split.encoded[row]

    def pieces(self, epoch: int, worker: int, num_workers: int) -> list[tuple[RowGroup, int, int]]:
        """What a reader reads in an epoch: (group, first row in it, row after the last)."""
        plan = self.plan

        def size(rank: int, worker: int) -> int:
            batches = range(worker, plan.num_batches, num_workers)
            return sum(plan.share(batch, rank) for batch in batches)

        start = sum(size(rank, w) for rank in range(self.rank) for w in range(num_workers))
        start += sum(size(self.rank, w) for w in range(worker))
        stop = start + size(self.rank, worker)
        groups = self.stream.groups
        found = []
        position = 0
        for index in torch.randperm(len(groups), generator=self._generator(epoch, 0)).tolist():
            group = groups[index]
            first, last = max(start - position, 0), min(stop - position, group.num_rows)
            if first < last:
                found.append((group, first, last))
            position += group.num_rows
        return found

    def _draw(self, epoch: int, worker: int, num_workers: int) -> Iterator[int]:
        """The reader's rows: one at random of those held, whose place the next one takes."""
        reader = 1 + self.rank * num_workers + worker
        choices = np.random.Generator(np.random.PCG64(self._key(epoch, reader)))
        held: list[int] = []
        for group, first, last in self.pieces(epoch, worker, num_workers):
            for row in self.stream.read(group, first, last):
                held.append(row)
                if len(held) > self.buffer:
                    yield _take(held, choices)
        while held:
            yield _take(held, choices)

    def _key(self, epoch: int, reader: int) -> int:
        return int(draw(self.seed, epoch, np.array([reader]), 13)[0] >> np.uint64(1))

    def _generator(self, epoch: int, reader: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._key(epoch, reader))


class Tickets(Sampler[tuple[int, int]]):
    """Yields (epoch, batch) in order; Lightning calls `set_epoch`.

    Args:
        num_batches: Batches of an epoch.
    """

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.epoch = 0
        self._start = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch."""
        self.epoch = epoch

    def start_at(self, epoch: int, batch: int) -> None:
        """Chooses an epoch whose first batches are left out."""
        self.epoch = epoch
        self._start = (epoch, batch)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, batch = self._start
        first = batch if self.epoch == epoch else 0
        return zip(itertools.repeat(self.epoch), range(first, self.num_batches), strict=False)


def stream_loader(
    batches: StreamBatches, tickets: Tickets, *, workers: int, pin_memory: bool
) -> DataLoader:
    """A loader whose workers are the readers; torch asks one after the other for a batch."""
    return EpochLoader(
        batches,
        batch_size=None,
        sampler=tickets,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # A generator of its own keeps the loader from drawing on torch's global one.
        generator=torch.Generator().manual_seed(batches.seed),
    )


def _image_cell(cell: Any) -> dict[str, Any]:
    """A cell of the image column as `datasets` has it: bytes, or the path of a file."""
    if isinstance(cell, dict):
        return {"bytes": None, "path": None} | cell
    is_path = isinstance(cell, str)
    return {"bytes": None if is_path else cell, "path": cell if is_path else None}


def _take(held: list[int], choices: np.random.Generator) -> int:
    index = int(choices.integers(len(held)))
    held[index], held[-1] = held[-1], held[index]
    return held.pop()


def _opened(file: str) -> Any:
    if "://" not in file:
        return open(file, "rb")
    import fsspec

    return fsspec.open(file, "rb")


def _footer(file: str) -> Any:
    try:
        with _opened(file) as opened:
            return pq.ParquetFile(opened).metadata
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable parquet file ({str(error).strip()})") from error


def _check_columns(
    file: str, schema: pa.Schema, first: str, wanted: pa.Schema, columns: tuple[str, ...]
) -> None:
    """Refuses a file without the columns of the first one, or with other types in them."""
    for column in columns:
        if column not in schema.names:
            raise DataError(
                f"{file}: no column {column!r}, which {first} has, among {', '.join(schema.names)}"
            )
        got, want = schema.field(column).type, wanted.field(column).type
        if got != want and not (pa.types.is_integer(got) and pa.types.is_integer(want)):
            raise DataError(f"{file}: column {column!r} holds {got}, but {want} in {first}")


def _table_on_hub(source: str, split: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(source, split=split)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise DataError(
            f"data.source={source!r}: split {split!r} cannot be had ({type(error).__name__})"
        ) from error


def _files_on_hub(source: str) -> dict[str, list[str]]:
    """The parquet files of each split of a data set on the hub, as `datasets` finds them."""
    from datasets import load_dataset_builder

    try:
        found = load_dataset_builder(source).config.data_files or {}
    except Exception as error:
        # As in `open_source`: a dozen unrelated types mean that there is no such data set.
        raise DataError(
            f"data.source={source!r}: no such folder, and the Hugging Face hub gave no data set of "
            f"that id ({type(error).__name__})"
        ) from error
    files = {str(name): [str(file) for file in members] for name, members in found.items()}
    for members in files.values():
        for file in members:
            if not file.endswith(".parquet"):
                raise DataError(f"data.streaming reads parquet files; {source} has {file}")
    return files
