"""Detectors whose backbone, neck and head are one integer net.

`torchadder.quantize_` asks a detector for its core, the net from normalised images to the maps of
every level, and puts the integer net in its place. Preparing images, anchors, boxes and their
suppression stay torchvision's, in float. How integers are found is not known here.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.quantize.graph import QuantizationError
from torchadder.quantize.net import IntegerNet

STRIDE = 32
"""Images are padded to multiples of it, so that every level is twice as large as the next."""


class DenseMaps(nn.Module):
    """Backbone, neck and head of a detector without torchvision's rearranging of the maps.

    The modules are those of the detector, under its names.

    Args:
        backbone: Images (N, 3, H, W) to maps by level.
        head: Of FCOS or RetinaNet.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps (N, C, H_i, W_i) as `map_channels` lists them, all of one level side by side."""
        head: Any = self.head
        maps = []
        for features in self.backbone(images).values():
            classification, regression = head.classification_head, head.regression_head
            maps.append(classification.cls_logits(classification.conv(features)))
            features = regression.conv(features)
            boxes = regression.bbox_reg(features)
            if not hasattr(regression, "bbox_ctrness"):
                maps.append(boxes)
                continue
            # FCOS alone: distances to the sides of a box, and how near its centre a point is.
            maps += [F.relu(boxes), regression.bbox_ctrness(features)]
        return tuple(maps)


def map_channels(head: Any, num_classes: int) -> dict[str, int]:
    """The maps of a level in the order in which torchvision names them, with their last size.

    A map has that many channels for each anchor.
    """
    sizes = {"cls_logits": num_classes, "bbox_regression": 4}
    has_centres = hasattr(head.regression_head, "bbox_ctrness")
    return sizes | ({"bbox_ctrness": 1} if has_centres else {})


class IntegerPyramid(nn.Module):
    """What a detector with an integer net has for a backbone: the net's maps, level by level.

    All modules of the net are here, but for those of the head, under the names of the float layers.

    Args:
        net: The integer net.
        levels: Names of the levels.
        num_maps: Maps of each level.
    """

    net: IntegerNet

    def __init__(self, net: IntegerNet, levels: Sequence[str], num_maps: int) -> None:
        super().__init__()
        # Its modules are the detector's own: registered as a module, each would have two names.
        vars(self)["net"] = net
        self.levels = tuple(levels)
        self.num_maps = num_maps
        for name, module in net.named_children():
            for path, child in module.named_children() if name == "backbone" else ():
                self.add_module(path, child)
            if name not in ("backbone", "head"):
                self.add_module(name, module)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Map normalised images to the maps of each level side by side, (N, C, H_i, W_i).

        Raises:
            ValueError: In training mode.
        """
        if self.training:
            raise ValueError(
                "a detector of integers cannot be trained: call eval(), and train the float one"
            )
        maps = self.net(images)
        steps = range(0, len(maps), self.num_maps)
        joined = [torch.cat(maps[step : step + self.num_maps], 1) for step in steps]
        return OrderedDict(zip(self.levels, joined, strict=True))


class IntegerHead(nn.Module):
    """What it has for a head: the maps that the net has made already, as torchvision wants them.

    Args:
        net: The integer net, for the modules of its head.
        sizes: Name and last size of each map.
    """

    def __init__(self, net: IntegerNet, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        for path, child in net.get_submodule("head").named_children():
            self.add_module(path, child)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Map what `IntegerPyramid` returns to (N, positions and anchors, size) for each name."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.sizes}
        for level in features:
            N, C, H, W = level.shape
            num_anchors = C // sum(self.sizes.values())
            parts = level.split([num_anchors * size for size in self.sizes.values()], 1)
            for (name, size), part in zip(self.sizes.items(), parts, strict=True):
                rows = part.reshape(N, num_anchors, size, H, W).permute(0, 3, 4, 1, 2)
                found[name].append(rows.reshape(N, -1, size))
        return {name: torch.cat(parts, 1) for name, parts in found.items()}


class HasDenseMaps:
    """A detector whose maps come from one pass over an image: `torchadder.quantize.HasCore`.

    Attributes:
        integers: The integer net, once the detector was quantised.
    """

    integers: IntegerNet | None = None
    backbone: Any
    head: Any
    transform: Any
    num_classes: int

    def integer_core(self) -> DenseMaps:
        """Backbone, neck and head; see `torchadder.quantize.HasCore`."""
        multiple = self.transform.size_divisible
        if multiple % STRIDE:
            raise QuantizationError(
                f"the detector pads images to multiples of size_divisible = {multiple}; a multiple "
                f"of {STRIDE} is wanted, so that levels are enlarged by whole factors"
            )
        return DenseMaps(self.backbone, self.head)

    def core_images(self, batch: Any) -> Tensor:
        """Normalised, resized and padded images; see `torchadder.quantize.HasCore`.

        Args:
            batch: An image (3, H, W), a list of them of any sizes, a tensor (N, 3, H, W), or a
                tuple or list that begins with one of these, such as a loader gives.
        """
        device = next(iter([*self.backbone.parameters(), *self.backbone.buffers()])).device
        images = [image.to(device) for image in images_of(batch)]
        with torch.no_grad():
            return self.transform(images)[0].tensors

    def use_integers_(self, net: IntegerNet) -> None:
        """Put the integer net in the place of backbone, neck and head.

        Raises:
            ValueError: If it does not make this detector's maps.
        """
        sizes = map_channels(self.head, self.num_classes)
        levels = self.backbone.neck.all_levels
        if len(net.outputs) != len(levels) * len(sizes) or not net.takes_any_size:
            raise ValueError(
                f"net makes {len(net.outputs)} outputs, wanted {len(sizes)} maps for each of "
                f"{len(levels)} levels, of images of any size"
            )
        pyramid = IntegerPyramid(net, levels, len(sizes))
        pyramid.out_channels = self.backbone.out_channels
        head = IntegerHead(net, sizes)
        training = self.backbone.training
        self.backbone, self.head = pyramid.train(training), head.train(training)
        vars(self)["integers"] = net


class HasTwoStages(HasDenseMaps):
    """A detector that cannot be quantised, for its second stage reads maps at real positions."""

    def integer_core(self) -> DenseMaps:
        """Refuse."""
        raise QuantizationError(
            f"a {type(self).__name__} cannot be quantised: its second stage reads the maps at "
            "boxes of real numbers; fcos and retinanet can be"
        )


def images_of(batch: Any) -> list[Tensor]:
    """The images of a batch.

    Raises:
        TypeError: If there are none in it.
        QuantizationError: If they are no float images (3, H, W).
    """
    if isinstance(batch, Tensor):
        images = list(batch) if batch.dim() == 4 else [batch]
    elif isinstance(batch, list | tuple) and batch and isinstance(batch[0], list | tuple):
        return images_of(batch[0])
    elif isinstance(batch, list | tuple):
        # An image may come with its target.
        images = [image for image in batch if isinstance(image, Tensor)]
        if images and images[0].dim() == 4:
            images = list(images[0])
    else:
        images = []
    if not images:
        raise TypeError(
            f"calibration: an image (3, H, W) or a list of them is wanted, got "
            f"{type(batch).__name__}"
        )
    for image in images:
        if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise QuantizationError(
                f"calibration: images must be floats of shape (3, H, W), got {image.dtype} "
                f"{tuple(image.shape)}"
            )
    return images
