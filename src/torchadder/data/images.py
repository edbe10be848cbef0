"""From encoded images to batches: decoding, the cache, preprocessing and batched augmentation.

Random numbers are a pure function of (seed, epoch, index of the image): they depend neither on the
number of workers nor on the size or the order of the batches, and nothing has to be saved to go on
with a run. Letters: N images of a batch, C channels, H x W pixels.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as vision

from torchadder.data.orientation import orientation_of, upright
from torchadder.data.sources import DataError, Split

_DECODE_ERRORS = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)
_LARGEST = {"I": 65535, "F": 1}  # by PIL's mode, of those that can hold more


@dataclass(frozen=True)
class Preprocess:
    """What is done to an image in evaluation; stored with every checkpoint.

    Args:
        channels: 1 (grey) or 3 (RGB).
        height: Height fed to the net, in pixels.
        width: Width fed to the net, in pixels.
        resize: Length of the shorter side before the centre crop; None: just large enough.
        mean: Mean of each channel, pixels in 0..1.
        std: Standard deviation of each channel, pixels in 0..1.
    """

    channels: int
    height: int
    width: int
    resize: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, image: PIL.Image.Image) -> Tensor:
        """An image as uint8 (C, H, W): converted, resized, cut to the centre.

        An image that has the right size already is left as it is.
        """
        tensor = to_tensor(image, self.channels)
        height, width = tensor.shape[-2:]
        if (height, width) == (self.height, self.width):
            return tensor
        short = self.resize
        if short is None:
            scale = max(self.height / height, self.width / width)
            size = [max(self.height, round(height * scale)), max(self.width, round(width * scale))]
        else:
            scale = short / min(height, width)
            size = [max(self.height, round(height * scale)), max(self.width, round(width * scale))]
        tensor = vision.resize(tensor, size, InterpolationMode.BILINEAR, antialias=True)
        return vision.center_crop(tensor, [self.height, self.width])

    def normalize(self, images_NCHW: Tensor) -> Tensor:
        """uint8 images as float32 with the recorded mean and standard deviation removed."""
        mean, std = self.statistics(images_NCHW.device)
        return (images_NCHW.float() - mean) / std

    def statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation for pixels in 0..255, (1, C, 1, 1) each."""
        mean = torch.tensor(self.mean, device=device).view(1, -1, 1, 1) * 255
        std = torch.tensor(self.std, device=device).view(1, -1, 1, 1) * 255
        return mean, std

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_dict`.

        Raises:
            DataError: If a value is missing or unknown.
        """
        try:
            statistics: Any = {key: tuple(values[key]) for key in ("mean", "std")}
            return cls(**values | statistics)
        except (TypeError, KeyError) as error:
            raise DataError(f"preprocessing {values!r} is incomplete: {error}") from error


def decode(encoded: bytes | str) -> PIL.Image.Image:
    """Decodes an image from its bytes or its file, upright as its EXIF orientation says.

    Raises:
        DataError: If this is no image, a damaged one, or one of values that `to_tensor` refuses.
    """
    try:
        # PIL leaves the file of a damaged image open; after `load` it is not needed any more.
        with PIL.Image.open(
            io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
        ) as image:
            orientation = orientation_of(image)
            image.load()
    except _DECODE_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # PIL's text for bytes names the address of a buffer, which helps nobody.
        reason = "no known image format" if "cannot identify" in reason else reason
        raise DataError(f"cannot be decoded ({reason})") from error
    _check_values(image)
    return upright(image, orientation)


def to_tensor(image: PIL.Image.Image, channels: int) -> Tensor:
    """An image as uint8 (C, H, W) with the wanted number of channels.

    Of whole numbers wider than 8 bits, 0..65535, the upper 8 bits of 16 are taken; floating-point
    numbers are brought from 0..1 to 0..255.

    Raises:
        DataError: If such an image holds other values.
    """
    _check_values(image)
    if image.mode.startswith("I"):  # convert() would clip
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "F":
        image = PIL.Image.fromarray((np.asarray(image) * 255).round().astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    array = np.array(image)
    return torch.from_numpy(array[None] if channels == 1 else array.transpose(2, 0, 1).copy())


def _check_values(image: PIL.Image.Image) -> None:
    if image.mode not in _LARGEST:
        return
    array = np.asarray(image)  # unlike PIL's getextrema(), NumPy's extrema do not leave out NaN
    low, high = array.min(), array.max()
    if not 0 <= low <= high <= _LARGEST[image.mode]:
        raise DataError(
            f"holds values of {low:g} .. {high:g}, 0 .. {_LARGEST[image.mode]} are wanted in an "
            f"image of PIL's mode {image.mode}"
        )


def channels_of(image: PIL.Image.Image) -> int:
    """1 for grey images, 3 for all others."""
    is_grey = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
    return 1 if is_grey else 3


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of a result depends on all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def draw(seed: int, epoch: int, indices: np.ndarray, stream: int) -> np.ndarray:
    """One uint64 for every image, a pure function of the arguments.

    Args:
        seed: Seed of the run.
        epoch: Epoch.
        indices: Indices of the images.
        stream: Number of the decision, for instance 0 for the row of a crop.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    key = np.array([seed, epoch, stream], dtype=np.uint64)
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = mix(state + golden + part)
    return mix(state + golden * (np.asarray(indices).astype(np.uint64) + np.uint64(1)))


class Images(Dataset):
    """Images and labels of a split, a whole batch at a time.

    Args:
        split: The images.
        preprocess: The deterministic part of the transforms.
        augment: "none", "crop", "crop_flip" or "resized_crop_flip".
        seed: Seed of the augmentation.
        cache: Decoded pixels, uint8 (N, C, H, W); None decodes on each access.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        *,
        augment: str = "none",
        seed: int = 0,
        cache: Tensor | None = None,
    ) -> None:
        self.split = split
        self.preprocess = preprocess
        self.augment = augment
        self.seed = seed
        self.cache = cache
        self.labels = torch.from_numpy(split.labels)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image (C, H, W) and label for (epoch, index)."""
        images, labels = self.__getitems__([item])
        return images[0], labels[0]

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Images float32 (N, C, H, W) and labels int64 (N) for a list of (epoch, index)."""
        epoch = items[0][0]
        indices = np.array([index for _, index in items])
        if self.augment == "resized_crop_flip":
            images = torch.stack([self._random_resized_crop(epoch, int(i)) for i in indices])
        elif self.cache is not None:
            images = self.cache[torch.from_numpy(indices)]
        else:
            images = torch.stack([decode_row(self.split, int(i), self.preprocess) for i in indices])
        if self.augment in ("crop", "crop_flip"):
            images = random_crop(images, self.seed, epoch, indices)
        if self.augment in ("crop_flip", "resized_crop_flip"):
            images = random_flip(images, self.seed, epoch, indices)
        return self.preprocess.normalize(images), self.labels[torch.from_numpy(indices)]

    def _random_resized_crop(self, epoch: int, index: int) -> Tensor:
        image = to_tensor(_open_row(self.split, index), self.preprocess.channels)
        size = [self.preprocess.height, self.preprocess.width]
        # torchvision draws from the global generator: lend it one of our own for this image.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(draw(self.seed, epoch, np.array([index]), 3)[0] >> np.uint64(1)))
            top, left, height, width = v2.RandomResizedCrop(size).make_params([image]).values()
        return vision.resized_crop(
            image, top, left, height, width, size, InterpolationMode.BILINEAR, antialias=True
        )


def crop_padding(height: int) -> int:
    """Zeros around an image before a random crop: 1/8 of the height, 4 pixels for 32."""
    return max(1, height // 8)


def draw_corners(height: int, seed: int, epoch: int, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Top rows and left columns of random crops in padded images, int64 (N) each."""
    choices = np.uint64(2 * crop_padding(height) + 1)
    rows = torch.from_numpy((draw(seed, epoch, indices, 0) % choices).astype(np.int64))
    columns = torch.from_numpy((draw(seed, epoch, indices, 1) % choices).astype(np.int64))
    return rows, columns


def draw_flips(seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """Which images are mirrored, bool (N): half of them."""
    return torch.from_numpy(draw(seed, epoch, indices, 2) % np.uint64(2) == 1)


def random_crop(images_NCHW: Tensor, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """Pads with `crop_padding` zeros and cuts the old size somewhere."""
    height, width = images_NCHW.shape[-2:]
    rows, columns = draw_corners(height, seed, epoch, indices)
    padded = torch.nn.functional.pad(images_NCHW, [crop_padding(height)] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(len(images_NCHW)), :, rows, columns]


def random_flip(images_NCHW: Tensor, seed: int, epoch: int, indices: np.ndarray) -> Tensor:
    """Mirrors half of the images left to right."""
    is_flipped = draw_flips(seed, epoch, indices)
    return torch.where(is_flipped.view(-1, 1, 1, 1), images_NCHW.flip(-1), images_NCHW)


def probe(split: Split) -> tuple[int, int, int]:
    """Channels, height and width of the first image of a split."""
    if split.pixels is not None:
        return split.pixels.shape[1:]
    image = _open_row(split, 0)
    return channels_of(image), image.height, image.width


def decode_row(split: Split, index: int, preprocess: Preprocess, *, strict: bool = False) -> Tensor:
    """Image `index` of a split as uint8 (C, H, W).

    Args:
        split: The images.
        index: Which.
        preprocess: Size and number of channels.
        strict: Refuse an image of another size instead of resizing it.

    Raises:
        DataError: If the image cannot be decoded, or has the wrong size while `strict`.
    """
    return _fit(_open_row(split, index), split, index, preprocess, strict=strict)


def _fit(
    image: PIL.Image.Image, split: Split, index: int, preprocess: Preprocess, *, strict: bool
) -> Tensor:
    if strict and (image.height, image.width) != (preprocess.height, preprocess.width):
        raise DataError(
            f"{split.where(index)}: the image is {image.height}x{image.width}, the first one "
            f"{preprocess.height}x{preprocess.width}; data.image_size makes them equal"
        )
    return preprocess.pixels(image)


def decode_all(split: Split, preprocess: Preprocess, *, strict: bool) -> Tensor:
    """All images of a split as uint8 (N, C, H, W); arguments and errors as of `decode_row`."""
    if split.pixels is not None and split.pixels.shape[2:] == (preprocess.height, preprocess.width):
        return torch.from_numpy(split.pixels)
    shape = (len(split), preprocess.channels, preprocess.height, preprocess.width)
    images = torch.empty(shape, dtype=torch.uint8)
    for index, image in enumerate(_images_in_order(split)):
        images[index] = _fit(image, split, index, preprocess, strict=strict)
    return images


def measure(images_NCHW: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images, pixels in 0..1."""
    counts = [
        torch.bincount(c.flatten().int(), minlength=256).double()
        for c in images_NCHW.transpose(0, 1)
    ]
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for count in counts:
        share = count / count.sum()
        mean = float((share * levels).sum())
        means.append(round(mean, 4))
        stds.append(round(max(math.sqrt(float((share * (levels - mean) ** 2).sum())), 1e-3), 4))
    return tuple(means), tuple(stds)


def _images_in_order(split: Split) -> Iterator[PIL.Image.Image]:
    """All images of a split; much faster than asking for one row after the other."""
    if split.encoded is None:
        yield from (_open_row(split, index) for index in range(len(split)))
        return
    index = itertools.count()
    for rows in split.encoded.iter(batch_size=1000):
        yield from (_open_encoded(row, split, next(index)) for row in rows[split.column])


def _open_row(split: Split, index: int) -> PIL.Image.Image:
    if split.pixels is not None:
        return PIL.Image.fromarray(split.pixels[index].transpose(1, 2, 0).squeeze())
    return _open_encoded(split.encoded[index][split.column], split, index)


def _open_encoded(encoded: dict[str, Any] | None, split: Split, index: int) -> PIL.Image.Image:
    if not encoded or not (encoded["bytes"] or encoded["path"]):
        raise DataError(f"{split.where(index)}: column {split.column!r} is empty")
    try:
        return decode(encoded["bytes"] or encoded["path"])
    except DataError as error:
        raise DataError(f"{split.where(index)}: the image {error}") from error
