"""Reads YOLO text: a text file beside each image, a line `class x y width height` for each object.

Centres and sizes are shares of the image's width and height, classes count from 0. A `data.yaml`
names the splits and the classes; without one, `images/` (or another folder) and `labels/` hold the
data, perhaps with a folder for each split, and `classes.txt` or `obj.names` the classes. An image
without a text file has no objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES = ("classes.txt", "obj.names", "labels/classes.txt")
_KEYS = {"train": "train", "val": "validation", "valid": "validation", "test": "test"}


def find_yaml(folder: Path) -> Path | None:
    """The file that describes a folder, if it has one."""
    return next((folder / name for name in _YAML if (folder / name).is_file()), None)


def is_folder(folder: Path) -> bool:
    """Whether a folder looks like one of YOLO."""
    texts = (folder / "labels").rglob("*.txt")
    return find_yaml(folder) is not None or next(texts, None) is not None


def read(
    path: Path, options: Options, problems: Problems
) -> tuple[Categories, dict[str, DetectionSplit]]:
    """The classes and splits of a folder or of its YAML file.

    Raises:
        DetectionDataError: If the YAML file is none, folders are missing, or classes have no names.
    """
    described = find_yaml(path) if path.is_dir() else path
    labels = None
    if described is None:
        labels = path / "labels"
        images = path / "images" if options.images is None else Path(options.images).expanduser()
        names, splits = _plain_names(path, options), _plain_images(images, labels)
    elif options.images is not None:
        raise DetectionDataError(
            f"{described}: names the folders of the images, so images={str(options.images)!r} is "
            "not wanted"
        )
    else:
        content = _load(described)
        names, splits = _yaml_names(content, described), _yaml_images(content, described)
    if options.class_names is not None and list(options.class_names) != names:
        raise DetectionDataError(
            f"class_names are {', '.join(options.class_names)}; the classes of {path} are "
            f"{', '.join(names)}"
        )
    categories = Categories.numbered(names)
    expected = {text for texts in splits.values() for text in texts.values()}
    _check_texts(expected, labels, problems)
    return categories, {
        name: _read_split(name, texts, categories, problems) for name, texts in splits.items()
    }


def _load(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise DetectionDataError(f"{file}: no readable YAML ({reason})") from error
    if not isinstance(content, dict) or "names" not in content:
        raise DetectionDataError(f"{file}: no 'names'; a YAML file with names and splits is wanted")
    return content


def _yaml_names(content: dict[str, Any], file: Path) -> list[str]:
    names = content["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DetectionDataError(f"{file}: names count {list(names)}, 0, 1, ... is wanted")
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list):
        raise DetectionDataError(f"{file}: names is {names!r}, a list is wanted")
    if content.get("nc", len(names)) != len(names):
        raise DetectionDataError(
            f"{file}: nc is {content['nc']}, but it names {len(names)} classes"
        )
    return checked_names(names, str(file))


def _yaml_images(content: dict[str, Any], file: Path) -> dict[str, dict[Path, Path]]:
    """The images of each split and the text file of each."""
    base = file.parent / str(content.get("path") or "")
    if not base.is_dir():
        base = file.parent  # `path` is often that of the machine where the file was written
    found: dict[str, list[Path]] = {}
    for key, name in _KEYS.items():
        places = content.get(key) or []
        if not isinstance(places, (str, list)):
            raise DetectionDataError(f"{file}: {key} is {places!r}, a path or a list is wanted")
        for place in [places] if isinstance(places, str) else places:
            found.setdefault(name, []).extend(_images_at(base, str(place), f"{file}, {key}"))
    if not found:
        raise DetectionDataError(f"{file}: none of train, val, test is named")
    for name, images in found.items():
        if len(set(images)) < len(images):
            twice = next(image for image in images if images.count(image) > 1)
            raise DetectionDataError(f"{file}: {twice} is listed twice ({name})")
    return {name: {image: _text_of(image) for image in images} for name, images in found.items()}


def _images_at(base: Path, place: str, where: str) -> list[Path]:
    """The images of a folder, or those that a text file lists."""
    # Some exporters write ../train/images for a folder that lies beside the YAML file.
    tried = [base / place, base / place.removeprefix("../")]
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        raise DetectionDataError(f"{where}: no folder or list {tried[0]}")
    if found.is_dir():
        return _images_below(found)
    lines = [line.strip() for line in read_text(found).splitlines()]
    return [found.parent / line for line in lines if line]


def _images_below(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if is_image(file))
    if not files:
        raise DetectionDataError(f"{folder}: no images in it")
    return files


def _plain_names(path: Path, options: Options) -> list[str]:
    for name in _NAMES:
        if (path / name).is_file():
            return read_names(path / name)
    if options.class_names is not None:
        return checked_names(options.class_names, "class_names")
    if options.fallback_names is not None:
        return list(options.fallback_names)
    if options.num_classes is not None:
        return [str(label) for label in range(options.num_classes)]
    raise DetectionDataError(
        f"{path}: the classes have no names (data.yaml, {', '.join(_NAMES)}); class_names or "
        "num_classes is wanted"
    )


def _plain_images(images: Path, labels: Path) -> dict[str, dict[Path, Path]]:
    """The images of each split and the text file of each: its path below the folder of the texts.

    Raises:
        DetectionDataError: If a folder is missing, or an image would belong to no split.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise DetectionDataError(f"{folder}: no such folder")
    folders: dict[str, Path] = {}
    others = []  # images of no split
    for child in sorted(images.iterdir()):
        name = split_of(child.name) if child.is_dir() else None
        if name is None:
            others += [child] if _has_images(child) else []
        elif name in folders:
            raise DetectionDataError(
                f"{child}: {folders[name].name} is split {name!r} already; data.yaml may name both"
            )
        else:
            folders[name] = child
    if folders and others:
        raise DetectionDataError(
            f"{others[0]}: belongs to no split, though {next(iter(folders.values())).name} beside "
            "it is one; a folder named train, val or test, or a data.yaml is wanted"
        )
    return {
        name: {
            image: (labels / image.relative_to(images)).with_suffix(".txt")
            for image in _images_below(folder)
        }
        for name, folder in (folders or {"train": images}).items()
    }


