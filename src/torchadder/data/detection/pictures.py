"""Where the images of a split are, and how one of them is opened.

Nothing is decoded before it is asked for. Names of files are one array of bytes and not a list of
strings, so that worker processes share their memory.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image

from torchadder.data.detection.problems import DetectionDataError
from torchadder.data.orientation import upright_size
from torchadder.data.sources import DataError, locate


class Pictures(Protocol):
    """The images of a split in their order."""

    def open(self, index: int) -> PIL.Image.Image:
        """Image `index`, decoded; raises DetectionDataError naming it."""
        ...

    def where(self, index: int) -> str:
        """Words that let a user find it."""
        ...

    def file_name(self, index: int) -> str:
        """Its name in files that we write."""
        ...

    def select(self, rows: np.ndarray) -> Pictures:
        """Some of them."""
        ...


class Texts:
    """Strings in two arrays: all bytes, and where each string begins."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._starts = np.concatenate([[0], np.cumsum([len(text) for text in encoded])]).astype(int)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:
        piece = self._bytes[self._starts[index] : self._starts[index + 1]]
        return piece.tobytes().decode("utf-8", "surrogateescape")


class FilePictures:
    """Images in files.

    Args:
        folder: What the names are relative to.
        names: Paths of the files below it.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = Texts(names)

    def open(self, index: int) -> PIL.Image.Image:
        """Image `index`, decoded."""
        return _decoded(self.where(index), self.where(index))

    def where(self, index: int) -> str:
        """Its path."""
        return str(self.folder / self.names[index])

    def file_name(self, index: int) -> str:
        """Its path below the folder."""
        return self.names[index]

    def select(self, rows: np.ndarray) -> FilePictures:
        """Some of them."""
        return FilePictures(self.folder, [self.names[int(row)] for row in rows])


class TablePictures:
    """Images in a column of a `datasets` table.

    Args:
        table: A `datasets.Dataset` whose column holds {"bytes", "path"}.
        column: Name of the column.
        split: Name of the split, for errors.
        files: Its files and their numbers of rows, for errors.
    """

    def __init__(
        self, table: Any, column: str, split: str, files: list[tuple[str, int]] | None = None
    ) -> None:
        self.table = table
        self.column = column
        self.split = split
        self.files = files or []
        self.rows = np.arange(len(table))

    def open(self, index: int) -> PIL.Image.Image:
        """Image `index`, decoded."""
        return _decoded(self.encoded(index), self.where(index))

    def encoded(self, index: int) -> bytes | str:
        """The bytes of image `index`, or the path of its file."""
        cell = self.table[int(self.rows[index])][self.column]
        if not cell or not (cell["bytes"] or cell["path"]):
            raise DetectionDataError(f"{self.where(index)}: column {self.column!r} is empty")
        return cell["bytes"] or cell["path"]

    def where(self, index: int) -> str:
        """Its file or split, and its row."""
        return locate(self.files, self.split, int(self.rows[index]))

    def file_name(self, index: int) -> str:
        """The name of its file if the table has it, else one made of its row."""
        cell = self.table[int(self.rows[index])][self.column] or {}
        return Path(cell.get("path") or f"{self.split}_{self.rows[index]}").name

    def select(self, rows: np.ndarray) -> TablePictures:
        """Some of them."""
        chosen = TablePictures(self.table, self.column, self.split, self.files)
        chosen.rows = self.rows[rows]
        return chosen


def size_of(encoded: bytes | str) -> tuple[int, int]:
    """Height and width of an encoded image once it is upright, from its header alone.

    Raises:
        DataError: If it is no image.
    """
    try:
        with PIL.Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as file:
            return upright_size(file)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"cannot be decoded ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return "no known image format" if "cannot identify" in str(error) else str(error)


def _decoded(encoded: bytes | str, where: str) -> PIL.Image.Image:
    from torchadder.data.images import decode

    try:
        return decode(encoded)
    except DataError as error:
        raise DetectionDataError(f"{where}: {error}") from error
