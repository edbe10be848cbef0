"""The Lightning data module of annotated images: opens a source and builds the loaders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from torchadder.data.detection.digits import DigitScenes
from torchadder.data.detection.items import DetectionImages, collate
from torchadder.data.detection.opening import divide, open_detection
from torchadder.data.detection.problems import LeftOut
from torchadder.data.detection.tables import DetectionSource
from torchadder.data.detection.transforms import Augmentation
from torchadder.data.epochs import EpochData, EpochLoader
from torchadder.data.sources import split_to_evaluate


class DetectionData(EpochData):
    """Annotated images, ready for a trainer.

    A batch is a list of images (3, H, W) with values in 0..1 and a list of their targets, as
    `DetectionImages` makes them. Images are decoded when they are wanted. Order and augmentation
    are pure functions of (seed, epoch, index): the same for any number of workers, and nothing is
    lost when a run is interrupted.

    Args:
        source: What `open_detection` opens.
        batch_size: Images per batch, all processes together.
        eval_batch_size: Images per validation batch; None: `batch_size`.
        shorter: Lengths that the shorter side of an image is brought to, in training one of them at
            random, in validation the largest.
        longer: Largest length of the longer side.
        flip: Probability of mirroring a training image.
        train_split: Split to train on; None: see `divide`.
        val_split: Split to validate on; None: see `divide`.
        val_fraction: Part to hold out where there is a training split only.
        evaluate_only: Whether nothing is trained on, so that `val_split`, or what
            `split_to_evaluate` takes for it, is evaluated whole; there is no `train` then.
        use_difficult: Whether to train on difficult objects.
        workers: Worker processes; None takes 0 for digit scenes, else one per CPU up to 4.
        scenes: How digit scenes are composed, arguments of `DigitScenes`.
        skip_bad: Go on without entries that cannot be used; `left_out` lists them. Images are then
            decoded once when the source is opened, so that damaged ones are found.
        seed: Seed of order and augmentation.
        **opening: Further arguments of `open_detection`.

    Attributes:
        opened (DetectionSource): The source, from `setup` on.
        train (DetectionImages): Training images.
        val (DetectionImages): Validation images, with all objects of the source.

    Raises:
        DetectionDataError: From `setup`, if the data cannot be used.
        ValueError: If a value is out of range.
    """

    opened: DetectionSource
    train: DetectionImages
    val: DetectionImages

    def __init__(
        self,
        source: str = "digit-scenes",
        *,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        shorter: Sequence[int] = (800,),
        longer: int = 1333,
        flip: float = 0.5,
        train_split: str | None = None,
        val_split: str | None = None,
        val_fraction: float = 0.2,
        evaluate_only: bool = False,
        use_difficult: bool = False,
        workers: int | None = None,
        scenes: dict[str, Any] | None = None,
        skip_bad: bool = False,
        seed: int = 0,
        **opening: Any,
    ) -> None:
        super().__init__()
        self.source = source
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.augmentation = Augmentation(flip, tuple(shorter), longer)
        self.train_split = train_split
        self.val_split = val_split
        self.val_fraction = val_fraction
        self.evaluate_only = evaluate_only
        self.use_difficult = use_difficult
        self.workers = workers
        self.scenes = _scenes(scenes or {})
        self.skip_bad = skip_bad
        self.seed = seed
        self.opening = opening
        self._is_open = False

    @property
    def left_out(self) -> Sequence[LeftOut]:
        """Entries that cannot be used and were skipped."""
        return self.opened.left_out

    def setup(self, stage: str | None = None) -> None:
        """Opens the source; later calls do nothing."""
        if self._is_open:
            return
        self.opened = open_detection(
            self.source,
            scenes=self.scenes,
            skip_bad=self.skip_bad,
            check_images=self.skip_bad and self.source != "digit-scenes",
            **self.opening,
        )
        self.class_names = self.opened.class_names
        self.num_classes = self.opened.num_classes
        if self.evaluate_only:
            val = split_to_evaluate(self.opened, self.val_split)
        else:
            train, val = divide(
                self.opened,
                train_split=self.train_split,
                val_split=self.val_split,
                val_fraction=self.val_fraction,
            )
            self.train = DetectionImages(
                train,
                self.augmentation,
                seed=self.seed,
                train=True,
                use_difficult=self.use_difficult,
            )
        self.val = DetectionImages(val, self.augmentation.for_evaluation())
        self._is_open = True

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches."""
        return self._loader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Validation batches in the order of the source."""
        return self._loader(self.val, self.eval_batch_size or self.batch_size, shuffle=False)

    def _loader(self, images: DetectionImages, batch_size: int, *, shuffle: bool) -> DataLoader:
        sampler = self._sampler(images, shuffle=shuffle)
        workers = self.workers
        if workers is None:
            workers = 0 if self.opened.format == "digit-scenes" else min(4, os.cpu_count() or 1)
        device = self._device()
        return EpochLoader(
            images,
            batch_size=max(1, batch_size // sampler.world_size),
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device is not None and device.type == "cuda",
            collate_fn=collate,
            # A generator of its own keeps the loader from drawing on torch's global one.
            generator=torch.Generator().manual_seed(self.seed),
        )


def _scenes(values: dict[str, Any]) -> DigitScenes:
    """Digit scenes from values as YAML holds them, where tuples are lists.

    Raises:
        ValueError: If a name is unknown or a value out of range.
    """
    known = DigitScenes.__dataclass_fields__
    for name in values:
        if name not in known:
            raise ValueError(f"scenes has no {name!r}; it takes {', '.join(known)}")
    fixed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return DigitScenes(**fixed)
