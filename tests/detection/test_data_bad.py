"""Bad input: one line that names file and entry, or a list of what was left out."""

import json

import datasets
import pytest

from annotated import (
    BOXES,
    SIZES,
    found,
    instances,
    rows,
    table,
    write_coco,
    write_images,
    write_voc,
    write_yolo,
    xml,
)
from torchadder.data.detection import DetectionDataError, DetectionImages, open_detection


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def changed(**values):
    """COCO content whose second annotation has other values."""
    content = instances()
    content["annotations"][1] |= values
    return content


BAD_OBJECTS = [
    ({"bbox": [10, 0, 31, 15]}, r"box \(10, 0, 41, 15\) lies outside its image, 40 pixels wide"),
    ({"bbox": [-3, 0, 30, 15]}, r"lies outside its image"),
    ({"bbox": [50, 50, 3, 3]}, r"lies outside its image"),
    ({"bbox": [10, 0, 0, 15]}, r"box \(10, 0, 10, 15\) is empty"),
    ({"bbox": [40, 0, 0.4, 15]}, r"is empty inside its image"),
    ({"bbox": [10, 9, 5, -4]}, r"box \(10, 9, 15, 5\) is reversed"),
    ({"bbox": [10, float("nan"), 5, 5]}, r"is not finite"),
    ({"bbox": [10, 0, float("inf"), 5]}, r"is not finite"),
    ({"bbox": [10, 0, 5]}, r"bbox \[10, 0, 5\], area .* numbers x, y, w, h are wanted"),
    ({"bbox": "10 0 5 5"}, r"numbers x, y, w, h are wanted"),
    ({"bbox": None}, r"bbox None"),
    (
        {"bbox": [10, 0, 10**400, 5]},
        r"bbox \[10, 0, 10+\.\.\.0+, 5\], area .* numbers x, y, w, h are",
    ),
    ({"bbox": [2**999, 2**999, 2**999, 5]}, r"lies outside its image"),
    ({"area": 10**400}, r"area 10+\.\.\.0+: numbers"),
    ({"area": "9"}, r"area '9': numbers"),
    ({"area": -1}, r"area -1 is no number of pixels"),
    ({"category_id": 4}, r"category_id 4 is unknown"),
    ({"category_id": [3]}, r"category_id \[3\] is unknown"),
    ({"image_id": [10]}, r"image \[10\]\): no image has that id"),
    ({"image_id": 99}, r"\(id 102, image 99\): no image has that id"),
    ({"image_id": 2**70}, r"no image has that id"),
    ({"id": 101}, r"another annotation has that id"),
    ({"id": 2**70}, r"\(id 1180591620717411303424, image 10\): its id is no integer of 64 bits"),
]


@pytest.mark.parametrize(("values", "reason"), BAD_OBJECTS)
def test_bad_object(tmp_path, values, reason):
    folder = write_coco(tmp_path, changed(**values))
    with pytest.raises(DetectionDataError, match=reason) as caught:
        open_detection(folder)
    assert "instances_train.json, annotation 1 (id " in str(caught.value)
    assert "skip_bad=True leaves out what is bad" in str(caught.value)
    assert "\n" not in str(caught.value)
    source = open_detection(folder, skip_bad=True)
    assert found(source.splits["train"]) == {**BOXES, "a": BOXES["a"][:1]}
    assert len(source.left_out) == 1
    assert "annotation 1" in source.left_out[0].where


def test_boxes_may_stand_out_by_rounding(tmp_path):
    folder = write_coco(tmp_path, changed(bbox=[10, -0.4, 30.4, 15]))
    split = open_detection(folder).splits["train"]
    assert split.boxes[1].tolist() == [10, -0.4, 40.4, 14.6]  # as it is for the evaluation
    _, target = DetectionImages(split, train=True)[0]
    assert target["boxes"][1].tolist() == pytest.approx([10, 0, 40, 14.6])


def test_several_bad_objects_are_counted(tmp_path):
    content = changed(category_id=4)
    content["annotations"][2]["bbox"] = [0, 0, 0, 0]
    with pytest.raises(
        DetectionDataError, match=r"category_id 4 .*\(1 more like it, skip_bad=True"
    ):
        open_detection(write_coco(tmp_path, content))
    source = open_detection(tmp_path, skip_bad=True)
    assert [entry.reason for entry in source.left_out] == [
        "category_id 4 is unknown",
        "box (0, 0, 0, 0) is empty",
    ]


