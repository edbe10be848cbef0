"""The detectors by their names and parts: `fcos`, `retinanet`, `faster_rcnn`."""

import difflib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from torchadder.detection.backbone import ResNetBackbone, check_frozen, freeze_batch_norms_
from torchadder.detection.detectors import (
    FCOS,
    Detector,
    FasterRCNN,
    FeaturePyramid,
    RetinaNet,
    check_options,
    check_sizes,
    records_config,
)
from torchadder.detection.heads import (
    BoxHead,
    FastRCNNPredictor,
    fcos_head,
    retinanet_head,
    rpn_head,
)
from torchadder.detection.layers import adder_parts, check_norm, layer_factory
from torchadder.detection.necks import NECKS
from torchadder.detection.weights import LoadedBackbone, load_backbone_
from torchadder.models.classifier import positive_int
from torchadder.models.convolution import ConvFactory

STRIDES = (8, 16, 32, 64, 128)
"""Strides of the levels P3 to P7, which are FCOS's anchor sizes."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class _Parts:
    """The arguments that all detectors share."""

    backbone: str
    backbone_width: int
    adder: str
    neck: str
    neck_channels: int
    neck_norm: str | None
    grad: str
    frozen_bn: bool
    force_frozen_bn: bool
    backbone_weights: PathLike | None

    def pyramid(
        self, *, extra: str, num_extra: int = 2, first_level: int = 3
    ) -> tuple[FeaturePyramid, LoadedBackbone | None]:
        """Build backbone and neck, with the weights asked for."""
        parts = adder_parts(self.adder)
        if self.neck not in NECKS:
            raise ValueError(f"neck must be one of {', '.join(NECKS)}, got {self.neck!r}")
        positive_int("neck_channels", self.neck_channels)
        check_frozen(self.frozen_bn, "B" in parts, self.force_frozen_bn)
        in_neck = "N" in parts
        norm = self.neck_norm if self.neck_norm is not None else "batch" if in_neck else "none"
        check_norm("neck_norm", norm, in_neck)
        body = ResNetBackbone(
            self.backbone,
            is_adder="B" in parts,
            grad=self.grad,
            width=positive_int("backbone_width", self.backbone_width),
            first_level=first_level,
        )
        loaded = None
        if self.backbone_weights is not None:
            loaded = load_backbone_(body, self.backbone_weights)
        if self.frozen_bn:
            freeze_batch_norms_(body)
        neck = NECKS[self.neck](
            body.channels,
            self.neck_channels,
            layer=layer_factory(in_neck, self.grad),
            norm=norm,
            extra=extra,
            num_extra=num_extra,
        )
        return FeaturePyramid(body, neck, self.neck_channels), loaded

    def head(self, norm: str | None, default: str) -> tuple[ConvFactory, str]:
        """Return the layer of the head and its norm; `default` is that of a conv head."""
        in_head = "H" in adder_parts(self.adder)
        norm = norm if norm is not None else "group" if in_head else default
        return layer_factory(in_head, self.grad), check_norm("head_norm", norm, in_head)


@records_config
def fcos(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    backbone_width: int = 64,
    adder: str = "BN",
    neck: str = "r_pafpn",
    neck_channels: int = 256,
    neck_norm: str | None = None,
    num_head_convs: int = 4,
    head_norm: str | None = None,
    top_levels: int = 2,
    grad: str = "sign",
    frozen_bn: bool = False,
    force_frozen_bn: bool = False,
    backbone_weights: PathLike | None = None,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    **options: Any,
) -> FCOS:
    """Build FCOS (arXiv 1904.01355) of conv and adder layers (arXiv 2112.13608).

    The defaults are the paper's Adder FCOS: backbone and neck of adder layers, R-PAFPN, a conv
    head. Multiplicative whatever `adder` says: the first layer of the backbone and the last ones of
    the head. A norm stands behind every adder layer. Nodes of the necks: docs/detection.md.

    Args:
        num_classes: number of classes, without a background; labels are 0 to num_classes - 1.
        backbone: resnet18, resnet34, resnet50 or resnet101.
        backbone_width: channels of the backbone's first stage; 64 is the net of that name.
        adder: parts made of adder layers, letters out of "B" (backbone), "N" (neck: laterals,
            outputs, paths, P6, P7) and "H" (towers of the head); "" for a conv detector.
        neck: "fpn", "pafpn", "pafpn_shortcut" (a shortcut around every 3x3 layer) or "r_pafpn"
            (shortcuts, and the bottom-up path before the top-down one).
        neck_channels: channels of every level, and of the head.
        neck_norm: "batch", "group" or "none" behind the neck's layers; None: "batch" in an adder
            neck, "none" in a conv neck, as in torchvision.
        num_head_convs: 3x3 layers in each of the head's two towers.
        head_norm: the same behind the layers of the towers; None: "group", as in torchvision.
        top_levels: levels above P5: 2 (P6, P7), 1, or 0 as in FCOS-RT.
        grad: gradient rule of the adder layers; the paper found the true sign of the input's
            gradient better than AdderNet's clipped one ("clip") in detectors.
        frozen_bn: fix the statistics, scales and shifts of the backbone's batch norms, as is common
            in conv detectors. Refused for an adder backbone, where training ends in NaN.
        force_frozen_bn: do it in an adder backbone all the same, to see that.
        backbone_weights: checkpoint of one of our classifiers to start the backbone from;
            `detector.loaded_backbone` says what was taken.
        min_size: length that the shorter side of an image is brought to; several: one of them at
            random for each image in training, the last in evaluation.
        max_size: length that the longer side may not exceed.
        **options: further settings of `torchvision.models.detection.FCOS`, such as score_thresh,
            nms_thresh, detections_per_img, image_mean.

    Returns:
        A module called as torchvision's: a list of images (3, H, W), and in training a list of
        targets with boxes (x1, y1, x2, y2) in pixels and labels, to losses or detections.

    Raises:
        ValueError: if an argument has a wrong value, or the weights do not fit the backbone.
        TypeError: if an option is unknown.
    """
    positive_int("num_classes", num_classes)
    positive_int("num_head_convs", num_head_convs)
    if top_levels not in (0, 1, 2):
        raise ValueError(f"top_levels must be 0, 1 or 2, got {top_levels!r}")
    check_sizes(min_size, max_size)
    check_options(FCOS, options)
    parts = _Parts(
        backbone=backbone,
        backbone_width=backbone_width,
        adder=adder,
        neck=neck,
        neck_channels=neck_channels,
        neck_norm=neck_norm,
        grad=grad,
        frozen_bn=frozen_bn,
        force_frozen_bn=force_frozen_bn,
        backbone_weights=backbone_weights,
    )
    layer, norm = parts.head(head_norm, "group")
    pyramid, loaded = parts.pyramid(extra="p5", num_extra=top_levels)
    strides = STRIDES[: 3 + top_levels]
    detector = FCOS(
        pyramid,
        num_classes,
        min_size=min_size,  # type: ignore[arg-type]
        max_size=max_size,
        anchor_generator=AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides)),
        head=fcos_head(
            neck_channels, num_classes, num_convs=num_head_convs, layer=layer, norm=norm
        ),
        **options,
    )
    detector.num_classes, detector.loaded_backbone = num_classes, loaded
    return detector


@records_config
def retinanet(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    backbone_width: int = 64,
    adder: str = "BN",
    neck: str = "r_pafpn",
    neck_channels: int = 256,
    neck_norm: str | None = None,
    num_head_convs: int = 4,
    head_norm: str | None = None,
    grad: str = "sign",
    frozen_bn: bool = False,
    force_frozen_bn: bool = False,
    backbone_weights: PathLike | None = None,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    **options: Any,
) -> RetinaNet:
    """Build RetinaNet (arXiv 1708.02002) of conv and adder layers; arguments as of `fcos`.

    P6 is computed from C5, as in the paper and in torchvision's `retinanet_resnet50_fpn_v2`, so its
    layer has no shortcut where C5 has not `neck_channels` channels. `head_norm` None is "none" for
    a conv head, as in the paper, and "group" for an adder head.

    Raises:
        ValueError: if an argument has a wrong value, or the weights do not fit the backbone.
        TypeError: if an option is unknown.
    """
    positive_int("num_classes", num_classes)
    positive_int("num_head_convs", num_head_convs)
    check_sizes(min_size, max_size)
    check_options(RetinaNet, options)
    parts = _Parts(
        backbone=backbone,
        backbone_width=backbone_width,
        adder=adder,
        neck=neck,
        neck_channels=neck_channels,
        neck_norm=neck_norm,
        grad=grad,
        frozen_bn=frozen_bn,
        force_frozen_bn=force_frozen_bn,
        backbone_weights=backbone_weights,
    )
    layer, norm = parts.head(head_norm, "none")
    pyramid, loaded = parts.pyramid(extra="c5")
    num_anchors = 9  # 3 sizes and 3 shapes at every position of torchvision's anchors
    detector = RetinaNet(
        pyramid,
        num_classes,
        min_size=min_size,  # type: ignore[arg-type]
        max_size=max_size,
        head=retinanet_head(
            neck_channels,
            num_anchors,
            num_classes,
            num_convs=num_head_convs,
            layer=layer,
            norm=norm,
        ),
        **options,
    )
    detector.num_classes, detector.loaded_backbone = num_classes, loaded
    return detector


@records_config
def faster_rcnn(
    num_classes: int,
    *,
    backbone: str = "resnet50",
    backbone_width: int = 64,
    adder: str = "BN",
    neck: str = "r_pafpn",
    neck_channels: int = 256,
    neck_norm: str | None = None,
    num_head_convs: int = 1,
    num_head_features: int = 1024,
    head_norm: str | None = None,
    grad: str = "sign",
    frozen_bn: bool = False,
    force_frozen_bn: bool = False,
    backbone_weights: PathLike | None = None,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    **options: Any,
) -> FasterRCNN:
    """Build Faster R-CNN (arXiv 1506.01497) of conv and adder layers; arguments as of `fcos`.

    The neck has the levels P2 to P5, and P6 by leaving out every other pixel. "H" stands for the
    tower of the proposals' head (`num_head_convs` 3x3 layers) and the two layers of width
    `num_head_features` on the proposals; boxes and logits stay multiplicative. `head_norm` None
    is "none" for a conv head, as in torchvision, and "group" for an adder head.

    Raises:
        ValueError: if an argument has a wrong value, or the weights do not fit the backbone.
        TypeError: if an option is unknown.
    """
    positive_int("num_classes", num_classes)
    positive_int("num_head_convs", num_head_convs)
    positive_int("num_head_features", num_head_features)
    check_sizes(min_size, max_size)
    check_options(FasterRCNN, options)
    parts = _Parts(
        backbone=backbone,
        backbone_width=backbone_width,
        adder=adder,
        neck=neck,
        neck_channels=neck_channels,
        neck_norm=neck_norm,
        grad=grad,
        frozen_bn=frozen_bn,
        force_frozen_bn=force_frozen_bn,
        backbone_weights=backbone_weights,
    )
    layer, norm = parts.head(head_norm, "none")
    pyramid, loaded = parts.pyramid(extra="pool", first_level=2)
    num_anchors = 3  # one size and 3 shapes at every position of torchvision's anchors
    pool = MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], output_size=7, sampling_ratio=2)
    box_head = BoxHead(
        neck_channels * 7 * 7, num_head_features, is_adder="H" in adder, norm=norm, grad=grad
    )
    detector = FasterRCNN(
        pyramid,
        min_size=min_size,  # type: ignore[arg-type]
        max_size=max_size,
        rpn_head=rpn_head(
            neck_channels, num_anchors, num_convs=num_head_convs, layer=layer, norm=norm
        ),
        box_roi_pool=pool,
        box_head=box_head,
        box_predictor=FastRCNNPredictor(num_head_features, num_classes + 1),
        **options,
    )
    detector.num_classes, detector.loaded_backbone = num_classes, loaded
    return detector


DETECTORS: dict[str, Callable[..., Detector]] = {
    "fcos": fcos,
    "retinanet": retinanet,
    "faster_rcnn": faster_rcnn,
}
"""The detectors by the names that recipes and checkpoints use."""


def build(name: str, **kwargs: Any) -> Any:
    """Build the detector called `name`; `build(d.config["name"], **d.config["kwargs"])` repeats d.

    Raises:
        ValueError: if `name` is unknown (the message names the nearest one) or an argument has a
            wrong value.
        TypeError: if the builder takes no such argument, or lacks num_classes.
    """
    if name not in DETECTORS:
        nearest = difflib.get_close_matches(str(name), DETECTORS) or list(DETECTORS)
        raise ValueError(
            f"detector {name!r} is unknown; the nearest names are {', '.join(nearest)}"
        )
    builder = DETECTORS[name]
    if "num_classes" not in kwargs:
        known = [key for key in inspect.signature(builder).parameters if key != "options"]
        raise TypeError(f"detector {name!r} needs num_classes; it takes {', '.join(known)}")
    return builder(**kwargs)
