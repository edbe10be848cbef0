"""The counts that papers print, as data: what was counted, the figures and where they stand.

`torchadder energy` counts each row again and shows both figures; docs/energy.md explains the
differences. Figures are kept as they are printed, since their digits say how exact they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ADDERNET = "AdderNet, arXiv 1912.13200; camera-ready rows as cited by SLAC, NeurIPS 2021"
DETECTION = "Adder detection, arXiv 2112.13608, table 5"
UNITS = {"K": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class PrintedCount:
    """One printed row and the model that it is about.

    Attributes:
        group: data set, the heading the row stands under.
        model: name in `torchadder.models`, or "torchvision.NAME".
        conv: "conv" for the CNN, "adder" for the adder net; for a detector the parts that are
            adder layers, such as "adder backbone".
        input_shape: shape of the input, without the batch for a detector.
        num_mul: multiplications as printed, such as "69.12M".
        num_add: additions as printed.
        energy_mj: energy in mJ as printed, "" if it is not.
        source: paper and table.
        arguments: further arguments of the builder.
        remark: why the printed figure does not come out, "" if it does.
    """

    group: str
    model: str
    conv: str
    input_shape: tuple[int, ...]
    num_mul: str
    num_add: str
    energy_mj: str = ""
    source: str = ADDERNET
    arguments: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""


def deviation(printed: str, counted: float) -> float:
    """Return by how much `counted` differs from the printed figure, as a part of the latter.

    0 if `counted`, rounded to the printed number of digits, is the printed figure.

    >>> deviation("3.9G", 3_857_973_248)
    0.0
    >>> round(deviation("41.17M", 40_813_184), 4)
    -0.0087
    """
    digits, unit = (printed[:-1], UNITS[printed[-1]]) if printed[-1] in UNITS else (printed, 1.0)
    decimals = len(digits.partition(".")[2])
    if round(counted / unit, decimals) == float(digits):
        return 0.0
    return counted / unit / float(digits) - 1


_CIFAR = (1, 3, 32, 32)
_IMAGENET = (1, 3, 224, 224)
_COCO = (3, 800, 1344)
_STRIDE = {"stride_in_1x1": True}
_VGG = "no rule found that gives the printed figure; its body, 603.98M, is the printed 0.60G XNOR"
_RESNET20 = "printed 0.36M too high; ResNet-32 comes out by the same rule"
_RESNET32 = "0.45M is the count with 100 classes; 137.79M is the sum of two rounded figures"
_LENET = "the printed figure also counts BN and pooling, see docs/energy.md"
_LENET_ADDER = "twice the 435K: the print takes every layer, first and last too, as adder"
_RELEASED = (
    "the released code has the stride in the 3x3 layers, the printed count in the 1x1 layers"
)
_FCOS = "the printed rows move 84.8G and 17.0G to adder layers; these parts have 85.05G and 17.07G"

PRINTED: tuple[PrintedCount, ...] = (
    PrintedCount("MNIST", "lenet5_bn", "conv", (1, 1, 28, 28), "435K", "435K", remark=_LENET),
    PrintedCount(
        "MNIST",
        "lenet5_bn",
        "adder",
        (1, 1, 28, 28),
        "0K",
        "870K",
        remark=_LENET_ADDER,
    ),
    PrintedCount("CIFAR-10", "vgg_small", "conv", _CIFAR, "0.65G", "0.65G", remark=_VGG),
    PrintedCount("CIFAR-10", "vgg_small", "adder", _CIFAR, "0.05G", "1.25G", remark=_VGG),
    PrintedCount("CIFAR-10", "resnet20", "conv", _CIFAR, "41.17M", "41.17M", remark=_RESNET20),
    PrintedCount("CIFAR-10", "resnet20", "adder", _CIFAR, "0.45M", "81.89M", remark=_RESNET20),
    PrintedCount("CIFAR-10", "resnet32", "conv", _CIFAR, "69.12M", "69.12M"),
    PrintedCount("CIFAR-10", "resnet32", "adder", _CIFAR, "0.45M", "137.79M", remark=_RESNET32),
    PrintedCount("ImageNet", "resnet18", "conv", _IMAGENET, "1.8G", "1.8G"),
    PrintedCount("ImageNet", "resnet18", "adder", _IMAGENET, "0.1G", "3.5G"),
    PrintedCount("ImageNet", "resnet50", "conv", _IMAGENET, "3.9G", "3.9G", arguments=_STRIDE),
    PrintedCount("ImageNet", "resnet50", "adder", _IMAGENET, "0.1G", "7.6G", arguments=_STRIDE),
    PrintedCount(
        "ImageNet",
        "resnet50",
        "conv",
        _IMAGENET,
        "3.9G",
        "3.9G",
        remark=_RELEASED,
    ),
    PrintedCount(
        "ImageNet",
        "resnet50",
        "adder",
        _IMAGENET,
        "0.1G",
        "7.6G",
        remark=_RELEASED,
    ),
    PrintedCount(
        "COCO, 800x1344",
        "torchvision.fcos_resnet50_fpn",
        "conv",
        _COCO,
        "214.7G",
        "214.7G",
        "987.7",
        DETECTION,
    ),
    PrintedCount(
        "COCO, 800x1344",
        "torchvision.fcos_resnet50_fpn",
        "adder backbone",
        _COCO,
        "129.9G",
        "299.5G",
        "750.2",
        DETECTION,
        remark=_FCOS,
    ),
    PrintedCount(
        "COCO, 800x1344",
        "torchvision.fcos_resnet50_fpn",
        "adder backbone and neck",
        _COCO,
        "112.9G",
        "316.5G",
        "702.7",
        DETECTION,
        remark=_FCOS,
    ),
)
"""Every printed row that a model of this package or of torchvision can be compared with."""