def test_image_numbers_that_repeat(tmp_path):
    content = instances()
    content["images"][2]["id"] = 10
    with pytest.raises(DetectionDataError, match=r"image 2 \(id 10, 'c.png'\): another image has"):
        open_detection(write_coco(tmp_path, content))
    assert sorted(found(open_detection(tmp_path, skip_bad=True).splits["train"])) == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"id": 2**63},
            r"image 2 \(id 9223372036854775808, 'c.png'\): an integer id of 64 bits and",
        ),
        (
            {"height": 2**40},
            r"height 1099511627776 and width 16: 1 to 2147483647 pixels are wanted",
        ),
    ],
)
def test_image_numbers_that_are_too_large(tmp_path, values, reason):
    content = instances()
    content["images"][2] |= values
    with pytest.raises(DetectionDataError, match=reason):
        open_detection(write_coco(tmp_path, content))
    source = open_detection(tmp_path, skip_bad=True)
    assert sorted(found(source.splits["train"])) == ["a", "b"]
    assert len(source.left_out) == 1


def test_missing_image(tmp_path):
    folder = write_coco(tmp_path)
    (folder / "images" / "a.png").unlink()
    with pytest.raises(
        DetectionDataError, match=r"image 0 \(id 10, 'a.png'\): image .*a.png is miss"
    ):
        open_detection(folder)
    source = open_detection(folder, skip_bad=True)
    assert found(source.splits["train"]) == {"b": BOXES["b"], "c": []}
    assert len(source.left_out) == 1  # its objects go with it and are no errors of their own


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_damaged_image(tmp_path, kind):
    folder = {"coco": write_coco, "voc": write_voc}[kind](tmp_path)
    file = next(folder.rglob("b.png"))
    file.write_bytes(file.read_bytes()[:120])
    train = open_detection(folder).splits["train"]  # images are not looked at
    with pytest.raises(DetectionDataError, match=r"b.png: cannot be decoded"):
        DetectionImages(train)[1]
    with pytest.raises(DetectionDataError, match=r"b.png: cannot be decoded .*skip_bad=True"):
        open_detection(folder, check_images=True)
    source = open_detection(folder, check_images=True, skip_bad=True)
    assert "b" not in found(source.splits["train"])
    assert [entry.where.endswith("b.png") for entry in source.left_out] == [True]


def test_image_that_is_none(tmp_path):
    folder = write_yolo(tmp_path)
    (folder / "images" / "train" / "a.png").write_text("no image")
    with pytest.raises(
        DetectionDataError, match=r"a.png cannot be decoded \(no known image format"
    ):
        open_detection(folder)
    source = open_detection(folder, skip_bad=True)
    assert sorted(found(source.splits["train"])) == ["b"]


def test_image_of_another_size(tmp_path):
    folder = write_voc(tmp_path)
    (folder / "Annotations" / "b.xml").write_text(xml("b", size=(25, 25)))
    message = r"b.png: the image is 20 pixels wide and 20 high, its annotation says 25 and 25"
    with pytest.raises(DetectionDataError, match=message):
        DetectionImages(open_detection(folder).splits["train"])[1]
    with pytest.raises(DetectionDataError, match=message):
        open_detection(folder, check_images=True)


