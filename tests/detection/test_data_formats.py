"""Every format gives the same boxes, labels, sizes and splits."""

import json

import datasets
import numpy as np
import pytest

from annotated import (
    BOXES,
    NAMES,
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
from torchadder.data.detection import (
    DetectionDataError,
    DetectionImages,
    coco_ground_truth,
    coco_results,
    divide,
    find_format,
    open_detection,
    write_json,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """`datasets` keeps its tables below the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def only(stems):
    return {stem: BOXES[stem] for stem in stems}


def test_coco(tmp_path):
    source = open_detection(write_coco(tmp_path), num_classes=2, check_images=True)
    assert source.format == "coco"
    assert source.class_names == NAMES  # in the order of the ids 3 and 7, not of the file
    assert source.categories.ids == [3, 7]
    split = source.splits["train"]
    assert found(split) == BOXES
    assert split.image_ids.tolist() == [10, 11, 12]
    assert split.object_ids.tolist() == [101, 102, 103]
    assert split.sizes.tolist() == [list(SIZES[stem]) for stem in "abc"]
    assert split.areas.tolist() == [160, 225, 75]
    assert source.left_out == []


def test_coco_objects_in_any_order_belong_to_their_images(tmp_path):
    content = instances()
    content["annotations"] = content["annotations"][::-1]
    content["images"] = content["images"][::-1]
    split = open_detection(write_coco(tmp_path, content)).splits["train"]
    assert found(split) == {"c": [], "b": BOXES["b"], "a": BOXES["a"][::-1]}


def test_coco_layouts(tmp_path):
    """As on COCO's pages, as exported per split, and a single file with its images elsewhere."""
    official = tmp_path / "official"
    for split, stems in (("train2017", "ab"), ("val2017", "c")):
        write_images(official / split, stems)
        (official / "annotations").mkdir(exist_ok=True)
        file = official / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(instances(stems)))
    (official / "annotations" / "captions_val2017.json").write_text("{}")
    exported = tmp_path / "exported"
    for split, stems in (("train", "ab"), ("valid", "c")):
        write_images(exported / split, stems)
        (exported / split / "_annotations.coco.json").write_text(json.dumps(instances(stems)))
    for folder in (official, exported):
        splits = open_detection(folder).splits
        assert {name: found(split) for name, split in splits.items()} == {
            "train": only("ab"),
            "validation": only("c"),
        }
    alone = tmp_path / "some.json"
    alone.write_text(json.dumps(instances("ab")))
    with pytest.raises(DetectionDataError, match=r"none of its first images \(a.png, ...\) is in"):
        open_detection(alone)
    split = open_detection(alone, images=official / "train2017").splits["train"]
    assert found(split) == only("ab")


def test_coco_without_sizes_reads_them_from_the_images(tmp_path):
    content = instances()
    for image in content["images"]:
        del image["height"], image["width"]
    split = open_detection(write_coco(tmp_path, content)).splits["train"]
    assert split.sizes.tolist() == [list(SIZES[stem]) for stem in "abc"]


def test_coco_there_and_back(tmp_path):
    content = instances()
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [10.1, 0.2, 29.7, 14.25]
    split = open_detection(write_coco(tmp_path / "one", content)).splits["train"]
    written = coco_ground_truth(split)
    assert written["images"] == content["images"]
    assert written["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    for got, want in zip(written["annotations"], content["annotations"], strict=True):
        assert got["bbox"] == pytest.approx(want["bbox"], abs=1e-12)
        for key in ("id", "image_id", "category_id", "area", "iscrowd"):
            assert got[key] == want[key]
    again = open_detection(write_coco(tmp_path / "two", written)).splits["train"]
    for name in ("image_ids", "object_ids", "sizes", "starts", "labels", "is_crowd", "areas"):
        assert np.array_equal(getattr(again, name), getattr(split, name)), name
    assert np.allclose(again.boxes, split.boxes, atol=1e-12, rtol=0)


def test_voc(tmp_path):
    source = open_detection(write_voc(tmp_path), check_images=True)
    assert source.format == "voc"
    assert sorted(source.splits) == ["train", "trainval", "validation"]
    assert found(source.splits["train"]) == only("ab")
    assert found(source.splits["validation"]) == only("c")
    assert found(source.splits["trainval"]) == BOXES
    assert source.splits["train"].is_difficult.tolist() == [False, False, True]
    assert source.splits["validation"].image_ids.tolist() == [3]


@pytest.mark.parametrize(
    ("lists", "want"),
    [
        ({"trainval2007.txt": "b\n", "trainval2012.txt": "a\n"}, {"trainval": "ba"}),
        ({"my_train.txt": "a\nb\n", "my_test.txt": "c\n"}, {"train": "ab", "test": "c"}),
        (
            {"train.txt": "a\n", "val.txt": "c\n", "all.txt": "a\nc\n"},
            {"train": "a", "validation": "c"},
        ),
        ({"default.txt": "a\nc\n", "cat_train.txt": "a 1\nb 0\nc -1\n"}, {"train": "ac"}),
        ({"train.txt": "a 1\nb -1\n"}, {"train": "ab"}),
    ],
)
def test_voc_lists(tmp_path, lists, want):
    """Lists of one split are joined; those of one class and those that add nothing are left."""
    splits = open_detection(write_voc(tmp_path, lists=lists)).splits
    assert {name: list(found(split)) for name, split in splits.items()} == {
        name: list(stems) for name, stems in want.items()
    }


def test_voc_without_lists_counts_from_zero_and_takes_names_from_objects(tmp_path):
    folder = write_voc(tmp_path)
    for file in (folder / "ImageSets" / "Main").iterdir():
        file.unlink()
    (folder / "classes.txt").unlink()
    source = open_detection(folder, first_pixel=0)
    assert source.class_names == ["cat", "dog"]
    shifted = {
        stem: [(label, (x1 + 1, y1 + 1, x2, y2)) for label, (x1, y1, x2, y2) in objects]
        for stem, objects in BOXES.items()
    }
    assert found(source.splits["train"]) == shifted
    assert open_detection(folder, class_names=["dog", "cat"]).splits["train"].labels.tolist() == [
        1,
        0,
        0,
    ]


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "UTF-16", "UTF-8"])
def test_voc_in_the_encoding_that_it_declares(tmp_path, encoding):
    folder = write_voc(tmp_path)
    name, (_, box) = "b\u00e4r", BOXES["b"][0]
    text = f'<?xml version="1.0" encoding="{encoding}"?>{xml("b", [(name, box)])}'
    (folder / "Annotations" / "b.xml").write_bytes(text.encode(encoding))
    source = open_detection(folder, class_names=[name, *NAMES])
    assert found(source.splits["train"])["b"] == [(0, box)]


