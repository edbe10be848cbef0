"""What a user may say about a source, and the questions that all readers ask."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchadder.data.detection.digits import DigitScenes
from torchadder.data.detection.pictures import size_of
from torchadder.data.detection.problems import DetectionDataError, Problems
from torchadder.data.detection.values import side_problem
from torchadder.data.sources import IMAGE_SUFFIXES, SPLIT_WORDS, DataError

BOX_FORMATS = ("xywh", "xyxy")


@dataclass(frozen=True)
class Options:
    """The arguments of `open_detection` that a reader may need; described there."""

    images: str | Path | None = None
    class_names: Sequence[str] | None = None
    fallback_names: Sequence[str] | None = None
    num_classes: int | None = None
    box_format: str = "xywh"
    first_pixel: int = 1
    image_column: str | None = None
    objects_column: str | None = None
    scenes: DigitScenes | None = None


def split_of(text: str) -> str | None:
    """The split that a file's or folder's name speaks of.

    >>> split_of("instances_val2017"), split_of("valid"), split_of("labels")
    ('validation', 'validation', None)
    """
    for word in re.split(r"[^a-z]+", text.lower()):
        if word in SPLIT_WORDS or word == "trainval":
            return SPLIT_WORDS.get(word, word)
    return None


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def known_size(
    path: Path, height: Any, width: Any, where: str, problems: Problems
) -> tuple[int, int] | None:
    """Height and width of an image in a file: as annotated, else from the file's header.

    Args:
        path: The file.
        height: Its annotated height, or what stands there instead.
        width: Its annotated width.
        where: The entry that names the file, for errors.
        problems: Takes a file that does not exist or is no image, and sides of no image.

    Returns:
        Height and width, or None if there is a problem.
    """
    if not path.is_file():
        problems.report(where, f"image {path} is missing")
        return None
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        reason = side_problem(height, width)
        if reason is not None:
            problems.report(where, reason)
            return None
        return height, width
    try:
        return size_of(str(path))
    except DataError as error:
        problems.report(where, f"image {path} {error}")
        return None


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        DetectionDataError: If it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise DetectionDataError(f"{path}: cannot be read ({reason})") from error


def read_names(path: Path) -> list[str]:
    """Class names, one a line.

    Raises:
        DetectionDataError: If there are none, or one stands there twice.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return checked_names(names, str(path))


def checked_names(names: Iterable[Any], where: str) -> list[str]:
    """Class names as strings.

    Raises:
        DetectionDataError: If there are none, or one stands there twice.
    """
    found = [str(name) for name in names]
    if not found:
        raise DetectionDataError(f"{where}: no class names")
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise DetectionDataError(f"{where}: class {twice!r} stands there twice")
    return found
