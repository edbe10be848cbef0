"""Images with their targets, one at a time, as torchvision's detectors take them."""

from __future__ import annotations

from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as vision

from torchadder.data.detection.problems import DetectionDataError
from torchadder.data.detection.tables import DetectionSplit
from torchadder.data.detection.transforms import Augmentation
from torchadder.data.images import to_tensor

_SMALLEST = 1.0  # pixels; thinner boxes are removed after the transforms of training


class DetectionImages(Dataset):
    """The images of a split and what is in them; nothing is kept in memory but the annotations.

    An item is asked for by (epoch, index), as `torchadder.data.sampling.EpochSampler` yields them,
    or by index in epoch 0. It is an image (3, H, W), grey ones too, and a target:

    * `boxes`: `tv_tensors.BoundingBoxes` float32 (M, 4), x1, y1, x2, y2 in pixels of the item;
    * `labels`: int64 (M), from 0;
    * `iscrowd`, `difficult`: int64 (M), 0 or 1;
    * `image_id`: int64 (), the image's number in the source;
    * `size`, `orig_size`: int64 (2), height and width of the item and of the image in the source.

    Args:
        split: The images.
        augmentation: The transforms; None leaves images as they are.
        seed: Seed of the transforms.
        train: Whether to leave out what must not be learnt: crowds, difficult objects, what a box
            has outside its image, boxes thinner than a pixel after the transforms. Without it
            every object of the source is there.
        use_difficult: Whether training uses difficult objects.
        as_uint8: Whether pixels stay uint8 in 0..255; else float32 in 0..1.
    """

    def __init__(
        self,
        split: DetectionSplit,
        augmentation: Augmentation | None = None,
        *,
        seed: int = 0,
        train: bool = False,
        use_difficult: bool = False,
        as_uint8: bool = False,
    ) -> None:
        self.split = split
        self.augmentation = augmentation or Augmentation()
        self.seed = seed
        self.train = train
        self.use_difficult = use_difficult
        self.as_uint8 = as_uint8

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        """Image and target of (epoch, index) or index."""
        epoch, index = (0, item) if isinstance(item, int) else item
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        split = self.split
        image: Tensor = tv_tensors.Image(to_tensor(open_image(split, index), 3))
        where = split.objects(index)
        height, width = (int(side) for side in split.sizes[index])
        boxes = _boxes(torch.from_numpy(split.boxes[where]).float(), (height, width))
        columns = {
            "labels": torch.from_numpy(split.labels[where]).long(),
            "iscrowd": torch.from_numpy(split.is_crowd[where]).long(),
            "difficult": torch.from_numpy(split.is_difficult[where]).long(),
        }
        if self.train:
            boxes = vision.clamp_bounding_boxes(boxes)
        image, boxes = self.augmentation.apply(image, boxes, self.seed, epoch, index)
        if self.train:
            is_kept = columns["iscrowd"] == 0
            if not self.use_difficult:
                is_kept &= columns["difficult"] == 0
            is_kept &= (boxes[:, 2:] - boxes[:, :2] >= _SMALLEST).all(1)
            boxes = _boxes(boxes[is_kept], boxes.canvas_size)
            columns = {name: values[is_kept] for name, values in columns.items()}
        if not self.as_uint8:
            image = vision.to_dtype(image, torch.float32, scale=True)
        target = {
            "boxes": boxes,
            **columns,
            "image_id": torch.tensor(int(split.image_ids[index])),
            "size": torch.tensor(image.shape[-2:]),
            "orig_size": torch.tensor([height, width]),
        }
        return image.as_subclass(Tensor), target


def _boxes(corners: Tensor, canvas_size: tuple[int, int]) -> Any:
    """Boxes (M, 4) of corners x1, y1, x2, y2 in an image of that height and width."""
    boxes: Any = tv_tensors.BoundingBoxes
    return boxes(corners, format="XYXY", canvas_size=canvas_size)


def open_image(split: DetectionSplit, index: int) -> PIL.Image.Image:
    """Image `index` of a split, decoded and upright.

    Raises:
        DetectionDataError: If it cannot be decoded, or has another size than its annotation says.
    """
    image = split.pictures.open(index)
    height, width = (int(side) for side in split.sizes[index])
    if (image.height, image.width) != (height, width):
        is_swapped = (image.height, image.width) == (width, height)
        hint = "; sizes and boxes are to be those of the image as its EXIF orientation turns it"
        raise DetectionDataError(
            f"{split.pictures.where(index)}: the image is {image.width} pixels wide and "
            f"{image.height} high, its annotation says {width} and {height}{hint * is_swapped}"
        )
    return image


def collate(
    items: list[tuple[Tensor, dict[str, Any]]],
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Items as torchvision's detectors take them: a list of images, which may differ in size, and
    one of targets.
    """  # noqa: D205
    images, targets = zip(*items, strict=True)
    return list(images), list(targets)
