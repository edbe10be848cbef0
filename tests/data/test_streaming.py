import itertools
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from torchadder.data import DataError, ImageData
from torchadder.data.plan import BatchPlan
from torchadder.data.streaming import StreamBatches, Tickets, open_stream


@pytest.fixture
def shards(writer, png):
    """53 images in three files of row groups of 4; the label of image i is i modulo 3."""
    for number, (first, last) in enumerate(itertools.pairwise([0, 30, 42, 53])):
        rows = range(first, last)
        path = writer.parquet(
            f"train-{number:05}-of-00003.parquet",
            images=[png(row) for row in rows],
            labels=[row % 3 for row in rows],
        )
        pq.write_table(pq.read_table(path), path, row_group_size=4)
    writer.parquet("validation-00000-of-00001.parquet")
    return writer.folder


def opened(folder, **options):
    options = {"batch_size": 8, "num_classes": 3, "streaming": True, "workers": 0} | options
    data = ImageData(str(folder), **options)
    data.setup()
    return data


def epoch_of(data, epoch=0, loader=None):
    loader = loader or data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def seen(batches, data):
    """Numbers of the images, found by their pixels."""
    ordinary = ImageData(str(data.source), num_classes=3)
    ordinary.setup()
    cache = data.preprocess.normalize(ordinary.train.cache).flatten(1)
    found = []
    for images, labels in batches:
        rows = torch.cdist(images.flatten(1), cache, p=1).argmin(1)
        assert torch.equal(labels, rows % 3)
        assert torch.equal(cache[rows], images.flatten(1))
        found += rows.tolist()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_seen_once_in_an_epoch(shards, workers):
    data = opened(shards, workers=workers, shuffle_buffer=10)
    assert len(data.train) == 53
    loader = data.train_dataloader()
    first, second = epoch_of(data, 0, loader), epoch_of(data, 1, loader)
    assert [len(labels) for _, labels in first] == [8, 8, 8, 8, 8, 8, 5]
    orders = [seen(first, data), seen(second, data)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(53))
    assert orders[0] != orders[1]
    assert orders[0] == seen(epoch_of(data, 0), data)  # nothing but seed and epoch decides
    apart = np.abs(np.diff(orders[0]))
    assert np.median(apart) > 4  # neighbours in the files are not neighbours in the batches


def test_processes_and_workers_divide_the_rows(shards):
    stream, _ = open_stream(str(shards), num_classes=3)
    plan = BatchPlan(53, 8, 2)
    rows = []
    for rank in range(2):
        batches = StreamBatches(stream, None, plan, rank=rank, buffer=4, seed=0)
        for worker in range(3):
            pieces = batches.pieces(0, worker, 3)
            size = sum(last - first for _, first, last in pieces)
            assert size == sum(plan.share(batch, rank) for batch in range(worker, 7, 3))
            rows += [
                group.first + row for group, first, last in pieces for row in range(first, last)
            ]
    assert sorted(rows) == list(range(53))


def test_few_row_groups_are_read_twice(shards):
    """A reader's piece is contiguous: only the groups at its ends are shared with another."""
    stream, _ = open_stream(str(shards), num_classes=3)
    plan = BatchPlan(53, 8, 2)
    reads = [
        group
        for rank in range(2)
        for worker in range(2)
        for group, _, _ in StreamBatches(stream, None, plan, rank=rank, buffer=4, seed=0).pieces(
            0, worker, 2
        )
    ]
    assert len(set(reads)) == len(stream.groups)
    assert len(reads) <= len(stream.groups) + 3


def test_augmentation_is_that_of_the_ordinary_loader(shards):
    data = opened(shards, augment="crop_flip", mean=[0.5] * 3, std=[0.5] * 3)
    ordinary = ImageData(
        str(shards), augment="crop_flip", mean=[0.5] * 3, std=[0.5] * 3, num_classes=3
    )
    ordinary.setup()
    stream = data._stream
    batches = StreamBatches(stream, data.train, BatchPlan(53, 8), rank=0, buffer=4, seed=0)
    rows = list(batches._draw(2, 0, 1))
    want = ordinary.train.__getitems__([(2, row) for row in rows[:8]])
    got = batches[2, 0]
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_little_is_held_in_memory(shards):
    data = opened(shards, shuffle_buffer=6)
    held = data._stream.split.encoded
    loader = data.train_dataloader()
    for _ in loader:
        assert len(held) <= 6 + 4  # the buffer, and what is left of a row group
    assert not held


def test_tickets_are_counted_by_epoch():
    tickets = Tickets(2)
    tickets.set_epoch(3)
    assert list(tickets) == [(3, 0), (3, 1)]
    assert len(tickets) == 2


def test_class_names_come_from_the_files(writer):
    names = ["ant", "bee", "cow"]
    for split in ("train", "test"):
        writer.named_parquet(f"{split}.parquet", names)
    data = ImageData(str(writer.folder), streaming=True, batch_size=2, workers=0)
    data.setup()
    assert data.class_names == names
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 6
    with pytest.raises(DataError, match=r"num_classes=4: .* has 3 named classes"):
        opened(writer.folder, num_classes=4)