def _has_images(path: Path) -> bool:
    """Whether something is an image, or a folder with one in it or below it."""
    return is_image(path) or any(is_image(file) for file in path.rglob("*"))


def _read_split(
    name: str, texts: dict[Path, Path], categories: Categories, problems: Problems
) -> DetectionSplit:
    builder = SplitBuilder(categories, problems)
    names = []
    for file, text in texts.items():
        try:
            lines = read_text(text).splitlines() if text.is_file() else []
        except DetectionDataError as error:  # the image is left out: it is not one without objects
            problems.report(str(text), f"no readable text ({error})")
            continue
        size = known_size(file, None, None, str(file), problems)
        if size is None:
            continue
        row = builder.add_image(builder.num_images + 1, *size)
        names.append(str(file))
        for index, line in enumerate(lines, start=1):
            if line.strip():
                _read_line(line, row, size, f"{text}, line {index}", builder)
    return builder.finish(name, FilePictures(Path(), names))


def _check_texts(expected: set[Path], labels: Path | None, problems: Problems) -> None:
    """Looks for text files without an image, below `labels` or beside others, and for any."""
    if not any(text.is_file() for text in expected):
        raise DetectionDataError(f"{min(expected).parent}: no text file for any image")
    if labels is not None:
        texts = set(labels.rglob("*.txt"))
    else:
        folders = {text.parent for text in expected if "labels" in text.parts}
        texts = {text for folder in folders for text in folder.glob("*.txt")}
    for text in sorted(texts - expected):
        if text.name != "classes.txt":
            problems.report(str(text), "there is no image of that name")


def _text_of(image: Path) -> Path:
    """The text file of an image: its last folder `images` replaced by `labels`, else beside it."""
    parts = list(image.parent.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return Path(*parts, f"{image.stem}.txt")


def _read_line(
    line: str, row: int, size: tuple[int, int], where: str, builder: SplitBuilder
) -> None:
    wanted = "class x y width height is wanted"
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        builder.problems.report(where, f"{line.strip()!r}: {wanted}")
        return
    if len(values) != 5 or not values[0].is_integer():
        kind = "a polygon? " if len(values) > 6 and len(values) % 2 else ""
        builder.problems.report(
            where, f"{len(values)} numbers {line.strip()[:40]!r}: {kind}{wanted}"
        )
        return
    label, (x, y, width, height) = int(values[0]), values[1:]
    count = len(builder.categories.names)
    if not 0 <= label < count:
        builder.problems.report(where, f"class {label} is unknown, 0..{count - 1} is wanted")
        return
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    scales = (size[1], size[0], size[1], size[0])
    builder.add_object(row, where, [v * s for v, s in zip(box, scales, strict=True)], label)
