"""Reads COCO instances: a JSON file for each split, and folders of images.

https://cocodataset.org/#format-data. Boxes are (x, y, width, height) from the corner of the image;
classes have any numbers, of which labels 0, 1, ... are made in rising order. Crowds are kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from reprlib import repr as short  # of numbers with hundreds of digits
from typing import Any

from torchadder.data.detection.options import Options, known_size, split_of
from torchadder.data.detection.pictures import FilePictures
from torchadder.data.detection.problems import DetectionDataError, Problems
from torchadder.data.detection.tables import Categories, DetectionSplit, SplitBuilder
from torchadder.data.detection.values import is_box, is_id, is_real

_PARTS = ("images", "annotations", "categories")
_UNUSED = ("segmentation", "keypoints")  # most of a file's size; dropped while it is parsed
_OTHERS = ("dataset_info.json", "dataset_dict.json", "state.json", "package.json")
_FOLDERS = ("train", "valid", "val", "test")
_TRIED_IMAGES = 10


def find_files(folder: Path) -> dict[str, Path]:
    """The instances files of a folder by split; empty if it has none.

    `annotations/instances_*.json` as on COCO's own pages, else all JSON files of `annotations`, the
    folder itself, and `train`, `valid`, `val`, `test`.
    """
    found: dict[str, Path] = {}
    for file in _candidates(folder):
        name = split_of(file.stem) or split_of(file.parent.name) or "train"
        if name in found:
            raise DetectionDataError(f"{file}: {found[name].name} is split {name!r} already")
        found[name] = file
    return found


def is_folder(folder: Path) -> bool:
    """Whether a folder looks like one of COCO."""
    return bool(_candidates(folder))


def _candidates(folder: Path) -> list[Path]:
    annotations = folder / "annotations"
    return sorted(annotations.glob("instances_*.json")) or [
        file
        for place in (annotations, folder, *(folder / name for name in _FOLDERS))
        for file in sorted(place.glob("*.json"))
        if file.name not in _OTHERS
    ]


def read(
    path: Path, options: Options, problems: Problems
) -> tuple[Categories, dict[str, DetectionSplit]]:
    """The classes and splits of a folder or of one file.

    Raises:
        DetectionDataError: If a file is no instances file, or the classes of two files differ.
    """
    files = find_files(path) if path.is_dir() else {split_of(path.stem) or "train": path}
    if not files:
        raise DetectionDataError(f"{path}: no JSON file in it or in its folder 'annotations'")
    categories: Categories | None = None
    splits = {}
    for name, file in files.items():
        content = _load(file)
        found = _categories(content, file)
        if categories is None:
            categories = found
        elif found != categories:
            other = next(iter(files.values()))
            raise DetectionDataError(f"{file}: its categories are not those of {other.name}")
        root = path if path.is_dir() else path.parent
        splits[name] = _read_split(name, file, root, content, categories, options, problems)
    assert categories is not None
    if options.class_names is not None and list(options.class_names) != categories.names:
        raise DetectionDataError(
            f"class_names are {', '.join(options.class_names)}; the classes of {path} are "
            f"{', '.join(categories.names)}"
        )
    return categories, splits


def _load(file: Path) -> dict[str, Any]:
    def slim(entry: dict[str, Any]) -> dict[str, Any]:
        for key in _UNUSED:
            entry.pop(key, None)
        return entry

    try:
        content = json.loads(file.read_bytes(), object_hook=slim)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no JSON: {error}"
        raise DetectionDataError(f"{file}: cannot be read ({reason})") from error
    wanted = "COCO instances have the lists images, annotations, categories"
    if not isinstance(content, dict):
        kind = "a list, as of detection results" if isinstance(content, list) else repr(content)
        raise DetectionDataError(f"{file}: is {kind}; {wanted}")
    for part in _PARTS:
        entries = content.get(part)
        if not isinstance(entries, list):
            raise DetectionDataError(f"{file}: no list {part!r}; {wanted}")
        if not all(isinstance(entry, dict) for entry in entries):
            raise DetectionDataError(f"{file}: {part!r} holds other things than objects; {wanted}")
    annotations = content["annotations"]
    if annotations and not any("bbox" in entry for entry in annotations):
        kind = "captions" if "caption" in annotations[0] else "annotations"
        raise DetectionDataError(f"{file}: holds {kind} without 'bbox', no instances")
    return content


def _categories(content: dict[str, Any], file: Path) -> Categories:
    found: dict[int, str] = {}
    for index, entry in enumerate(content["categories"]):
        number, name = entry.get("id"), entry.get("name")
        if not is_id(number) or not isinstance(name, str):
            raise DetectionDataError(
                f"{file}, category {index}: id {short(number)} and name {name!r}; an integer of 64 "
                "bits and a text are wanted"
            )
        if number in found:
            raise DetectionDataError(f"{file}: category id {number} stands there twice")
        other = next((one for one in found if found[one] == name), None)
        if other is not None:
            raise DetectionDataError(
                f"{file}: categories {other} and {number} are both named {name!r}; class names are "
                "to differ"
            )
        found[number] = name
    if not found:
        raise DetectionDataError(f"{file}: no categories")
    return Categories([found[number] for number in sorted(found)], sorted(found))


def _read_split(
    name: str,
    file: Path,
    root: Path,
    content: dict[str, Any],
    categories: Categories,
    options: Options,
    problems: Problems,
) -> DetectionSplit:
    folder = _image_folder(file, root, content["images"], options)
    builder = SplitBuilder(categories, problems)
    rows: dict[int, int] = {}
    left_out = set()  # images; their objects are not problems of their own
    names = []
    for index, entry in enumerate(content["images"]):
        number, file_name = entry.get("id"), entry.get("file_name")
        where = f"{file}, image {index} (id {number!r}, {file_name!r})"
        if not is_id(number) or not isinstance(file_name, str):
            problems.report(where, "an integer id of 64 bits and a file_name are wanted")
            continue
        if number in rows or number in left_out:
            problems.report(where, "another image has that id")
            continue
        size = known_size(
            folder / file_name, entry.get("height"), entry.get("width"), where, problems
        )
        if size is None:
            left_out.add(number)
            continue
        rows[number] = builder.add_image(number, *size)
        names.append(file_name)
    labels = {number: label for label, number in enumerate(categories.ids)}
    seen: set[int] = set()
    for index, entry in enumerate(content["annotations"]):
        number, image, category = (entry.get(key) for key in ("id", "image_id", "category_id"))
        where = f"{file}, annotation {index} (id {number!r}, image {image!r})"
        if is_id(image) and image in left_out:
            continue
        if not is_id(image) or image not in rows:
            problems.report(where, "no image has that id")
            continue
        if not is_id(category) or category not in labels:
            problems.report(where, f"category_id {short(category)} is unknown")
            continue
        if isinstance(number, int) and not is_id(number):
            problems.report(where, "its id is no integer of 64 bits")
            continue
        if is_id(number):
            if number in seen:
                problems.report(where, "another annotation has that id")
                continue
            seen.add(number)
        box = entry.get("bbox")
        area = entry.get("area")
        if not is_box(box) or not (area is None or is_real(area)):
            found = f"bbox {short(box)}, area {short(area)}"
            problems.report(where, f"{found}: numbers x, y, w, h are wanted")
            continue
        x, y, width, height = box
        builder.add_object(
            rows[image],
            where,
            (x, y, x + width, y + height),
            labels[category],
            is_crowd=bool(entry.get("iscrowd", 0)),
            is_difficult=bool(entry.get("difficult", 0)),
            area=area,
            object_id=number if is_id(number) else 0,
        )
    return builder.finish(name, FilePictures(folder, names))


def _image_folder(file: Path, root: Path, images: list[dict[str, Any]], options: Options) -> Path:
    """The folder that the file names are relative to: the first one that has some of the images."""
    if options.images is not None:
        given = Path(options.images).expanduser()
        folders = [given, given / _last_word(file), given / file.parent.name]
    else:
        word = _last_word(file)
        base = root.parent if root.name == "annotations" else root
        places = [file.parent, base, base / "images", base / "JPEGImages"]
        folders = [place / name for name in ("", word) for place in places]
    names = [str(entry.get("file_name")) for entry in images[:_TRIED_IMAGES]]
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    if not images:
        return folders[0]
    tried = ", ".join(dict.fromkeys(str(folder) for folder in folders))
    raise DetectionDataError(
        f"{file}: none of its first images ({names[0]}, ...) is in {tried}; images= names a folder"
    )


def _last_word(file: Path) -> str:
    """For instances_val2017.json the folder of its images: val2017."""
    return file.stem.rsplit("_", 1)[-1]
