"""Operations of a detector, counted by shapes alone.

`torchadder.energy.count(detector, [(3, H, W)])` runs the detector, as box suppression looks at
values, and needs real weights for it. What costs anything stands in front of the suppression, so
its parts can be counted one by one on the meta device, whatever they find in an image.
"""

from dataclasses import replace
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN

from torchadder import energy
from torchadder.models.classifier import positive_int
from torchadder.quantize import IntegerNet


def count_operations(
    detector: Any, height: int, width: int, *, num_proposals: int = 1000, **options: Any
) -> energy.EnergyReport:
    """Count the operations of a detector on one image of the size that the backbone sees.

    That is the size after resizing and padding; torchvision pads to multiples of 32, so that the
    800x1333 of the COCO literature are 800x1344. No weights are needed: a detector that was built
    under `torch.device("meta")` will do.

    Args:
        detector: a detector of this package, in float or quantised.
        height: H of the image.
        width: W of the image.
        num_proposals: how many proposals Faster R-CNN looks at.
        **options: of `torchadder.energy.count`: costs, dtype, include_elementwise.

    Returns:
        The report; rows are named by the detector's modules.

    Raises:
        ValueError: if a size is below 1.
    """
    positive_int("height", height)
    positive_int("width", width)
    positive_int("num_proposals", num_proposals)
    name: str = detector.config["name"]
    integers = getattr(detector, "integers", None)
    if integers is not None:
        net = IntegerNet(integers.program().resized(height, width))
        return replace(energy.count(net, (1, 3, height, width), **options), model=name)
    pyramid = detector.backbone
    levels = [
        (1, pyramid.out_channels, -(-height >> int(level[1:])), -(-width >> int(level[1:])))
        for level in pyramid.neck.all_levels
    ]
    parts: list[tuple[str, nn.Module, Any]] = [("backbone", pyramid, (1, 3, height, width))]
    if isinstance(detector, FasterRCNN):
        boxes: Any = detector.roi_heads
        features = boxes.box_predictor.cls_score.in_features
        parts += [
            ("rpn.head", detector.rpn.head, levels),
            ("roi_heads.box_head", boxes.box_head, (num_proposals, pyramid.out_channels, 7, 7)),
            ("roi_heads.box_predictor", boxes.box_predictor, (num_proposals, features)),
        ]
    else:
        parts.append(("head", detector.head, levels))
    counts = [(prefix, energy.count(module, shapes, **options)) for prefix, module, shapes in parts]
    return energy.EnergyReport(
        model=name,
        layers=tuple(
            replace(layer, name=f"{prefix}.{layer.name}".rstrip("."))
            for prefix, report in counts
            for layer in report.layers
        ),
        weight_bytes=sum(report.weight_bytes for _, report in counts),
        costs=counts[0][1].costs,
    )