def test_images_without_boxes_are_legal(tmp_path):
    content = instances()
    content["annotations"] = []
    split = open_detection(write_coco(tmp_path, content)).splits["train"]
    image, target = DetectionImages(split, train=True)[1]
    assert image.shape == (3, 20, 20)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", r"is a list, as of detection results; COCO instances have the lists"),
        ("3", r"is 3; COCO instances"),
        ("{}", r"no list 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', r"no categories"),
        ('{"images": [], "annotations": [1], "categories": []}', r"holds other things than objec"),
        ("<annotation/>", r"cannot be read \(no JSON"),
        (
            '{"images": [], "categories": [], "annotations": [{"caption": "a cat"}]}',
            r"holds captions without 'bbox', no instances",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": "1", "name": "cat"}]}',
            r"category 0: id '1' and name 'cat'; an integer of 64 bits and a text are wanted",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 9223372036854775808, '
            '"name": "cat"}]}',
            r"category 0: id 9223372036854775808 and name 'cat'; an integer of 64 bits",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}, '
            '{"id": 1, "name": "dog"}]}',
            r"category id 1 stands there twice",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 3, "name": "cat"}, '
            '{"id": 1, "name": "cat"}]}',
            r"categories 3 and 1 are both named 'cat'; class names are to differ",
        ),
    ],
)
def test_json_of_the_wrong_kind(tmp_path, text, reason):
    file = tmp_path / "instances.json"
    file.write_text(text)
    with pytest.raises(DetectionDataError, match=reason) as caught:
        open_detection(file, skip_bad=True)
    assert str(file) in str(caught.value)


def test_splits_with_other_categories(tmp_path):
    write_coco(tmp_path)
    content = instances()
    content["categories"].pop()
    content["annotations"] = []
    write_coco(tmp_path, content, split="val")
    with pytest.raises(
        DetectionDataError, match=r"its categories are not those of instances_train"
    ):
        open_detection(tmp_path)


def test_two_files_of_one_split(tmp_path):
    folder = write_coco(tmp_path)
    (folder / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(DetectionDataError, match=r"instances_train.json is split 'train' already"):
        open_detection(folder)
    voc = write_voc(tmp_path / "voc")
    for name in ("a.json", "b.json"):
        (voc / name).write_text("{}")
    with pytest.raises(DetectionDataError, match=r"could be coco or voc; format= chooses"):
        open_detection(voc)


def test_sources_that_are_none(tmp_path):
    for source, reason in [
        (tmp_path, r"neither COCO .* nor parquet files"),
        (tmp_path / "nowhere", r"nowhere: no such file or folder"),
        ("nowhere.json", r"no such file or folder"),
        (3, r"source is a int; a path or table is wanted"),
    ]:
        with pytest.raises(DetectionDataError, match=reason):
            open_detection(source)
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(
        DetectionDataError, match=r"data.csv: no annotations that are known by this"
    ):
        open_detection(tmp_path / "data.csv")
    with pytest.raises(ValueError, match=r"format must be one of coco, .* got 'pascal'"):
        open_detection(tmp_path, format="pascal")
    with pytest.raises(ValueError, match=r"box_format must be one of xywh, xyxy, got 'cxcywh'"):
        open_detection(tmp_path, box_format="cxcywh")
    with pytest.raises(DetectionDataError, match=r"Annotations: no such folder"):
        open_detection(tmp_path, format="voc")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (xml("b", [(0, (5, 5, 25, 15))]), r"b.xml, object 0: box .* lies outside its image"),
        (
            xml("b", [(0, (-1, 5, 15, 15))]),
            r"object 0: .*first_pixel=0 reads files that count from",
        ),
        (xml("b", [(0, (9, 5, 5, 15))]), r"object 0: .* is reversed"),
        (xml("b", [(0, (5, 5, 5, 15))]), r"object 0: .* is empty"),
        (xml("b", [("cow", (5, 5, 9, 9))]), r"object 0: class 'cow' is unknown"),
        (xml("b").replace("xmin", "left"), r"object 0: xmin None, .* four numbers are wanted"),
        (xml("b").replace("<xmax>20", "<xmax>nan"), r"object 0: .* is not finite"),
        (xml("b")[:-5], r"b.xml: no readable XML"),
        (
            '<?xml version="1.0" encoding="klingon"?>' + xml("b"),
            r"b.xml: no readable XML \(unknown",
        ),
        ('<?xml version="1.0" encoding="gb2312"?>' + xml("b"), r"b.xml: no readable XML \(multi-b"),
        ("<svg></svg>", r"b.xml: its root is <svg>, <annotation> is wanted"),
        (None, r"b.xml: the annotation of a listed image is missing"),
    ],
)
def test_bad_xml(tmp_path, text, reason):
    folder = write_voc(tmp_path)
    file = folder / "Annotations" / "b.xml"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(DetectionDataError, match=reason):
        open_detection(folder)
    source = open_detection(folder, skip_bad=True)
    assert len(source.left_out) == 1
    assert found(source.splits["train"])["a"] == BOXES["a"]
    assert found(source.splits["train"]).get("b", []) == []


