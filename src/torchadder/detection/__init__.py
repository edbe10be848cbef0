"""Object detection with adder nets: torchvision's detectors on our backbones, necks and heads.

>>> import torchadder as ta
>>> detector = ta.detection.fcos(3, backbone="resnet18", adder="BN", neck_channels=32)
>>> detector.config["name"], detector.num_classes
('fcos', 3)

Importing this package imports torchvision; `import torchadder` does not.
"""

from torchadder.detection.arithmetic import count_operations
from torchadder.detection.backbone import BACKBONES, ResNetBackbone
from torchadder.detection.builders import DETECTORS, build, faster_rcnn, fcos, retinanet
from torchadder.detection.coco_ap import CocoAP, coco_ap
from torchadder.detection.detectors import FCOS, Detector, FasterRCNN, FeaturePyramid, RetinaNet
from torchadder.detection.layers import NORMS, PARTS, NormedLayer
from torchadder.detection.necks import FPN, NECKS, PAFPN, ReversePAFPN
from torchadder.detection.sparsity import feature_sparsity, zero_maps
from torchadder.detection.voc_ap import VocAP, voc_ap
from torchadder.detection.weights import LoadedBackbone, load_backbone_

__all__ = [
    "BACKBONES",
    "DETECTORS",
    "FCOS",
    "FPN",
    "NECKS",
    "NORMS",
    "PAFPN",
    "PARTS",
    "CocoAP",
    "Detector",
    "FasterRCNN",
    "FeaturePyramid",
    "LoadedBackbone",
    "NormedLayer",
    "ResNetBackbone",
    "RetinaNet",
    "ReversePAFPN",
    "VocAP",
    "build",
    "coco_ap",
    "count_operations",
    "faster_rcnn",
    "fcos",
    "feature_sparsity",
    "load_backbone_",
    "retinanet",
    "voc_ap",
    "zero_maps",
]
