"""torchvision's detectors on our backbones, necks and heads.

Anchors, targets, losses, box suppression and the resizing of images are torchvision's. What is
different: labels are 0 to num_classes - 1 in all three (torchvision's Faster R-CNN alone counts
from 1, as 0 is its background), and a detector carries the arguments it was built with.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn
from torchvision.models import detection as torchvision_detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from torchadder.detection.backbone import ResNetBackbone
from torchadder.detection.integers import HasDenseMaps, HasTwoStages
from torchadder.detection.necks import FPN
from torchadder.detection.weights import LoadedBackbone


class FeaturePyramid(nn.Module):
    """A backbone with a neck on it: what torchvision calls the backbone of a detector.

    Attributes:
        body: the backbone.
        neck: the neck.
        out_channels: channels of every level.
    """

    def __init__(self, body: ResNetBackbone, neck: FPN, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.neck = neck
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map normalised images (N, 3, H, W) to the levels "p2" or "p3" and upwards."""
        return self.neck(self.body(x))


class Detector:
    """What the detectors of this package have in common beside torchvision's part of them.

    Attributes:
        config: `{"name": ..., "kwargs": {...}}`, JSON values from which
            `torchadder.detection.build` makes the same detector, without its weights.
        built_by: the package whose `build` that is.
        loaded_backbone: what `backbone_weights` brought, None without it.
        num_classes: number of classes; labels are 0 to num_classes - 1.
    """

    config: dict[str, Any]
    built_by = "torchadder.detection"
    loaded_backbone: LoadedBackbone | None
    num_classes: int


class FCOS(HasDenseMaps, Detector, torchvision_detection.FCOS):
    """torchvision's FCOS; see `torchadder.detection.fcos`."""


class RetinaNet(HasDenseMaps, Detector, torchvision_detection.RetinaNet):
    """torchvision's RetinaNet; see `torchadder.detection.retinanet`."""


class FasterRCNN(HasTwoStages, Detector, torchvision_detection.FasterRCNN):
    """torchvision's Faster R-CNN with labels from 0; see `torchadder.detection.faster_rcnn`."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return the losses in training and the detections in evaluation mode."""
        result: Any = super().forward(images, None if targets is None else _shift(targets, 1))
        return result if self.training else _shift(result, -1)


def _shift(entries: list[dict[str, Tensor]], by: int) -> list[dict[str, Tensor]]:
    """Return targets or detections with other labels; the entries given stay as they are."""
    return [{**entry, "labels": entry["labels"] + by} for entry in entries]


P = ParamSpec("P")
D = TypeVar("D", bound=Detector)


def records_config(builder: Callable[P, D]) -> Callable[P, D]:
    """Let the detector that `builder` returns carry the name and the arguments it was built with.

    Where its backbone's initial values came from is no part of what it is and left out.
    """
    signature = inspect.signature(builder)

    @functools.wraps(builder)
    def build(*args: P.args, **kwargs: P.kwargs) -> D:
        detector = builder(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        arguments |= arguments.pop("options", {})
        del arguments["backbone_weights"]
        detector.config = {
            "name": builder.__name__,
            "kwargs": {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in arguments.items()
            },
        }
        return detector

    return build


_OURS = {"backbone", "num_classes", "min_size", "max_size"}
_MODULES = ("head", "generator", "roi_pool", "predictor")


def accepted_options(detector: type[nn.Module]) -> list[str]:
    """Return the settings of torchvision's class that are no modules and not ours to set."""
    names = [
        name
        for cls in (detector, GeneralizedRCNNTransform)
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name != "self"
    ]
    return [
        name
        for name in dict.fromkeys(names)
        if name not in _OURS and not any(word in name for word in _MODULES)
    ]


def check_options(detector: type[nn.Module], options: Mapping[str, Any]) -> None:
    """Raise TypeError for a setting that torchvision's class does not have."""
    known = accepted_options(detector)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"{detector.__name__} takes no argument {', '.join(map(repr, unknown))}; torchvision's "
            f"settings are {', '.join(known)}"
        )


def check_sizes(min_size: int | Sequence[int], max_size: int) -> None:
    """Raise ValueError unless the sizes that images are brought to are at least 1."""
    shorter = min_size if isinstance(min_size, Sequence) else (min_size,)
    for name, given, sizes in (
        ("min_size", min_size, shorter),
        ("max_size", max_size, (max_size,)),
    ):
        if isinstance(given, str) or not sizes or not all(_is_size(size) for size in sizes):
            several = ", or several for a random choice" if name == "min_size" else ""
            raise ValueError(f"{name} must be an integer of at least 1{several}, got {given!r}")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
