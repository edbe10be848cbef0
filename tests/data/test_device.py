"""Batches made on a device are those of the loader on the host, bit for bit."""

import pytest
import torch

from torchadder.data import DataError, ImageData
from torchadder.data.device import DeviceLoader
from torchadder.data.images import Images
from torchadder.data.sampling import EpochSampler
from torchadder.data.sources import Split

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def opened(writer, **options):
    writer.parquet("train.parquet")
    writer.parquet("test.parquet")
    data = ImageData(str(writer.folder), seed=3, **options)
    data.setup()
    return data


def on_device(data, images, batch_size, device, **options):
    sampler = EpochSampler(len(images), seed=data.seed, **options)
    return DeviceLoader(images, sampler, batch_size, torch.device(device))


def assert_same_batches(got, want):
    got, want = list(got), list(want)
    assert len(got) == len(want)
    for (images, labels), (images_want, labels_want) in zip(got, want, strict=True):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert torch.equal(images.cpu(), images_want)
        assert torch.equal(labels.cpu(), labels_want)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
@pytest.mark.parametrize("batch_size", [4, 5, 12])
def test_batches_are_those_of_the_host(writer, augment, batch_size, device):
    data = opened(writer, augment=augment, batch_size=batch_size)
    host = data.train_dataloader()
    loader = on_device(data, data.train, batch_size, device, shuffle=True)
    assert len(loader) == len(host)
    for epoch in (0, 1, 7):
        host.sampler.set_epoch(epoch)
        loader.sampler.set_epoch(epoch)
        assert_same_batches(loader, host)
    val = on_device(data, data.val, batch_size, device, shuffle=False)
    assert_same_batches(val, data.val_dataloader())


@pytest.mark.parametrize("device", DEVICES)
def test_images_that_are_not_square(device):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (9, 1, 16, 24), dtype=torch.uint8, generator=generator)
    split = Split("train", torch.arange(9).numpy(), pixels=pixels.numpy())
    from torchadder.data import Preprocess

    preprocess = Preprocess(1, 16, 24, None, (0.4,), (0.3,))
    images = Images(split, preprocess, augment="crop_flip", seed=5, cache=pixels)
    sampler = EpochSampler(9, shuffle=True, seed=5)
    loader = DeviceLoader(images, sampler, 4, torch.device(device))
    items = list(sampler)
    want = [images.__getitems__(items[start : start + 4]) for start in (0, 4, 8)]
    assert_same_batches(loader, want)


def test_every_process_gets_its_share(writer):
    data = opened(writer, augment="crop_flip")
    for rank in range(2):
        options = {"shuffle": True, "rank": rank, "world_size": 2, "num_used": 10}
        loader = on_device(data, data.train, 3, "cpu", **options)
        items = list(loader.sampler)
        assert len(items) == 5
        want = [data.train.__getitems__(items[start : start + 3]) for start in (0, 3)]
        assert_same_batches(loader, want)


def test_the_global_generator_is_left_alone(writer):
    data = opened(writer, augment="crop_flip")
    before = torch.get_rng_state()
    list(on_device(data, data.train, 4, "cpu", shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_mb": 0}, r"data.device_cache=true wants decoded images of at most .*=0 MiB"),
        ({"augment": "resized_crop_flip", "image_size": 8}, r"crop_flip; .*=resized_crop_flip"),
    ],
)
def test_what_cannot_lie_on_the_device_is_refused(writer, options, message):
    with pytest.raises(DataError, match=message):
        opened(writer, device_cache=True, **options)
    data = opened(writer, device_cache="auto", **options)
    with pytest.raises(ValueError, match="images must be decoded and augmented by one of none"):
        on_device(data, data.train, 4, "cpu", shuffle=True)


@pytest.mark.gpu
def test_batches_do_not_make_the_host_wait(writer):
    data = opened(writer, augment="crop_flip")
    loader = on_device(data, data.train, 4, "cuda", shuffle=True)
    list(loader)
    torch.cuda.set_sync_debug_mode("error")  # whatever waits raises: nothing else to assert
    try:
        list(loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")
