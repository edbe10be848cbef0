"""Digit scenes, items, transforms and the order of an epoch."""

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from annotated import BOXES, instances, picture, write_coco, write_voc, write_yolo
from torchadder.data.detection import (
    Augmentation,
    DetectionDataError,
    DetectionImages,
    DigitScenes,
    collate,
    divide,
    open_detection,
)
from torchadder.data.detection.digits import draw_scene, place
from torchadder.data.sampling import EpochSampler
from torchadder.data.sources import divide as divide_digits
from torchadder.data.sources import open_source

SCENES = DigitScenes(num_train=12, num_validation=6, height=96, width=112)


@pytest.fixture(scope="module")
def source():
    return open_detection("digit-scenes", scenes=SCENES)


def test_scenes_are_a_function_of_seed_split_and_index(source):
    split = source.splits["train"]
    again = open_detection(scenes=SCENES).splits["train"]
    assert np.array_equal(split.boxes, again.boxes)
    assert np.array_equal(split.labels, again.labels)
    more = DigitScenes(num_train=1, num_validation=6, height=96, width=112)
    assert np.array_equal(draw_scene(SCENES, "train", 5), draw_scene(more, "train", 5))
    other = DigitScenes(height=96, width=112, seed=1)
    for changed in (
        draw_scene(other, "train", 5),
        draw_scene(SCENES, "validation", 5),
        draw_scene(SCENES, "train", 6),
    ):
        assert not np.array_equal(changed, draw_scene(SCENES, "train", 5))


def test_boxes_are_exact(source):
    """Each box is what the pixels above zero of its digit, alone on a canvas, span."""
    num_digits = 0
    for name, split in source.splits.items():
        for index in range(len(split)):
            digits = place(SCENES, name, index)
            boxes, labels = split.boxes[split.objects(index)], split.labels[split.objects(index)]
            want = np.zeros((96, 112), dtype=np.uint8)
            for digit, box, label in zip(digits, boxes, labels, strict=True):
                canvas = np.zeros((96, 112), dtype=np.uint8)
                height, width = digit.pixels.shape
                canvas[digit.top : digit.top + height, digit.left : digit.left + width] = (
                    digit.pixels
                )
                ys, xs = np.nonzero(canvas)
                assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                assert label == digit.label
                want = np.maximum(want, canvas)
                num_digits += 1
            assert np.array_equal(np.asarray(split.pictures.open(index)), want)
    assert num_digits > 30


def test_scenes_differ_in_size_and_overlap_little(source):
    split = source.splits["train"]
    heights = split.boxes[:, 3] - split.boxes[:, 1]
    assert 8 < heights.min() < 24
    assert 36 < heights.max() <= 56
    for index in range(len(split)):
        boxes = split.boxes[split.objects(index)]
        for one in range(len(boxes)):
            for other in range(one):
                a, b = boxes[one], boxes[other]
                common = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
                area = min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
                assert common.clip(0).prod() <= SCENES.overlap * area


def test_train_and_validation_use_disjoint_real_digits():
    train, validation = (
        {digit.row: digit for index in range(40) for digit in place(SCENES, name, index)}
        for name in ("train", "validation")
    )
    assert len(train) > 80
    assert not set(train) & set(validation)
    held_out = divide_digits(open_source("mnist"), None, 0.2)[1]
    assert set(validation) <= set(held_out.rows.tolist())
    labels = dict(zip(held_out.rows.tolist(), held_out.labels.tolist(), strict=True))
    assert all(labels[row] == digit.label for row, digit in validation.items())


def test_noise_is_added_and_moves_no_box(source):
    noisy = DigitScenes(num_train=3, num_validation=1, height=96, width=112, noise=60)
    boxes = open_detection(scenes=noisy).splits["train"].boxes
    assert np.array_equal(boxes, source.splits["train"].boxes[: len(boxes)])
    grey = draw_scene(noisy, "train", 0).astype(int) - draw_scene(SCENES, "train", 0)
    assert grey.min() == 0
    assert 50 < grey.max() <= 60
    assert np.array_equal(draw_scene(noisy, "train", 0), draw_scene(noisy, "train", 0))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sides": (20, 10)}, "sides must rise and begin at 4"),
        ({"sides": (20, 200)}, r"sides \(20, 200\) do not fit into 128x128"),
        ({"digits": (-1, 3)}, "digits must rise and begin at 0"),
        ({"overlap": 1.5}, r"overlap must lie in 0..1, got 1.5"),
        ({"noise": 256}, r"noise must lie in 0..255, got 256"),
        ({"num_train": 0}, "must be at least 1, got 0 and 400"),
    ],
)
def test_bad_scenes(values, reason):
    with pytest.raises(ValueError, match=reason):
        DigitScenes(**values)