@pytest.mark.parametrize("yaml", [True, False])
def test_yolo(tmp_path, yaml):
    folder = write_yolo(tmp_path, yaml)
    source = open_detection(folder, class_names=NAMES, check_images=True)
    assert source.format == "yolo"
    assert sorted(source.splits) == ["train", "validation"]
    for split, stems in (("train", "ab"), ("validation", "c")):
        for stem, objects in found(source.splits[split]).items():
            assert [label for label, _ in objects] == [label for label, _ in only(stems)[stem]]
            for (_, got), (_, want) in zip(objects, BOXES[stem], strict=True):
                assert got == pytest.approx(want, abs=1e-3)  # six digits in the files


def test_yolo_yaml_of_another_machine_with_names_by_number(tmp_path):
    folder = write_yolo(tmp_path)
    (folder / "more.yaml").write_text(
        "path: /elsewhere\ntrain: ../images/train\nval: [images/val]\nnames: {0: cat, 1: dog}\n"
    )
    source = open_detection(folder / "more.yaml")
    assert {name: len(split) for name, split in source.splits.items()} == {
        "train": 2,
        "validation": 1,
    }


def test_yolo_list_of_images(tmp_path):
    folder = write_yolo(tmp_path)
    (folder / "list.txt").write_text("images/train/b.png\n\nimages/val/c.png\n")
    (folder / "data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    source = open_detection(folder, skip_bad=True)
    assert sorted(found(source.splits["train"])) == ["b", "c"]
    # The text of image a is there and the list leaves the image out: that is said.
    assert [str(entry).split("/")[-1] for entry in source.left_out] == [
        "a.txt: there is no image of that name"
    ]


@pytest.mark.parametrize("split", ["", "train"])
def test_yolo_images_elsewhere(tmp_path, split):
    """The texts have the paths below `labels` that the images have below their folder."""
    write_images(tmp_path / "pics" / split, "ab")
    labels = tmp_path / "data" / "labels" / split
    labels.mkdir(parents=True)
    (labels / "b.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    opening = {"images": tmp_path / "pics", "class_names": NAMES}
    train = open_detection(tmp_path / "data", **opening).splits["train"]
    assert found(train) == {"a": [], "b": [(1, (5, 5, 15, 15))]}


@pytest.mark.parametrize("box_format", ["xywh", "xyxy"])
def test_columns(box_format):
    source = open_detection(table(box_format=box_format), box_format=box_format, check_images=True)
    assert source.format == "columns"
    assert source.class_names == NAMES
    assert list(found(source.splits["train"]).values()) == list(BOXES.values())
    assert source.splits["train"].sizes.tolist() == [list(SIZES[stem]) for stem in "abc"]
    split = source.splits["train"].select("some", np.array([2, 0]))
    assert list(found(split).values()) == [[], BOXES["a"]]
    assert [image.shape[1:] for image, _ in map(DetectionImages(split).__getitem__, range(2))] == [
        (24, 16),
        (30, 40),
    ]


def test_columns_saved_as_parquet_by_split_and_by_datasets(tmp_path):
    parquet, saved = tmp_path / "parquet", tmp_path / "saved"
    parquet.mkdir()
    table(stems="ab").to_parquet(parquet / "train-0.parquet")
    table(stems="c").to_parquet(parquet / "test-0.parquet")
    splits = datasets.DatasetDict(train=table(stems="ab"), test=table(stems="c"))
    splits.save_to_disk(saved)
    for given in (parquet, saved, splits):
        source = open_detection(given)
        assert source.format == "columns"
        assert list(found(source.splits["train"]).values()) == [BOXES["a"], BOXES["b"]]
        assert list(found(source.splits["test"]).values()) == [[]]
        train, val = divide(source)
        assert (train.name, val.name) == ("train", "test")


def test_columns_with_a_number_for_the_whole_image():
    columns = rows()
    for cell in columns["objects"]:
        cell["count"] = len(cell["bbox"])
    source = open_detection(datasets.Dataset.from_dict(columns))
    assert list(found(source.splits["train"]).values()) == list(BOXES.values())


def test_columns_of_structs_with_texts(tmp_path):
    cells = [
        [
            {"bbox": [x1, y1, x2 - x1, y2 - y1], "category": NAMES[label]}
            for label, (x1, y1, x2, y2) in objects
        ]
        for objects in BOXES.values()
    ]
    columns = {"image": rows()["image"], "objects": cells}
    source = open_detection(datasets.Dataset.from_dict(columns))
    assert source.class_names == NAMES
    assert list(found(source.splits["train"]).values()) == list(BOXES.values())


def test_numbers_without_names_need_a_count_only_if_some_are_missing():
    columns = rows()
    assert open_detection(table(names=None)).class_names == ["0", "1"]
    for cell in columns["objects"]:
        cell["category"] = [3 * label for label in cell["category"]]
    with pytest.raises(DetectionDataError, match=r"category 3 is the largest, but 2 of those"):
        open_detection(table(columns, names=None))
    assert open_detection(table(columns, names=None), num_classes=4).num_classes == 4


def test_formats_are_told_apart(tmp_path):
    folders = {
        "coco": write_coco(tmp_path / "coco"),
        "voc": write_voc(tmp_path / "voc"),
        "yolo": write_yolo(tmp_path / "yolo"),
    }
    for kind, folder in folders.items():
        assert find_format(folder) == kind
        assert find_format(str(folder)) == kind
    assert find_format("digit-scenes") == "digit-scenes"
    assert find_format("owner/name") == "columns"
    write_coco(tmp_path / "voc")
    with pytest.raises(DetectionDataError, match=r"could be coco or voc; format= chooses"):
        open_detection(tmp_path / "voc")
    assert open_detection(tmp_path / "voc", format="voc").format == "voc"
    assert open_detection(tmp_path / "voc", format="coco").format == "coco"


def test_divide(tmp_path):
    source = open_detection(write_coco(tmp_path))
    train, val = divide(source, val_fraction=0.34)
    assert (len(train), len(val)) == (2, 1)
    assert found(train) | found(val) == BOXES
    assert divide(source, val_fraction=0.34)[1].image_ids.tolist() == val.image_ids.tolist()
    with pytest.raises(DetectionDataError, match=r"3 images, of which val_fraction=0.1 are 0"):
        divide(source, val_fraction=0.1)
    with pytest.raises(DetectionDataError, match=r"val_split='dev': the data has train"):
        divide(source, val_split="dev")
    voc = open_detection(write_voc(tmp_path / "voc"))
    assert [split.name for split in divide(voc)] == ["train", "validation"]
    assert [split.name for split in divide(voc, train_split="trainval")] == [
        "trainval",
        "validation",
    ]


def test_results_are_in_pixels_and_classes_of_the_source(tmp_path):
    import torch

    source = open_detection(write_coco(tmp_path))
    targets = [
        {"image_id": torch.tensor(11), "size": torch.tensor([40, 80]), "orig_size": [20, 20]},
        {"image_id": torch.tensor(12), "size": torch.tensor([24, 16]), "orig_size": [24, 16]},
    ]
    detections = [
        {
            "boxes": torch.tensor([[8.0, 10.0, 40.0, 20.0]]),
            "scores": torch.tensor([0.5]),
            "labels": torch.tensor([1]),
        },
        {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()},
    ]
    results = coco_results(detections, targets, source.categories)
    assert results == [
        {"image_id": 11, "category_id": 7, "bbox": [2.0, 5.0, 8.0, 5.0], "score": 0.5}
    ]
    write_json(tmp_path / "predictions.json", results)
    assert json.loads((tmp_path / "predictions.json").read_text()) == results
    with pytest.raises(ValueError, match="detections of 1 images, targets of 2"):
        coco_results(detections[:1], targets, source.categories)
    detections[0]["labels"] = torch.tensor([2])
    with pytest.raises(
        DetectionDataError, match=r"image 11: a detection has label 2, the data has 2"
    ):
        coco_results(detections, targets, source.categories)


def test_truth_of_other_formats_numbers_objects_from_one(tmp_path):
    """COCO's evaluation takes annotation 0 for no annotation."""
    truth = coco_ground_truth(open_detection(write_voc(tmp_path)).splits["train"])
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3]
    assert [entry["difficult"] for entry in truth["annotations"]] == [0, 0, 1]
    assert [entry["image_id"] for entry in truth["annotations"]] == [1, 1, 2]
    assert [entry["category_id"] for entry in truth["annotations"]] == [1, 2, 2]
    assert truth["annotations"][2]["bbox"] == [5, 5, 15, 10]
    assert truth["annotations"][2]["area"] == 150
    json.dumps(truth)
