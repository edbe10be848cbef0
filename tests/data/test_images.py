import io

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from torchadder.data import DataError, ImageData, Preprocess, decode
from torchadder.data.detection.pictures import size_of
from torchadder.data.images import channels_of, draw, measure, mix, random_crop, random_flip
from torchadder.data.sampling import EpochSampler


def test_mix_is_the_finaliser_of_splitmix64():
    # First outputs of splitmix64 seeded with 1234567 (Vigna's reference program).
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.uint64(1234567) + golden * np.arange(1, 4, dtype=np.uint64)
    want = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mix(states).tolist() == want


def test_draws_depend_on_every_argument_and_are_uniform():
    indices = np.arange(20000)
    draws = draw(0, 0, indices, 0)
    for other in (draw(1, 0, indices, 0), draw(0, 1, indices, 0), draw(0, 0, indices, 1)):
        assert not (draws == other).any()
    counts = np.bincount((draws % np.uint64(9)).astype(int), minlength=9)
    # Binomial with mean 2222 and standard deviation 44: five of them.
    assert np.abs(counts - 20000 / 9).max() < 225


def test_random_crop_is_a_window_of_the_padded_image():
    images = torch.arange(1, 2 * 3 * 16 * 16 + 1).reshape(2, 3, 16, 16).float()
    indices = np.array([4, 9])
    got = random_crop(images, 0, 3, indices)
    padded = torch.nn.functional.pad(images, [2] * 4)
    for n in range(2):
        row = int(draw(0, 3, indices, 0)[n] % np.uint64(5))
        column = int(draw(0, 3, indices, 1)[n] % np.uint64(5))
        assert torch.equal(got[n], padded[n, :, row : row + 16, column : column + 16])


def test_random_flip_mirrors_some_images():
    images = torch.rand(64, 1, 4, 4)
    got = random_flip(images, 0, 0, np.arange(64))
    is_same = (got == images).flatten(1).all(1)
    is_flipped = (got == images.flip(-1)).flatten(1).all(1)
    assert (is_same ^ is_flipped).all()
    assert 16 < int(is_flipped.sum()) < 48


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "resized_crop_flip"])
def test_batches_do_not_depend_on_workers_cache_or_batch_size(writer, augment):
    writer.parquet("train.parquet")
    writer.parquet("test.parquet")

    def epochs(**options):
        data = ImageData(str(writer.folder), augment=augment, image_size=16, seed=3, **options)
        data.setup()
        loader = data.train_dataloader()
        found = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            batches = list(loader)
            found.append([torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])])
        return found

    want = epochs(batch_size=4, mean=[0.5] * 3, std=[0.25] * 3)
    options = {"mean": [0.5] * 3, "std": [0.25] * 3, "cache_mb": 0}
    for got in (epochs(batch_size=4, workers=1, **options), epochs(batch_size=6, **options)):
        for (images, labels), (images_want, labels_want) in zip(got, want, strict=True):
            assert torch.equal(images, images_want)
            assert torch.equal(labels, labels_want)
    assert not torch.equal(want[0][0], want[1][0])


def test_the_global_generator_is_left_alone(writer):
    writer.parquet("train.parquet")
    writer.parquet("test.parquet")
    data = ImageData(str(writer.folder), augment="resized_crop_flip", image_size=8)
    data.setup()
    before = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_sampler_shares_all_images_between_ranks():
    ranks = [EpochSampler(10, shuffle=True, seed=0, rank=r, world_size=3) for r in range(3)]
    for sampler in ranks:
        sampler.set_epoch(5)
    items = [item for sampler in ranks for item in sampler]
    assert sorted(items) == [(5, index) for index in range(10)]
    assert [len(sampler) for sampler in ranks] == [4, 3, 3]
    alone = EpochSampler(10, shuffle=True, seed=0, num_used=8)
    assert [index for _, index in alone] == [
        index
        for items in zip(
            *(list(EpochSampler(10, shuffle=True, seed=0, rank=r, world_size=2)) for r in range(2)),
            strict=True,
        )
        for _, index in items
    ][:8]


def test_a_last_batch_of_one_image_is_left_out(writer):
    writer.parquet("train.parquet")
    writer.parquet("test.parquet")
    data = ImageData(str(writer.folder), batch_size=11)
    data.setup()
    assert [len(labels) for _, labels in data.train_dataloader()] == [11]
    assert [len(labels) for _, labels in data.val_dataloader()] == [11, 1]