def test_item(tmp_path):
    content = instances()
    content["annotations"][0]["iscrowd"] = 1
    split = open_detection(write_coco(tmp_path, content)).splits["train"]
    image, target = DetectionImages(split, as_uint8=True)[0]
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture("a")))
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [list(box) for _, box in BOXES["a"]]
    assert target["labels"].tolist() == [0, 1]
    assert target["labels"].dtype == torch.int64
    assert target["iscrowd"].tolist() == [1, 0]
    assert target["difficult"].tolist() == [0, 0]
    assert target["image_id"].item() == 10
    assert target["size"].tolist() == target["orig_size"].tolist() == [30, 40]
    scaled, target = DetectionImages(split, train=True)[0]  # without the crowd
    assert torch.allclose(scaled, image.float() / 255, rtol=0, atol=1e-7)
    assert target["labels"].tolist() == [1]
    assert target["boxes"].tolist() == [[10, 0, 40, 15]]
    assert target["iscrowd"].tolist() == [0]
    with pytest.raises(IndexError, match="image 3 of 3"):
        DetectionImages(split)[3]


def test_difficult_objects_are_learnt_only_if_wanted(tmp_path):
    split = open_detection(write_voc(tmp_path)).splits["train"]
    numbers = [
        len(DetectionImages(split, **options)[1][1]["labels"])
        for options in ({}, {"train": True}, {"train": True, "use_difficult": True})
    ]
    assert numbers == [1, 0, 1]


def test_grey_images_get_three_equal_channels(source):
    image, _ = DetectionImages(source.splits["train"])[0]
    assert image.shape == (3, 96, 112)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    assert 0 <= image.min() < image.max() <= 1


def test_flip_by_hand(tmp_path):
    split = open_detection(write_coco(tmp_path)).splits["train"]
    plain, _ = DetectionImages(split, as_uint8=True)[0]
    image, target = DetectionImages(split, Augmentation(flip=1), as_uint8=True, train=True)[0]
    assert torch.equal(image, plain.flip(-1))
    # 40 pixels wide: x1, x2 = 4, 20 become 20, 36 and 10, 40 become 0, 30.
    assert target["boxes"].tolist() == [[20, 6, 36, 26], [0, 0, 30, 15]]


@pytest.mark.parametrize(
    ("augmentation", "size", "boxes"),
    [
        (Augmentation(shorter=[60]), (60, 80), [[8, 12, 40, 52], [20, 0, 80, 30]]),
        (Augmentation(shorter=[60], longer=20), (15, 20), [[2, 3, 10, 13], [5, 0, 20, 7.5]]),
        (Augmentation(longer=80), (60, 80), [[8, 12, 40, 52], [20, 0, 80, 30]]),
        (
            Augmentation(flip=1, shorter=[15], longer=80),
            (15, 20),
            [[10, 3, 18, 13], [0, 0, 15, 7.5]],
        ),
    ],
)
def test_resize_by_hand(tmp_path, augmentation, size, boxes):
    split = open_detection(write_coco(tmp_path)).splits["train"]
    image, target = DetectionImages(split, augmentation, train=True)[0]
    assert tuple(image.shape[1:]) == size
    assert target["boxes"].tolist() == boxes
    assert target["boxes"].canvas_size == size
    assert target["size"].tolist() == list(size)
    assert target["orig_size"].tolist() == [30, 40]


def test_boxes_that_shrink_to_nothing_are_not_learnt_but_kept_for_evaluation(tmp_path):
    split = open_detection(write_coco(tmp_path)).splits["train"]
    tiny = Augmentation(longer=2)  # image a becomes 2x2 (1.5 rows), its boxes 0.8 and 1.5 wide
    assert DetectionImages(split, tiny, train=True)[0][1]["labels"].tolist() == [1]
    assert DetectionImages(split, tiny)[0][1]["labels"].tolist() == [0, 1]


