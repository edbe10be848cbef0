"""The Lightning data module: opens a source, decides what is cached, and builds the loaders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from torchadder.data.images import (
    Images,
    Preprocess,
    decode_all,
    decode_row,
    draw,
    measure,
    probe,
)
from torchadder.data.plan import BatchPlan
from torchadder.data.sources import DataError, divide, open_source

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index), shuffled by a pure function of (seed, epoch).

    Lightning calls `set_epoch`. Under distributed training each rank takes every `world_size`-th
    index; nothing is repeated, so shares may differ by one.

    Args:
        num_images: Images of the split.
        shuffle: Whether to shuffle.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes.
        num_used: Images of the order that are used; None: all.
    """

    def __init__(
        self,
        num_images: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_used: int | None = None,
    ) -> None:
        self.num_images = num_images
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_used = num_images if num_used is None else num_used
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, self.num_used, self.world_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.shuffle:
            key = int(draw(self.seed, self.epoch, np.zeros(1), 7)[0] >> np.uint64(1))
            generator = torch.Generator().manual_seed(key)
            order = torch.randperm(self.num_images, generator=generator).tolist()
        else:
            order = list(range(self.num_images))
        for index in order[self.rank : self.num_used : self.world_size]:
            yield self.epoch, index


class ImageData(lightning.LightningDataModule):
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
        val_fraction: That part.
        workers: Worker processes; None takes 0 for cached images, else one per CPU up to 4.
        cache_mb: Largest size of the decoded images kept in memory, in MiB.
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
    """

    num_classes: int
    class_names: list[str]
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
        val_fraction: float = 0.2,
        workers: int | None = None,
        cache_mb: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
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
        self.workers = workers
        self.cache_mb = cache_mb
        self.seed = seed
        self._is_open = False

    def setup(self, stage: str | None = None) -> None:
        """Opens the source and decodes what fits in memory; later calls do nothing."""
        if self._is_open:
            return
        source = open_source(
            self.source,
            image_column=self.image_column,
            label_column=self.label_column,
            num_classes=self.wanted_classes,
        )
        train, val = divide(source, self.val_split, self.val_fraction)
        self.class_names = source.class_names
        self.num_classes = len(source.class_names)

        channels, height, width = probe(train)
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
        fits = (len(train) + len(val)) * image_bytes <= self.cache_mb * 2**20
        train_cache = decode_all(train, blank, strict=strict) if fits and not whole_images else None
        val_cache = decode_all(val, blank, strict=strict) if fits else None
        mean, std = self._statistics(train_cache, train, blank)
        self.preprocess = Preprocess(channels, height, width, resize, mean, std)
        self.image_shape = (channels, height, width)
        self.train = Images(
            train, self.preprocess, augment=self.augment, seed=self.seed, cache=train_cache
        )
        self.val = Images(val, self.preprocess, cache=val_cache)
        self._is_open = True

    def _statistics(
        self, cache: torch.Tensor | None, train: Any, blank: Preprocess
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.mean is not None and self.std is not None:
            return tuple(self.mean), tuple(self.std)
        if cache is None and blank.channels == 3:
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        else:
            if cache is None:
                rows = range(0, len(train), -(-len(train) // 1000))
                cache = torch.stack([decode_row(train, row, blank) for row in rows])
            mean, std = measure(cache)
        return tuple(self.mean or mean), tuple(self.std or std)

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches (images float32 (N, C, H, W), labels int64 (N))."""
        return self._loader(self.train, self._sampler(self.train, shuffle=True))

    def val_dataloader(self) -> DataLoader:
        """Validation batches in the order of the source."""
        return self._loader(self.val, self._sampler(self.val, shuffle=False))

    def plan(self, world_size: int) -> BatchPlan:
        """How an epoch of the training images is divided among the processes.

        Raises:
            DataError: If it cannot be.
        """
        if len(self.val) < world_size:
            raise DataError(
                f"{len(self.val)} validation images are too few for {world_size} processes"
            )
        return BatchPlan(len(self.train), self.batch_size, world_size)

    def _sampler(self, images: Images, *, shuffle: bool) -> EpochSampler:
        rank, world_size = self._place()
        return EpochSampler(
            len(images),
            shuffle=shuffle,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            num_used=self.plan(world_size).num_used if shuffle else None,
        )

    def _place(self) -> tuple[int, int]:
        """Number of this process, and how many there are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _loader(self, images: Images, sampler: EpochSampler) -> DataLoader:
        workers = self.workers
        if workers is None:
            workers = 0 if images.cache is not None else min(4, os.cpu_count() or 1)
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            images,
            batch_size=max(1, self.batch_size // sampler.world_size),
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
            collate_fn=_identity,
            # A generator of its own keeps the loader from drawing on torch's global one.
            generator=torch.Generator().manual_seed(self.seed),
        )


def _identity(batch: Any) -> Any:
    """`Images` builds whole batches; nothing is left to collate."""
    return batch