def test_voc_image_that_is_missing_or_listed_twice(tmp_path):
    folder = write_voc(tmp_path)
    (folder / "JPEGImages" / "b.png").unlink()
    with pytest.raises(DetectionDataError, match=r"b.xml: image .*b.jpg is missing"):
        open_detection(folder)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\na\n")
    with pytest.raises(DetectionDataError, match=r"train.txt: image 'a' is listed twice"):
        open_detection(folder)


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        (
            {"train07.txt": "a\nb\n", "train12.txt": "b\nc\n"},
            r"train12.txt: image 'b' is listed in train07.txt too \(train\)",
        ),
        (
            {"train.txt": "a\n", "val.txt": "b\n", "extra.txt": "b\nc\n"},
            r"extra.txt: no split in its name, and image 'c' is in no other list; train, trainv",
        ),
        (
            {"one.txt": "a\n", "two.txt": "b\n"},
            r"one.txt: no split in its name, and image 'a' is in no other list",
        ),
        (
            {"cat_train.txt": "a 1\nb -1\n", "cat_test.txt": "c 0\n"},
            r"Main: only lists of one class \(cat_test.txt, ...\); train.txt or the like is wanted",
        ),
    ],
)
def test_voc_lists_that_leave_images_or_have_them_twice(tmp_path, lists, reason):
    with pytest.raises(DetectionDataError, match=reason):
        open_detection(write_voc(tmp_path, lists=lists), skip_bad=True)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("train2017", r"images/train2017: train is split 'train' already; data.yaml may name both"),
        ("extra", r"images/extra: belongs to no split, though train beside it is one; a folder"),
        ("", r"images/a.png: belongs to no split, though train beside it is one"),
    ],
)
def test_yolo_images_of_no_split_or_of_one_that_is_taken(tmp_path, folder, reason):
    write_yolo(tmp_path, yaml=False)
    (tmp_path / "images" / "empty").mkdir()  # is no split and may stand there
    assert sorted(open_detection(tmp_path, num_classes=2).splits) == ["train", "validation"]
    write_images(tmp_path / "images" / folder, "a")
    with pytest.raises(DetectionDataError, match=reason):
        open_detection(tmp_path, num_classes=2, skip_bad=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 0.5 0.5 0.2", r"b.txt, line 1: 4 numbers .*class x y width height is wanted"),
        ("1 0.1 0.1 0.5 0.1 0.5 0.5", r"line 1: 7 numbers .* a polygon\?"),
        ("1 0.5 0.5 0.2 x", r"line 1: '1 0.5 0.5 0.2 x': class x y"),
        ("0.5 0.5 0.5 0.2 0.2", r"class x y width height is wanted"),
        ("\n2 0.5 0.5 0.2 0.2", r"line 2: class 2 is unknown, 0..1 is wanted"),
        ("1 0.95 0.5 0.2 0.2", r"line 1: box .* lies outside its image"),
        ("1 0.5 0.5 0 0.2", r"line 1: .* is empty"),
        ("1 0.5 0.5 -0.2 0.2", r"line 1: .* is reversed"),
        ("1 nan 0.5 0.2 0.2", r"line 1: .* is not finite"),
        ("nan 0.5 0.5 0.2 0.2", r"class x y width height is wanted"),
    ],
)
def test_bad_line(tmp_path, text, reason):
    folder = write_yolo(tmp_path)
    file = folder / "labels" / "train" / "b.txt"
    file.write_text(text)
    with pytest.raises(DetectionDataError, match=reason):
        open_detection(folder)
    source = open_detection(folder, skip_bad=True)
    assert len(source.left_out) == 1
    assert found(source.splits["train"])["b"] == []


