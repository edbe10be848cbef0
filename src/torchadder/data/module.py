"""The Lightning data module: opens a source, decides what is cached, and builds the loaders."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from torch.utils.data import DataLoader

from torchadder.data.device import AUGMENTATIONS, DeviceLoader, bytes_on_device
from torchadder.data.epochs import EpochData, EpochLoader
from torchadder.data.images import (
    Images,
    Preprocess,
    decode_all,
    decode_row,
    measure,
    probe,
)
from torchadder.data.sampling import EpochSampler
from torchadder.data.sources import (
    DataError,
    ImageSource,
    Split,
    divide,
    open_source,
    split_to_evaluate,
)
from torchadder.data.streaming import (
    Stream,
    StreamBatches,
    Tickets,
    open_stream,
    stream_loader,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageData(EpochData):
    """Images and labels, ready for a trainer.

    Small images are decoded once into memory and augmented a batch at a time; others are decoded
    by worker processes. Order and augmentation are pure functions of (seed, epoch, index): the
    same for any number of workers, and nothing is lost when a run is interrupted.

    Args:
        source: "mnist" (5,000 real digits, offline: 4,000 to train, 1,000 to test), a folder of
            parquet files, a folder of images (`class/` or `train/class/`, `val/class/`), or the
            id of a data set on the Hugging Face hub.
        batch_size: Images per batch, all processes together.
        augment: "none", "crop", "crop_flip" or "resized_crop_flip".
        image_size: Height and width fed to the net; None keeps the images' own size.
        mean: Per-channel mean, pixels in 0..1; None measures the training images.
        std: Per-channel standard deviation; None measures it.
        image_column: Column of the images; None finds it.
        label_column: Column of the labels; None finds it.
        num_classes: Number of classes; None takes it from the data.
        val_split: Split to validate on; None takes validation, else test, else a part of train.
        val_fraction: That part; None is only for `evaluate_only`.
        evaluate_only: Whether nothing is trained on: no training image is decoded, and there is no
            `train`. `val` is what a training run would validate on. Where nothing of the source was
            trained on, `val_fraction` is None, and where `val_split` is named, `val` is the split
            that `split_to_evaluate` chooses, whole. `mean` and `std` are not measured.
        workers: Worker processes; None takes 0 for cached images, else one per CPU up to 4.
        cache_mb: Largest size of the decoded images kept in memory, in MiB.
        device_cache: Keep decoded images on the device that trains and make the batches there, the
            same bit for bit: True, False, or "auto": on a CUDA device, if they take no more than a
            quarter of its free memory.
        eval_batch_size: Images per validation batch, all processes together; None: `batch_size`.
        streaming: Whether to read the training images from parquet files as they are needed.
        shuffle_buffer: Images that each reader of a stream holds and draws from at random.
        seed: Seed of order and augmentation.

    Attributes:
        num_classes (int): Number of classes.
        class_names (list[str]): Their names.
        image_shape (tuple[int, int, int]): Channels, height and width fed to the net.
        preprocess (Preprocess): The deterministic part of the transforms.
        train (Images): Training images.
        val (Images): Validation images.

    Raises:
        DataError: From `setup`, if the data cannot be used.
        ValueError: If `seed` is out of range.
    """

    image_shape: tuple[int, int, int]
    preprocess: Preprocess
    train: Images
    val: Images

    def __init__(
        self,
        source: str = "mnist",
        *,
        batch_size: int = 128,
        augment: str = "none",
        image_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        num_classes: int | None = None,
        val_split: str | None = None,
        val_fraction: float | None = 0.2,
        evaluate_only: bool = False,
        workers: int | None = None,
        cache_mb: int = 1024,
        device_cache: bool | str = "auto",
        eval_batch_size: int | None = None,
        streaming: bool = False,
        shuffle_buffer: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be 0 .. 2**64 - 1, got {seed}")
        self.source = source
        self.batch_size = batch_size
        self.augment = augment
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.image_column = image_column
        self.label_column = label_column
        self.wanted_classes = num_classes
        self.val_split = val_split
        self.val_fraction = val_fraction
        self.evaluate_only = evaluate_only
        self.workers = workers
        self.cache_mb = cache_mb
        self.device_cache = device_cache
        self.eval_batch_size = eval_batch_size
        self.streaming = streaming
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self._is_open = False
        self._is_on_device: bool | None = None
        self._stream: Stream | None = None

    def setup(self, stage: str | None = None) -> None:
        """Opens the source and decodes what fits in memory; later calls do nothing."""
        if self._is_open:
            return
        columns = {"image_column": self.image_column, "label_column": self.label_column}
        if self.streaming:
            stream, source = open_stream(self.source, **columns, num_classes=self.wanted_classes)
            if not self.evaluate_only:
                stream.first_rows()
            source.splits["train"] = stream.split
            self._stream = stream
        else:
            source = open_source(self.source, **columns, num_classes=self.wanted_classes)
        train, val = self._divide(source)
        self.class_names = source.class_names
        self.num_classes = len(source.class_names)
        if self.num_classes < 2 and not self.evaluate_only:
            raise DataError(
                f"{self.source}: at least 2 classes are wanted to tell apart, got "
                f"{self.num_classes} ({', '.join(self.class_names)})"
            )

        channels, height, width = probe(val if train is None else train)
        whole_images = self.augment == "resized_crop_flip"
        if self.image_size is not None:
            height = width = self.image_size
        elif whole_images:
            raise DataError("data.augment=resized_crop_flip wants data.image_size")
        if self.augment != "none" and min(height, width) < 2:
            raise DataError(
                f"data.augment={self.augment}: images of {height}x{width} are too small"
            )
        # 256 / 224 is what torchvision's ImageNet recipes resize to before the centre crop.
        resize = round(height * 256 / 224) if whole_images else self.image_size
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != channels:
                raise DataError(
                    f"data.{name} has {len(values)} values, the images have {channels} channel(s)"
                )
        blank = Preprocess(channels, height, width, resize, (0.0,) * channels, (1.0,) * channels)

        strict = self.image_size is None
        image_bytes = channels * height * width
        num_images = len(val) + (0 if train is None else len(train))
        fits = num_images * image_bytes <= self.cache_mb * 2**20
        is_kept = fits and not whole_images and not self.streaming
        if self.device_cache is True and self.streaming:
            raise DataError("data.device_cache=true keeps all images, data.streaming none")
        if self.device_cache is True and not (fits and self.augment in AUGMENTATIONS):
            raise DataError(
                f"data.device_cache=true wants decoded images of at most data.cache_mb="
                f"{self.cache_mb} MiB and data.augment {', '.join(AUGMENTATIONS)}; these take "
                f"{num_images * image_bytes / 2**20:.0f} MiB, augment={self.augment}"
            )
        val_cache = decode_all(val, blank, strict=strict) if fits else None
        if train is None:
            mean, std = tuple(self.mean or blank.mean), tuple(self.std or blank.std)
            self.preprocess = dataclasses.replace(blank, mean=mean, std=std)
        else:
            train_cache = decode_all(train, blank, strict=strict) if is_kept else None
            mean, std = self._statistics(train_cache, train, blank)
            self.preprocess = dataclasses.replace(blank, mean=mean, std=std)
            self.train = Images(
                train, self.preprocess, augment=self.augment, seed=self.seed, cache=train_cache
            )
        self.image_shape = (channels, height, width)
        self.val = Images(val, self.preprocess, cache=val_cache)
        self._is_open = True

    def _divide(self, source: ImageSource) -> tuple[Split | None, Split]:
        """The training split, where one is wanted, and the validation split."""
        is_whole = self.val_split is not None or self.val_fraction is None
        if self.evaluate_only and is_whole:
            return None, split_to_evaluate(source, self.val_split)
        if self.val_fraction is None:
            raise DataError("data.val_fraction=None: between 0 and 1 is wanted")
        train, val = divide(source, self.val_split, self.val_fraction)
        return (None if self.evaluate_only else train), val

    def _statistics(
        self, cache: torch.Tensor | None, train: Any, blank: Preprocess
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.mean is not None and self.std is not None:
            return tuple(self.mean), tuple(self.std)
        if cache is None and blank.channels == 3:
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        else:
            if cache is None:
                rows = (
                    range(0, len(train), -(-len(train) // 1000))
                    if self._stream is None
                    else list(train.encoded)
                )
                cache = torch.stack([decode_row(train, row, blank) for row in rows])
            mean, std = measure(cache)
        return tuple(self.mean or mean), tuple(self.std or std)

    def train_dataloader(self) -> DataLoader | DeviceLoader:
        """Shuffled, augmented batches (images float32 (N, C, H, W), labels int64 (N))."""
        if self._stream is not None:
            return self._stream_loader(self._stream)
        return self._loader(self.train, self._sampler(self.train, shuffle=True), self.batch_size)

    def val_dataloader(self) -> DataLoader | DeviceLoader:
        """Validation batches in the order of the source."""
        batch_size = self.eval_batch_size or self.batch_size
        return self._loader(self.val, self._sampler(self.val, shuffle=False), batch_size)

    @property
    def stream_workers(self) -> int | None:
        """Worker processes that read a stream; None without one."""
        if not self.streaming:
            return None
        return min(4, os.cpu_count() or 1) if self.workers is None else self.workers

    def _loader(
        self, images: Images, sampler: EpochSampler, batch_size: int
    ) -> DataLoader | DeviceLoader:
        batch_size = max(1, batch_size // sampler.world_size)
        device = self._device()
        if self._is_on_device is None and device is not None:
            self._is_on_device = self._fits(device)
        if device is not None and self._is_on_device:
            return DeviceLoader(images, sampler, batch_size, device)
        workers = self.workers
        if workers is None:
            workers = 0 if images.cache is not None else min(4, os.cpu_count() or 1)
        return EpochLoader(
            images,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device is not None and device.type == "cuda",
            collate_fn=_identity,
            # A generator of its own keeps the loader from drawing on torch's global one.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _stream_loader(self, stream: Stream) -> DataLoader:
        rank, world_size = self._place()
        batches = StreamBatches(
            stream,
            self.train,
            self.plan(world_size),
            rank=rank,
            buffer=self.shuffle_buffer,
            seed=self.seed,
        )
        device = self._device()
        is_on_gpu = device is not None and device.type == "cuda"
        tickets = Tickets(len(batches))
        tickets.start_at(self.first_epoch, self.first_batch)
        workers = self.stream_workers or 0
        return stream_loader(batches, tickets, workers=workers, pin_memory=is_on_gpu)

    def _fits(self, device: torch.device) -> bool:
        """Whether the images of both splits are to be kept on the device that computes."""
        if self.device_cache != "auto":
            return bool(self.device_cache)
        splits = [self.val] if self.evaluate_only else [self.train, self.val]
        if device.type != "cuda" or splits[0].cache is None or self.augment not in AUGMENTATIONS:
            return False
        free, _ = torch.cuda.mem_get_info(device)
        return 4 * sum(bytes_on_device(images) for images in splits) <= free


def _identity(batch: Any) -> Any:
    """`Images` builds whole batches; nothing is left to collate."""
    return batch