def test_measured_statistics_normalise():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    mean, std = measure(images)
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-4)
    normal = Preprocess(3, 8, 8, None, mean, std).normalize(images)
    assert float(normal.mean()) == pytest.approx(0, abs=1e-3)
    assert float(normal.std()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_becomes_the_wanted_channels(mode, channels):
    image = PIL.Image.new("RGB", (9, 7), (10, 200, 30)).convert(mode)
    preprocess = Preprocess(channels, 7, 9, None, (0.0,) * channels, (1.0,) * channels)
    assert preprocess.pixels(image).shape == (channels, 7, 9)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess


def test_sixteen_bits_are_scaled_not_clipped():
    image = PIL.Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    preprocess = Preprocess(1, 4, 4, None, (0.0,), (1.0,))
    assert preprocess.pixels(image).unique().tolist() == [0x80]


def encoded(array, format="TIFF"):
    file = io.BytesIO()
    PIL.Image.fromarray(array).save(file, format)
    return file.getvalue()


def test_wide_whole_numbers_are_scaled_or_refused():
    preprocess = Preprocess(1, 4, 4, None, (0.0,), (1.0,))
    image = decode(encoded(np.full((4, 4), 0xFFFF, dtype=np.int32)))
    assert image.mode == "I"
    assert preprocess.pixels(image).unique().tolist() == [0xFF]
    with pytest.raises(
        DataError, match=r"^holds values of 70000 \.\. 70000, 0 \.\. 65535 are wante"
    ):
        decode(encoded(np.full((4, 4), 70000, dtype=np.int32)))
    with pytest.raises(DataError, match=r"^holds values of -1 "):
        preprocess.pixels(PIL.Image.fromarray(np.full((4, 4), -1, dtype=np.int32)))


def test_floating_point_images_are_scaled_or_refused():
    preprocess = Preprocess(1, 4, 4, None, (0.0,), (1.0,))
    image = decode(encoded(np.full((4, 4), 0.2, dtype=np.float32)))
    assert image.mode == "F"
    assert preprocess.pixels(image).unique().tolist() == [51]
    for value in (200.0, -0.5, float("nan")):
        with pytest.raises(DataError, match=r"^holds values of .*, 0 \.\. 1 are wanted .* mode F$"):
            decode(encoded(np.array([[0.5, value]], dtype=np.float32)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I", "I;16", "I;16B", "F"])
def test_modes_that_are_grey(mode):
    assert channels_of(PIL.Image.new(mode, (2, 2))) == 1
    assert channels_of(PIL.Image.new("RGB", (2, 2))) == 3


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_the_range_of_the_seed(seed):
    with pytest.raises(ValueError, match=rf"seed must be 0 .. 2\*\*64 - 1, got {seed}"):
        ImageData(seed=seed)


@pytest.mark.parametrize(("size", "resize"), [((40, 20), None), ((20, 40), 12), ((5, 7), None)])
def test_other_sizes_are_resized_and_cut(size, resize):
    preprocess = Preprocess(3, 10, 10, resize, (0.0,) * 3, (1.0,) * 3)
    assert preprocess.pixels(PIL.Image.new("RGB", size)).shape == (3, 10, 10)


@pytest.mark.parametrize("encoded", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(encoded):
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(encoded)


def test_wrong_number_of_statistics(writer):
    writer.parquet("train.parquet")
    data = ImageData(str(writer.folder), mean=[0.5])
    with pytest.raises(DataError, match=r"data.mean has 1 values, the images have 3 channel"):
        data.setup()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_images_are_upright(format, orientation):
    """As PIL's own, slower way has them; 9 is no orientation."""
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    corners = np.zeros((16, 24, 3), dtype=np.uint8)
    corners[:8, :8], corners[8:, 16:] = (250, 0, 0), (0, 0, 250)
    PIL.Image.fromarray(corners).save(file, format, exif=exif)
    with PIL.Image.open(file) as image:
        want = PIL.ImageOps.exif_transpose(image)
    got = decode(file.getvalue())
    assert np.array_equal(np.asarray(got), np.asarray(want))
    assert PIL.ImageOps.exif_transpose(got).size == got.size  # and is not turned again
    assert size_of(file.getvalue()) == (want.height, want.width)
    assert got.width == (16 if 5 <= orientation <= 8 else 24)