def test_image_whose_text_cannot_be_read_is_left_out(tmp_path):
    """It may show objects: it must not be learnt as an image without."""
    folder = write_yolo(tmp_path)
    (folder / "labels" / "train" / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DetectionDataError, match=r"b.txt: no readable text .*no UTF-8 text"):
        open_detection(folder)
    source = open_detection(folder, skip_bad=True)
    assert [entry.where.endswith("b.txt") for entry in source.left_out] == [True]
    assert sorted(found(source.splits["train"])) == ["a"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("train: images/train\n", r"data.yaml: no 'names'"),
        ("names: [cat, dog]\nnc: 3\ntrain: images/train", r"nc is 3, but it names 2 classes"),
        ("names: [cat, dog]\n", r"none of train, val, test is named"),
        ("names: [cat, dog]\ntrain: pictures", r"data.yaml, train: no folder or list .*pictures"),
        ("names: [cat, cat]\ntrain: images/train", r"class 'cat' stands there twice"),
        ("names: {1: cat}\ntrain: images/train", r"names count \[1\], 0, 1, ... is wanted"),
        ("names: {0: cat, x: dog}\ntrain: images/train", r"names count \[0, 'x'\], 0, 1, ... is"),
        ("names: [cat, dog]\ntrain: 3", r"train is 3, a path or a list is wanted"),
        ("names: [cat\n", r"no readable YAML"),
        ("names: cat\ntrain: images/train", r"names is 'cat', a list is wanted"),
    ],
)
def test_bad_yaml(tmp_path, text, reason):
    folder = write_yolo(tmp_path)
    (folder / "data.yaml").write_text(text)
    with pytest.raises(DetectionDataError, match=reason) as caught:
        open_detection(folder)
    assert "\n" not in str(caught.value)


def test_yolo_yaml_names_its_images_itself(tmp_path):
    folder = write_yolo(tmp_path)
    with pytest.raises(
        DetectionDataError,
        match=r"data.yaml: names the folders of the images, so images='.*images' is not wanted",
    ):
        open_detection(folder, images=folder / "images")


def test_yolo_image_that_is_listed_twice(tmp_path):
    folder = write_yolo(tmp_path)
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: [images/train, images/train]\n")
    with pytest.raises(DetectionDataError, match=r"data.yaml: .*a.png is listed twice \(train\)"):
        open_detection(folder)


@pytest.mark.parametrize("place", ["val", "extra"])
def test_yolo_text_without_an_image(tmp_path, place):
    folder = write_yolo(tmp_path, yaml=False)
    (folder / "labels" / place).mkdir(exist_ok=True)
    (folder / "labels" / place / "zebra.txt").write_text("")
    with pytest.raises(DetectionDataError, match=r"zebra.txt: there is no image of that name"):
        open_detection(folder, num_classes=2)


def test_yolo_without_names_or_texts(tmp_path):
    folder = write_yolo(tmp_path, yaml=False)
    with pytest.raises(DetectionDataError, match=r"the classes have no names .* is wanted"):
        open_detection(folder)
    assert open_detection(folder, num_classes=2).class_names == ["0", "1"]
    for file in folder.rglob("labels/*/*.txt"):
        file.unlink()
    with pytest.raises(DetectionDataError, match=r"no text file for any image"):
        open_detection(folder, format="yolo", num_classes=2)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("bbox", [[4.0, 6.0, 40.0, 20.0], [0.0, 0.0, 5.0, 5.0]], r"outside .*box_format='xyxy'"),
        ("bbox", [[4.0, 6.0, 0.0, 20.0], [0.0, 0.0, 5.0, 5.0]], r"object 0: .* is empty"),
        (
            "bbox",
            [[4.0, 6.0, 20.0], [0.0, 0.0, 5.0, 5.0]],
            r"object 0: bbox .* four numbers x, y, w",
        ),
        ("bbox", [[4.0, 6.0, None, 2.0], [0.0, 0.0, 5.0, 5.0]], r"object 0: bbox .* four numbers"),
        ("bbox", [[4.0, 6.0, float("nan"), 20.0], [0.0, 0.0, 5.0, 5.0]], r"is not finite"),
        ("category", [None, 0], r"object 0: category None is unknown"),
        ("category", [1, 0, 1], r"row 0: lists of different lengths"),
    ],
)
def test_bad_cell(field, value, reason):
    columns = rows()
    columns["objects"][0][field] = value
    with pytest.raises(DetectionDataError, match=reason) as caught:
        open_detection(table(columns))
    assert "split 'train', row 0" in str(caught.value)
    assert len(open_detection(table(columns), skip_bad=True).left_out) == 1


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"bbox": 3.0, "category": [0]}, r"row 0: bbox 3.0 is no list"),
        ({"bbox": [[4.0, 6.0, 9.0, 9.0]], "category": 0}, r"row 0: category 0 is no list"),
        (
            {"bbox": [[4.0, 6.0, 9.0, 9.0]], "category": [0], "area": ["9"]},
            r"row 0, object 0: area '9': a number is wanted",
        ),
        (
            {"bbox": [[4.0, 6.0, 9.0, 9.0]], "category": [[0]]},
            r"row 0, object 0: category \[0\] is unknown",
        ),
        ([None], r"row 0, object 0: category None is unknown"),
    ],
)
def test_cells_of_other_kinds(cell, reason):
    if isinstance(cell, dict):
        good = dict.fromkeys(cell)  # no objects
    else:
        good = [{"bbox": [4.0, 6.0, 9.0, 9.0], "category": 0}]
    columns = {"image": rows(stems="aa")["image"], "objects": [cell, good]}
    given = datasets.Dataset.from_dict(columns)
    with pytest.raises(DetectionDataError, match=reason) as caught:
        open_detection(given, num_classes=2)
    assert "split 'train', row 0" in str(caught.value)
    assert len(open_detection(given, num_classes=2, skip_bad=True).left_out) == 1


