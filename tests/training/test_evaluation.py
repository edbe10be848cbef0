"""Which images a checkpoint is evaluated on, and what of its source is read for that."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch

import torchadder as ta
from torchadder.checkpoint import CheckpointError
from torchadder.data import DataError, Preprocess
from torchadder.training.evaluation import evaluate, images_for, open_checkpoint, open_images
from torchadder.training.robust_evaluation import open_target

CLASSES = ("ant", "bee")
PREPROCESS = Preprocess(1, 28, 28, None, (0.4,), (0.3,))


def write_images(folder, *splits, size=28):
    """Five grey images of each class for each split; no split: the class folders themselves."""
    numbers = np.random.default_rng(0)
    for split in splits or ("",):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for index in range(5):
                pixels = numbers.integers(0, 256, (size, size), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return str(folder)


def net_of(tmp_path, data, preprocess=PREPROCESS):
    """A checkpoint that says it was trained on `data`."""
    metadata = {"class_names": CLASSES, "preprocess": preprocess.to_dict(), "data": data}
    model = ta.models.lenet5_bn(num_classes=2, conv="conv")
    return open_checkpoint(ta.save(model, tmp_path / "net.safetensors", metadata=metadata))


def evaluated(net, data=None):
    images = images_for(net, data, evaluate_only=True)
    open_images(images, net)
    return len(images.val), images.val.split.name


@pytest.fixture
def own(tmp_path):
    """Images without splits, of which training held out a fifth."""
    return write_images(tmp_path / "own")


def test_another_source_is_evaluated_whole(tmp_path, own):
    net = net_of(tmp_path, {"source": own, "streaming": True, "val_split": "train"})
    for split in ("train", "val", "test"):
        source = write_images(tmp_path / f"only_{split}", split)
        name = "validation" if split == "val" else split
        assert evaluated(net, {"source": source}) == (10, name)
    both = write_images(tmp_path / "both", "train", "test")
    assert evaluated(net, {"source": both}) == (10, "test")
    assert evaluated(net, {"source": both, "val_split": "train"}) == (10, "train")
    assert evaluated(net, {"source": source}) == (10, "test")


def test_the_own_source_is_evaluated_as_in_training(tmp_path, own):
    net = net_of(tmp_path, {"source": own})
    assert evaluated(net) == evaluated(net, {"source": own}) == (2, "validation")
    assert evaluated(net, {"val_fraction": 0.4}) == (4, "validation")
    assert evaluated(net, {"val_split": "train"}) == (10, "train")
    with pytest.raises(DataError, match=r"data.val_fraction=-0.2: between 0 and 1 is wanted"):
        evaluated(net, {"val_fraction": -0.2})


def test_damaged_training_images_do_not_end_an_evaluation(tmp_path):
    source = write_images(tmp_path / "both", "train", "test")
    (tmp_path / "both" / "train" / "ant" / "3.png").write_bytes(b"no image")
    net = net_of(tmp_path, {"source": source})
    assert evaluate(net.path, threads=1, accelerator="cpu")["num_images"] == 10
    assert len(open_target(net.path, num_images=7).images) == 7


def test_images_are_resized_as_in_training(tmp_path):
    source = write_images(tmp_path / "large", "train", "test", size=48)
    preprocess = dataclasses.replace(PREPROCESS, resize=32)
    data = {"source": source, "image_size": 28, "augment": "resized_crop_flip"}
    net = net_of(tmp_path, data, preprocess)
    images = images_for(net, evaluate_only=True)
    open_images(images, net)
    first = preprocess.pixels(PIL.Image.open(tmp_path / "large" / "test" / "ant" / "0.png"))
    assert torch.equal(images.val[0, 0][0], preprocess.normalize(first[None])[0])


def test_data_of_a_checkpoint_with_an_unknown_key(tmp_path, own):
    net = net_of(tmp_path, {"source": own, "colour": "grey"})
    with pytest.raises(CheckpointError, match=r"net.safetensors: .*data.colour"):
        images_for(net)


def test_threads_are_counted_from_one(tmp_path, own):
    net = net_of(tmp_path, {"source": own})
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        evaluate(net.path, threads=0)
