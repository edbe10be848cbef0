"""Three small images and their objects, written in every format that is read.

Image a is 40 wide and 30 high with two objects, b is 20 by 20 with one, c is 16 wide and 24 high
and has none. Boxes are x1, y1, x2, y2 in pixels.
"""

import json

import numpy as np
import PIL.Image

NAMES = ["cat", "dog"]
SIZES = {"a": (30, 40), "b": (20, 20), "c": (24, 16)}
BOXES = {"a": [(0, (4, 6, 20, 26)), (1, (10, 0, 40, 15))], "b": [(1, (5, 5, 20, 15))], "c": []}


def picture(stem):
    height, width = SIZES[stem]
    pixels = np.random.default_rng(ord(stem)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def write_images(folder, stems="abc"):
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        picture(stem).save(folder / f"{stem}.png")


def instances(stems="abc"):
    """The content of a COCO file: classes 3 and 7, images 10, 11, 12, annotations from 101."""
    content = {"images": [], "annotations": [], "categories": []}
    for number, name in ((7, "dog"), (3, "cat")):
        content["categories"].append({"id": number, "name": name, "supercategory": "animal"})
    for stem in stems:
        height, width = SIZES[stem]
        image_id = 10 + "abc".index(stem)
        content["images"].append(
            {"id": image_id, "file_name": f"{stem}.png", "height": height, "width": width}
        )
        for label, (x1, y1, x2, y2) in BOXES[stem]:
            content["annotations"].append(
                {
                    "id": 101 + len(content["annotations"]),
                    "image_id": image_id,
                    "category_id": (3, 7)[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1) / 2,
                    "iscrowd": 0,
                    "segmentation": [[0, 0, 1, 1, 0, 1]],
                }
            )
    return content


def write_coco(folder, content=None, split="train"):
    write_images(folder / "images")
    (folder / "annotations").mkdir(exist_ok=True)
    file = folder / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps(instances() if content is None else content))
    return folder


def xml(stem, objects=None, size=None):
    height, width = size or SIZES[stem]
    objects = BOXES[stem] if objects is None else objects
    parts = [
        f"<object><name>{label if isinstance(label, str) else NAMES[label]}</name><difficult>"
        f"{int(stem == 'b')}</difficult><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for label, (x1, y1, x2, y2) in objects
    ]
    return (
        f"<annotation><filename>{stem}.png</filename><size><width>{width}</width><height>{height}"
        f"</height></size>{''.join(parts)}</annotation>"
    )


VOC_LISTS = {
    "train.txt": "a\nb\n",
    "val.txt": "c\n",
    "trainval.txt": "a\nb\nc\n",
    "cat_train.txt": "a  1\nb -1\n",
}


def write_voc(folder, objects=None, lists=VOC_LISTS):
    write_images(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for stem in "abc":
        text = xml(stem, (objects or {}).get(stem))
        (folder / "Annotations" / f"{stem}.xml").write_text(text)
    for name, text in lists.items():
        (main / name).write_text(text)
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def yolo_lines(stem):
    height, width = SIZES[stem]
    return "".join(
        f"{label} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
        f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}\n"
        for label, (x1, y1, x2, y2) in BOXES[stem]
    )


def write_yolo(folder, yaml=True):
    for split, stems in (("train", "ab"), ("val", "c")):
        write_images(folder / "images" / split, stems)
        (folder / "labels" / split).mkdir(parents=True)
        for stem in stems:
            if BOXES[stem]:
                (folder / "labels" / split / f"{stem}.txt").write_text(yolo_lines(stem))
    if yaml:
        (folder / "data.yaml").write_text(
            "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n"
        )
    return folder


def rows(box_format="xywh", stems="abc"):
    """Python columns for `datasets.Dataset.from_dict`."""
    cells = []
    for stem in stems:
        boxes = [box for _, box in BOXES[stem]]
        if box_format == "xywh":
            boxes = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes]
        cells.append(
            {
                "bbox": [[float(value) for value in box] for box in boxes],
                "category": [label for label, _ in BOXES[stem]],
            }
        )
    return {"image": [picture(stem) for stem in stems], "objects": cells}


def table(columns=None, names=NAMES, **options):
    import datasets

    columns = rows(**options) if columns is None else columns
    category = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    number = datasets.Value("float64")
    features = {
        "image": datasets.Image(),
        "objects": {
            "bbox": datasets.List(datasets.List(number)),
            "category": datasets.List(category),
        },
    }
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def found(split):
    """{file stem or row: [(label, box)]} of a split."""
    result = {}
    for index in range(len(split)):
        where = split.objects(index)
        boxes = [tuple(round(v, 3) for v in box) for box in split.boxes[where].tolist()]
        labels = split.labels[where].tolist()
        stem = split.pictures.file_name(index).rsplit("/")[-1].split(".")[0]
        result[stem] = list(zip(labels, boxes, strict=True))
    return result