@pytest.mark.parametrize("name", ["train-1.parquet", "test.parquet"])
def test_files_of_other_classes_are_not_streamed(writer, name):
    for file in ("train-0.parquet", "train-1.parquet", "test.parquet"):
        writer.named_parquet(file, ["dog", "cat"] if file == name else ["cat", "dog"])
    with pytest.raises(
        DataError, match=rf"{name}: class 0 is 'dog', but 'cat' in .*train-0.parquet$"
    ):
        opened(writer.folder, num_classes=None)


def test_files_of_other_columns_are_not_streamed(shards, writer):
    second = "train-00001-of-00003.parquet"
    writer.parquet(second, label_column="kind")
    with pytest.raises(
        DataError, match=rf"{second}: no column 'label', which .*00000-of.* has, among img, kind$"
    ):
        opened(shards)
    writer.parquet(second, labels=[0.5] * 12)
    with pytest.raises(DataError, match=rf"{second}: column 'label' holds double, but int64 in"):
        opened(shards)
    writer.parquet(second, label_type="int8")
    opened(shards)


def test_a_grey_stream_measures_its_first_images(writer, png):
    images = [png(row, mode="L") for row in range(12)]
    writer.parquet("train.parquet", images=images)
    writer.parquet("test.parquet", images=images)
    ordinary = ImageData(str(writer.folder), num_classes=3)
    ordinary.setup()
    assert opened(writer.folder).preprocess == ordinary.preprocess


@pytest.mark.parametrize("kind", ["bytes", "path", "struct"])
def test_image_columns_of_other_types(writer, png, kind):
    """As `datasets` takes them unstreamed: bytes, paths of files, bytes without a path."""
    paths = [writer.image(f"{row}.png", seed=row) for row in range(12)]
    cells = {
        "bytes": [png(row) for row in range(12)],
        "path": [str(path) for path in paths],
        "struct": [{"bytes": png(row)} for row in range(12)],
    }
    table = pa.table({"img": cells[kind], "label": [row % 3 for row in range(12)]})
    for split in ("train", "test"):
        pq.write_table(table, writer.folder / f"{split}.parquet")
    data = opened(writer.folder)
    assert sorted(seen(epoch_of(data), data)) == list(range(12))


def test_what_cannot_be_streamed(shards, writer, png, tmp_path):
    with pytest.raises(DataError, match=r"classes have no names; data.num_classes is wanted"):
        opened(shards, num_classes=None)
    with pytest.raises(DataError, match=r"data.source='': a folder, a hub id or 'mnist'"):
        opened("")
    with pytest.raises(DataError, match=r"data.source='mnist' has none"):
        opened("mnist")
    with pytest.raises(DataError, match=r"device_cache=true keeps all images"):
        opened(shards, device_cache=True)
    (tmp_path / "folder" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"wants a training split and one to validate on; .* none"):
        opened(tmp_path / "folder")
    shutil.copytree(shards, tmp_path / "alone")
    (tmp_path / "alone" / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"one to validate on; .* has train"):
        opened(tmp_path / "alone")
    writer.parquet("train-00001-of-00003.parquet", labels=[0, 1, 7, *range(9)])
    with pytest.raises(DataError, match=r"train-00001-of-00003.parquet, row 2: .* is 7, 0..2 is"):
        epoch_of(opened(shards))
    (shards / "train-00002-of-00003.parquet").write_bytes(b"PAR1 not parquet")
    with pytest.raises(DataError, match=r"train-00002-of-00003.parquet: not a readable parquet"):
        opened(shards)


def test_an_image_that_cannot_be_decoded_is_named(writer, png):
    images = [png(row) for row in range(12)]
    images[7] = images[7][:60]
    writer.parquet("train.parquet", images=images)
    writer.parquet("test.parquet")
    with pytest.raises(DataError, match=r"train.parquet, row 7: the image cannot be decoded"):
        epoch_of(opened(writer.folder))


def test_files_on_the_hub_are_found_by_datasets(shards, monkeypatch):
    """A data set's own folder stands in for the hub: `datasets` resolves both alike."""
    from torchadder.data import streaming

    files = streaming._files_on_hub(str(shards))
    assert {name: len(members) for name, members in files.items()} == {"train": 3, "validation": 1}
    monkeypatch.chdir(shards.parent)
    monkeypatch.setattr(streaming, "_files_on_hub", lambda source: files)
    monkeypatch.setattr(streaming, "_table_on_hub", lambda source, split: _load(str(shards), split))
    stream, others = open_stream("owner/name", num_classes=3)
    assert len(stream.split) == 53
    assert list(others.splits) == ["validation"]


def _load(folder, split):
    import datasets

    return datasets.load_dataset(folder, split=split)