def test_augmentation_depends_on_seed_epoch_and_index_alone(source):
    split = source.splits["train"]
    augmentation = Augmentation(flip=0.5, shorter=(64, 96, 128), longer=160)
    images = DetectionImages(split, augmentation, seed=3, train=True)

    def drawn(images, epoch):
        return [tuple(images[epoch, index][0].shape[1:]) for index in range(len(images))]

    first = drawn(images, 0)
    torch.manual_seed(5)
    assert drawn(images, 0) == first
    assert len({size for epoch in range(3) for size in drawn(images, epoch)}) == 3
    assert drawn(images, 1) != first
    assert drawn(DetectionImages(split, augmentation, seed=4), 0) != first
    is_flipped = []
    for index in range(len(split)):
        plain, _ = DetectionImages(split, train=True)[index]
        image, _ = DetectionImages(split, Augmentation(flip=0.5), seed=3)[0, index]
        is_flipped.append(torch.equal(image, plain.flip(-1)))
        assert is_flipped[-1] or torch.equal(image, plain)
    assert 0 < sum(is_flipped) < len(split)
    calm = augmentation.for_evaluation()
    assert (calm.flip, calm.shorter, calm.longer) == (0, (128,), 160)
    assert Augmentation(flip=1).for_evaluation() == Augmentation()


@pytest.mark.parametrize("values", [{"flip": 2}, {"shorter": [0]}, {"longer": -1}])
def test_bad_augmentation(values):
    with pytest.raises(ValueError, match="must"):
        Augmentation(**values)


def test_batches_are_the_same_for_any_workers_and_batch_size(source):
    train, val = divide(source)
    assert (len(train), len(val)) == (12, 6)

    def epoch(number, batch_size, workers=0):
        images = DetectionImages(train, Augmentation(flip=0.5, shorter=(32, 48)), train=True)
        sampler = EpochSampler(len(images), shuffle=True, seed=1)
        sampler.set_epoch(number)
        loader = DataLoader(
            images, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate
        )
        return [pair for batch in loader for pair in zip(*batch, strict=True)]

    want = epoch(1, 4)
    orders = [[int(target["image_id"]) for _, target in epoch(n, 4)] for n in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(1, 13))
    for got in (epoch(1, 5), epoch(1, 4, workers=1)):
        for (image, target), (image_want, target_want) in zip(got, want, strict=True):
            assert torch.equal(image, image_want)
            for key, value in target_want.items():
                assert torch.equal(target[key], value), key


def test_a_detector_learns_from_a_batch(source):
    from small_detectors import small

    images, targets = collate(
        [DetectionImages(source.splits["train"], train=True)[i] for i in (0, 1)]
    )
    losses = small(num_classes=source.num_classes)(images, targets)
    assert all(loss.isfinite() for loss in losses.values())


def test_annotations_take_no_objects(tmp_path):
    """All that a split keeps in memory is arrays."""
    split = open_detection(write_coco(tmp_path)).splits["train"]
    for name, value in vars(split).items():
        if name not in ("name", "categories", "pictures"):
            assert isinstance(value, np.ndarray), name
            assert value.dtype != object
    assert not any(isinstance(value, (list, dict)) for value in vars(split.pictures.names).values())


def write_turned(file):
    """A file of 60x40 pixels that is 40 wide and 60 high: red below the middle once upright."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, 30:] = (255, 0, 0)
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    PIL.Image.fromarray(pixels).save(file, exif=exif, quality=95)


def test_shares_are_of_the_upright_image(tmp_path):
    write_yolo(tmp_path)
    write_turned(tmp_path / "images" / "train" / "b.jpg")
    (tmp_path / "images" / "train" / "b.png").unlink()
    (tmp_path / "labels" / "train" / "b.txt").write_text("0 0.25 0.75 0.5 0.5\n")
    split = open_detection(tmp_path, check_images=True).splits["train"]
    image, target = DetectionImages(split)[1]
    assert target["boxes"].tolist() == [[0, 30, 20, 60]]
    assert target["orig_size"].tolist() == [60, 40]
    assert image.shape == (3, 60, 40)
    assert image[0, 32:, :20].min() > 0.9
    assert image[0, :28].max() < 0.1


def test_stated_sizes_are_of_the_upright_image(tmp_path):
    content = instances("a")
    content["images"][0] |= {"file_name": "a.jpg", "height": 60, "width": 40}
    folder = write_coco(tmp_path, content)
    write_turned(folder / "images" / "a.jpg")
    split = open_detection(folder, check_images=True).splits["train"]
    assert DetectionImages(split)[0][0].shape == (3, 60, 40)
    content["images"][0] |= {"height": 40, "width": 60}
    write_coco(tmp_path, content)
    with pytest.raises(
        DetectionDataError,
        match=r"a.jpg: the image is 40 pixels wide and 60 high, its annotation says 60 and 40; "
        r"sizes and boxes are to be those of the image as its EXIF orientation turns it",
    ):
        open_detection(folder, check_images=True)
