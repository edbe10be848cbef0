"""Reads folders as of PASCAL VOC: JPEGImages, Annotations, ImageSets/Main, perhaps classes.txt.

http://host.robots.ox.ac.uk/pascal/VOC/. VOC counts pixels from 1 and includes the last one: xmin,
ymin, xmax, ymax become (xmin - 1, ymin - 1, xmax, ymax). `first_pixel=0` takes coordinates as they
are.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torchadder.data.detection.options import (
    Options,
    checked_names,
    is_image,
    known_size,
    read_names,
    read_text,
    split_of,
)
from torchadder.data.detection.pictures import FilePictures
from torchadder.data.detection.problems import DetectionDataError, Problems
from torchadder.data.detection.tables import Categories, DetectionSplit, SplitBuilder

_HINT = "; first_pixel=0 reads files that count from 0"
_COORDINATES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Object:
    """An object of a file; `problem` says why it has no box."""

    name: str
    box: tuple[float, ...]
    is_difficult: bool
    problem: str | None


def is_folder(folder: Path) -> bool:
    """Whether a folder looks like one of VOC."""
    return next((folder / "Annotations").glob("*.xml"), None) is not None


def read(
    path: Path, options: Options, problems: Problems
) -> tuple[Categories, dict[str, DetectionSplit]]:
    """The classes and splits of a folder.

    Every annotation is read once, however many splits list its image.

    Raises:
        DetectionDataError: If folders are missing or no image is listed.
    """
    annotations = path / "Annotations"
    images = path / "JPEGImages" if options.images is None else Path(options.images).expanduser()
    for folder in (annotations, images):
        if not folder.is_dir():
            raise DetectionDataError(f"{folder}: no such folder")
    lists = _lists(path)
    stems = sorted({stem for members in lists.values() for stem in members})
    if not stems:
        raise DetectionDataError(f"{path}: no image is listed in ImageSets/Main or annotated")
    files = {file.stem: file for file in sorted(images.iterdir()) if is_image(file)}
    parsed = {}
    for stem in stems:
        file = annotations / f"{stem}.xml"
        if not file.is_file():
            problems.report(str(file), "the annotation of a listed image is missing")
            continue
        try:
            root = ElementTree.fromstring(file.read_bytes())  # in the encoding that it declares
        except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
            problems.report(str(file), f"no readable XML ({error})")
            continue
        if root.tag != "annotation":
            problems.report(str(file), f"its root is <{root.tag}>, <annotation> is wanted")
            continue
        where = str(file)
        image = files.get(stem, images / f"{stem}.jpg")
        size = known_size(
            image,
            _whole(root.findtext("size/height")),
            _whole(root.findtext("size/width")),
            where,
            problems,
        )
        if size is not None:
            objects = [_object(entry, options.first_pixel) for entry in root.iterfind("object")]
            parsed[stem] = (image.name, size, objects)
    categories = _categories(path, options, parsed)
    labels = {name: label for label, name in enumerate(categories.names)}
    builder = SplitBuilder(categories, problems, _HINT if options.first_pixel == 1 else "")
    rows = {}
    for stem, (_, size, objects) in parsed.items():
        rows[stem] = row = builder.add_image(len(rows) + 1, *size)
        for index, entry in enumerate(objects):
            where = f"{annotations / stem}.xml, object {index}"
            if entry.problem is not None:
                problems.report(where, entry.problem)
            elif entry.name not in labels:
                problems.report(where, f"class {entry.name!r} is unknown")
            else:
                label = labels[entry.name]
                builder.add_object(row, where, entry.box, label, is_difficult=entry.is_difficult)
    everything = builder.finish("all", FilePictures(images, [name for name, *_ in parsed.values()]))
    splits = {}
    for name, members in lists.items():
        chosen = [rows[stem] for stem in members if stem in rows]
        splits[name] = everything.select(name, np.array(chosen, dtype=np.int64))
    return categories, splits


def _lists(path: Path) -> dict[str, list[str]]:
    """The images of each split: several lists of one split are joined, those of a class left.

    Without a list, every annotated image is for training; so are the images of the only list, if
    its name speaks of no split.

    Raises:
        DetectionDataError: If an image is listed twice for a split, or for none.
    """
    folder = path / "ImageSets" / "Main"
    files = sorted(folder.glob("*.txt"))
    if not files:
        return {"train": sorted(file.stem for file in (path / "Annotations").glob("*.xml"))}
    lists = {file: stems for file in files if (stems := _listed(file)) is not None}
    if not lists:
        raise DetectionDataError(
            f"{folder}: only lists of one class ({files[0].name}, ...); train.txt or the like is "
            "wanted"
        )
    found: dict[str, dict[str, Path]] = {}
    others = []
    for file, stems in lists.items():
        name = split_of(file.stem) or ("train" if len(lists) == 1 else None)
        if name is None:
            others.append(file)
            continue
        members = found.setdefault(name, {})
        for stem in stems:
            if stem in members:
                again = "twice" if members[stem] == file else f"in {members[stem].name} too"
                raise DetectionDataError(f"{file}: image {stem!r} is listed {again} ({name})")
            members[stem] = file
    for file in others:
        unused = [stem for stem in lists[file] if not any(stem in of for of in found.values())]
        if unused:
            raise DetectionDataError(
                f"{file}: no split in its name, and image {unused[0]!r} is in no other list; "
                "train, trainval, val or test is wanted"
            )
    return {name: list(members) for name, members in found.items()}


def _listed(file: Path) -> list[str] | None:
    """The images of a list, or None if it says which of them show a class (`cat_train.txt`)."""
    rows = [line.split() for line in read_text(file).splitlines() if line.strip()]
    if "_" in file.stem and all(len(row) == 2 and row[1] in ("-1", "0", "1") for row in rows):
        return None
    return [row[0] for row in rows]


def _categories(path: Path, options: Options, parsed: dict[str, tuple]) -> Categories:
    if options.class_names is not None:
        return Categories.numbered(checked_names(options.class_names, "class_names"))
    listed = path / "classes.txt"
    if listed.is_file():
        return Categories.numbered(read_names(listed))
    if options.fallback_names is not None:
        return Categories.numbered(options.fallback_names)
    names = sorted({entry.name for *_, objects in parsed.values() for entry in objects})
    return Categories.numbered(checked_names(filter(None, names), f"{path}: the annotations"))


def _object(entry: ElementTree.Element, first_pixel: int) -> _Object:
    name = (entry.findtext("name") or "").strip()
    is_difficult = (entry.findtext("difficult") or "0").strip() == "1"
    texts = [entry.findtext(f"bndbox/{key}") for key in _COORDINATES]
    try:
        x1, y1, x2, y2 = (float(text or "") for text in texts)
    except ValueError:
        shown = ", ".join(f"{key} {text!r}" for key, text in zip(_COORDINATES, texts, strict=True))
        return _Object(name, (), is_difficult, f"{shown}: four numbers are wanted")
    return _Object(name, (x1 - first_pixel, y1 - first_pixel, x2, y2), is_difficult, None)


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None