def test_sides_in_columns_that_are_none():
    columns = rows() | {"height": [30, 0, 2**40], "width": [40, 20, 16]}
    given = datasets.Dataset.from_dict(columns)
    with pytest.raises(
        DetectionDataError, match=r"row 1: height 0 and width 20: 1 to 2147483647 pixels .*\(1 more"
    ):
        open_detection(given)
    assert len(open_detection(given, skip_bad=True).splits["train"]) == 1


def test_bad_table(tmp_path):
    with pytest.raises(DetectionDataError, match=r"no column objects or .* among image, things"):
        open_detection(table().rename_column("objects", "things"))
    renamed = table().rename_column("objects", "things")
    assert open_detection(renamed, objects_column="things").num_classes == 2
    numbers = datasets.Dataset.from_dict({"image": rows()["image"], "objects": [1, 2, 3]})
    with pytest.raises(DetectionDataError, match=r"structs with bbox, category are wanted"):
        open_detection(numbers)
    unnamed = datasets.Dataset.from_dict({"image": rows()["image"], "objects": [{"x": 1}] * 3})
    with pytest.raises(DetectionDataError, match=r"fields x; bbox and category are wanted"):
        open_detection(unnamed)
    (tmp_path / "train.parquet").write_text("no parquet")
    with pytest.raises(DetectionDataError, match=r"train.parquet: not a readable parquet file"):
        open_detection(tmp_path)


def test_class_count_that_disagrees(tmp_path):
    source = open_detection(write_coco(tmp_path))
    with pytest.raises(
        DetectionDataError, match=r"num_classes has 3 classes, the data 2 \(cat, do"
    ):
        open_detection(tmp_path, num_classes=3)
    with pytest.raises(
        DetectionDataError, match=r"the checkpoint best.st has 80 classes, the data"
    ):
        source.check_num_classes(80, "the checkpoint best.st")
    source.check_num_classes(2, "the checkpoint best.st")
    with pytest.raises(
        DetectionDataError, match=r"class_names are dog, cat; the classes of .* are"
    ):
        open_detection(tmp_path, class_names=["dog", "cat"])


def test_nothing_left_is_an_error(tmp_path):
    content = instances("a")
    write_coco(tmp_path, content)
    (tmp_path / "images" / "a.png").write_bytes(b"")
    with pytest.raises(
        DetectionDataError, match=r"split 'train' is empty, 1 entries were left out"
    ):
        open_detection(tmp_path, skip_bad=True, check_images=True)
    assert SIZES["a"] == (30, 40)
    write_images(tmp_path / "images")
    assert json.loads((tmp_path / "annotations" / "instances_train.json").read_text()) == content
    assert len(open_detection(tmp_path).splits["train"]) == 1
