"""Batches of a data set that lies on the device: gathered, augmented and normalised there.

For images of CIFAR's size a loader on the host cannot keep up with a fast chip. `DeviceLoader`
gives the batches of `Images` behind a `DataLoader`, bit for bit: order and augmentation are the
same pure functions of (seed, epoch, index), drawn for a whole epoch at once and sent to the device
in one piece. A batch then costs a dozen small kernels and no transfer. Trainers are not known here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torchadder.data.epochs import GoesOnWithinEpoch
from torchadder.data.images import Images, crop_padding, draw_corners, draw_flips
from torchadder.data.sampling import EpochSampler

AUGMENTATIONS = ("none", "crop", "crop_flip")
"""The augmentations that can be done on batches of equal, decoded images."""


class DeviceLoader(GoesOnWithinEpoch):
    """Batches (images float32 (N, C, H, W), labels int64 (N)) made on a device.

    Args:
        images: Decoded images with an augmentation of `AUGMENTATIONS`.
        sampler: The order; whoever iterates calls its `set_epoch`.
        batch_size: Images of a batch; the last one may be smaller.
        device: Where the images are kept, as uint8 and with the padding that crops need, and where
            the batches come to be.

    Raises:
        ValueError: If the images are not decoded, or cannot be augmented here.
    """

    batch_sampler = None  # a trainer that finds a sampler asks for this one, too

    def __init__(
        self, images: Images, sampler: EpochSampler, batch_size: int, device: torch.device
    ) -> None:
        if images.cache is None or images.augment not in AUGMENTATIONS:
            raise ValueError(
                f"images must be decoded and augmented by one of {', '.join(AUGMENTATIONS)} to lie "
                f"on a device, got augment={images.augment!r} and "
                f"{'no ' if images.cache is None else ''}decoded images"
            )
        self.images = images
        self.sampler = sampler
        self.batch_size = batch_size
        self.device = device
        self._is_cropped = images.augment in ("crop", "crop_flip")
        self._is_flipped = images.augment == "crop_flip"
        pixels = images.cache.to(device)
        if self._is_cropped:
            padding = crop_padding(images.cache.shape[2])
            pixels = torch.nn.functional.pad(pixels, [padding] * 4)
        self._pixels = pixels
        self._labels = images.labels.to(device)
        self._mean, self._std = images.preprocess.statistics(device)
        _, channels, height, width = images.cache.shape
        self._channels = torch.arange(channels, device=device)
        self._rows = torch.arange(height, device=device)
        self._columns = torch.arange(width, device=device)

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the sampler's epoch."""
        draws = self._send(self._draw())
        for start in range(0, draws.shape[1], self.batch_size):
            indices, *choices = draws[:, start : start + self.batch_size]
            images = self._window(indices, *choices) if choices else self._pixels[indices]
            yield (images.float() - self._mean) / self._std, self._labels[indices]

    def _draw(self) -> Tensor:
        """Indices of the images in the epoch's order, and what is drawn for each: (draws, N)."""
        order = self.sampler.order()
        draws = [order]
        if self._is_cropped:
            seed, epoch, indices = self.images.seed, self.sampler.epoch, order.numpy()
            draws += draw_corners(self._rows.shape[0], seed, epoch, indices)
            if self._is_flipped:
                draws.append(draw_flips(seed, epoch, indices).long())
        return torch.stack(draws)

    def _send(self, draws: Tensor) -> Tensor:
        if self.device.type == "cuda":
            # Only a copy from pinned memory lets the host go on at once.
            return draws.pin_memory().to(self.device, non_blocking=True)
        return draws.to(self.device)

    def _window(
        self, indices: Tensor, tops: Tensor, lefts: Tensor, is_flipped: Tensor | None = None
    ) -> Tensor:
        """One window of each padded image, mirrored where wanted."""
        rows_NH = tops[:, None] + self._rows
        columns_NW = self._columns.expand(len(indices), -1)
        if is_flipped is not None:
            columns_NW = torch.where(is_flipped[:, None] > 0, columns_NW.flip(1), columns_NW)
        columns_NW = lefts[:, None] + columns_NW
        return self._pixels[
            indices[:, None, None, None],
            self._channels[:, None, None],
            rows_NH[:, None, :, None],
            columns_NW[:, None, None, :],
        ]


def bytes_on_device(images: Images) -> int:
    """Memory that the pixels of `images` take in a `DeviceLoader`."""
    if images.cache is None:
        return 0
    num_images, channels, height, width = images.cache.shape
    padding = crop_padding(height) if images.augment in ("crop", "crop_flip") else 0
    return num_images * channels * (height + 2 * padding) * (width + 2 * padding)
