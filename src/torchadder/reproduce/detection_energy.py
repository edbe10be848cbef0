"""Operations and energy of adder detectors: arXiv 2112.13608, table 5, counted again.

Every row is counted twice. *Counted* is the house's rule (`torchadder.energy`) on the image as the
net sees it: taps of convolutions and adder layers, nothing else. *By the paper's rule* is our
reading of how the printed figure came about: on the image before it is padded, a convolution's
bias is 1 operation an output, a batch norm 2, a ReLU 1, and max pooling 1 an input; the sum is
printed as #Mul and as #Add; in an adder detector the taps of its adder layers leave the one and
join the other. No paper states it; that it gives the printed figures to their last digits is why
we believe it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from torchadder import detection
from torchadder.energy import CostTable, EnergyReport
from torchadder.energy.papers import deviation

SOURCE = "arXiv 2112.13608, table 5"
NUM_CLASSES = 80

Size = tuple[int, int]


@dataclass(frozen=True)
class Figures:
    """Multiplications, additions and energy in mJ, as printed: G and mJ without the units."""

    num_mul: str
    num_add: str
    energy_mj: str


@dataclass(frozen=True)
class EnergyRow:
    """One row of the table.

    Attributes:
        label: the parts that are adder layers, in the paper's letters.
        arguments: of the detector's builder, beside those of its group.
        printed: the paper's figures, None where it prints none.
        printed_size: height and width that the paper's rule is applied to, None for the group's.
        whole_parts: whether the paper's rule moves whole parts, with first layer, norms, ReLUs and
            pooling, and not only the taps of adder layers.
        remark: what a reader of the row must know.
    """

    label: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    printed: Figures | None = None
    printed_size: Size | None = None
    whole_parts: bool = False
    remark: str = ""


@dataclass(frozen=True)
class EnergyGroup:
    """Rows of one detector at one image size; the first one is the conv detector.

    Attributes:
        title: heading.
        detector: name in `torchadder.detection.DETECTORS`.
        arguments: of the builder, for all rows.
        size: height and width of the image as the net sees it.
        unpadded: the same before padding: what the paper's rule is applied to.
        rows: the rows.
    """

    title: str
    detector: str
    arguments: Mapping[str, Any]
    size: Size
    unpadded: Size
    rows: tuple[EnergyRow, ...]


@dataclass(frozen=True)
class Operations:
    """Multiplications and additions."""

    num_mul: float
    num_add: float

    def energy_mj(self, dtype: torch.dtype = torch.float32) -> float:
        """Energy in mJ at the costs of `torchadder.energy.CostTable`."""
        cost = CostTable().of(dtype)
        return (self.num_mul * cost.mul + self.num_add * cost.add) * 1e-9


@dataclass(frozen=True)
class CountedRow:
    """A row with its counts.

    Attributes:
        group: its group.
        row: what was asked for.
        counted: taps, on the image as the net sees it.
        by_paper: counts by the paper's rule; None for a row that the paper does not have.
        baseline: what the conv detector of the group needs.
    """

    group: EnergyGroup
    row: EnergyRow
    counted: Operations
    by_paper: Operations | None
    baseline: Operations

    def saved(self, dtype: torch.dtype = torch.float32) -> float:
        """Part of the conv detector's energy that is saved."""
        return 1 - self.counted.energy_mj(dtype) / self.baseline.energy_mj(dtype)

    def deviations(self, operations: Operations) -> tuple[float, float, float] | None:
        """By how much multiplications, additions and energy differ from print; None without one.

        0 where the rounded figure is the printed one.
        """
        printed = self.row.printed
        if printed is None:
            return None
        return (
            deviation(f"{printed.num_mul}G", operations.num_mul),
            deviation(f"{printed.num_add}G", operations.num_add),
            deviation(printed.energy_mj, operations.energy_mj()),
        )


def count_groups(groups: tuple[EnergyGroup, ...] | None = None) -> list[CountedRow]:
    """Count every row of `groups` (default: the whole table) on shapes alone."""
    counted = []
    for group in GROUPS if groups is None else groups:
        baseline = _taps(_report(group, group.rows[0], group.size))
        for row in group.rows:
            counted.append(
                CountedRow(
                    group=group,
                    row=row,
                    counted=_taps(_report(group, row, group.size)),
                    by_paper=_by_paper(group, row) if row.printed else None,
                    baseline=baseline,
                )
            )
    return counted


def _report(group: EnergyGroup, row: EnergyRow, size: Size) -> EnergyReport:
    arguments = {**group.arguments, **row.arguments}
    return _count(group.detector, tuple(sorted(arguments.items())), size)


@functools.lru_cache(maxsize=64)
def _count(detector: str, arguments: tuple[tuple[str, Any], ...], size: Size) -> EnergyReport:
    with torch.device("meta"):
        net = detection.build(detector, num_classes=NUM_CLASSES, **dict(arguments))
    return detection.count_operations(net, *size, include_elementwise=True)


_TAPS = frozenset({"conv2d", "adder2d", "matmul"})


def _taps(report: EnergyReport) -> Operations:
    layers = [layer for layer in report.layers if layer.op in _TAPS]
    return Operations(
        sum(layer.num_mul for layer in layers), sum(layer.num_add for layer in layers)
    )


def _by_paper(group: EnergyGroup, row: EnergyRow) -> Operations:
    """Count by the paper's rule: the conv detector's total, and what moves to the additions."""
    size = row.printed_size or group.unpadded
    conv = _report(group, _conv_twin(row), size)
    letters = row.arguments.get("adder", "")
    if row.whole_parts:
        parts = {"B": "backbone.body", "N": "backbone.neck"}
        moved = sum(_operations(conv, parts[letter]) for letter in letters)
    else:
        layers = _report(group, row, size).layers
        moved = sum(layer.num_add / 2 for layer in layers if layer.op == "adder2d")
    total = _operations(conv)
    return Operations(total - moved, total + moved)


def _conv_twin(row: EnergyRow) -> EnergyRow:
    return EnergyRow("", {**row.arguments, "adder": ""})


_OPERATIONS = {
    "conv2d": lambda mul, add: mul,
    "matmul": lambda mul, add: mul,
    "bias": lambda mul, add: add,
    "batch_norm": lambda mul, add: mul + add,
    "relu": lambda mul, add: add,
    # 3x3 windows of stride 2 compare 8 times an output, which is twice for each input.
    "max_pool": lambda mul, add: add / 2,
}
"""What the paper's rule makes of the multiplications and additions of `torchadder.energy`."""


def _operations(report: EnergyReport, prefix: str = "") -> float:
    return sum(
        _OPERATIONS[layer.op](layer.num_mul, layer.num_add)
        for layer in report.layers
        if layer.op in _OPERATIONS and layer.name.startswith(prefix)
    )


_FPN = {"neck": "fpn"}
_CONV = {**_FPN, "adder": ""}
_B = {**_FPN, "adder": "B"}
_BN = {**_FPN, "adder": "BN"}
_R = {"neck": "r_pafpn", "adder": "BN"}
_BNH = {**_FPN, "adder": "BNH"}

_HONEST = (
    "the paper's B+N detectors have an R-PAFPN, but their printed counts are those of a plain FPN; "
    "here its further layers are counted, as we read it: two 3x3 of stride 2, two on their sums"
)
_R101_B = (
    "does not come out by any rule found: printed are 15.5G more multiplications than by the "
    "paper's rule, although its B+N row, of which B is a part, does come out"
)
_RETINA = (
    "printed for an image of 800x1280, 5 % smaller than that of the FCOS rows; the same net on "
    "800x1333 is the row GHM, which differs from it in the loss alone"
)
_RT = "comes out if FCOS-RT has the levels P3 to P5 only; with P6 and P7 it would be 75.5G"
_WHOLE = (
    "the print moves the backbone's first layer, norms, ReLUs and pooling to the additions as "
    "well, 1.23G multiplications; its B+N+H row leaves them where they are"
)
_BOX = "with 1000 proposals; no adder detector of this kind is printed"
_PAFPN = (
    "a PAFPN on P2 to P5: its 25.9G of further layers are in the printed figure, those of the "
    "R-PAFPN in the adder detectors are not"
)


def _fcos(title: str, backbone: str, printed: tuple[Figures, ...], b: str = "") -> EnergyGroup:
    conv, adder_b, adder_bn = printed
    return EnergyGroup(
        title,
        "fcos",
        {"backbone": backbone},
        (800, 1344),
        (800, 1333),
        (
            EnergyRow("conv", _CONV, conv),
            EnergyRow("B", _B, adder_b, remark=b),
            EnergyRow("B+N", _BN, adder_bn),
            EnergyRow("B+N, R-PAFPN", _R, remark=_HONEST),
            EnergyRow("B+N+H", _BNH),
        ),
    )


def _retinanet(title: str, backbone: str, conv: tuple[EnergyRow, ...]) -> EnergyGroup:
    return EnergyGroup(
        title,
        "retinanet",
        {"backbone": backbone},
        (800, 1344),
        (800, 1333),
        (
            *conv,
            EnergyRow("B", _B),
            EnergyRow("B+N", _BN),
            EnergyRow("B+N, R-PAFPN", _R, remark=_HONEST),
            EnergyRow("B+N+H", _BNH),
        ),
    )


GROUPS = (
    _fcos(
        "FCOS, ResNet-50, 800x1344",
        "resnet50",
        (
            Figures("214.7", "214.7", "987.7"),
            Figures("129.9", "299.5", "750.2"),
            Figures("112.9", "316.5", "702.7"),
        ),
    ),
    _fcos(
        "FCOS, ResNet-101, 800x1344",
        "resnet101",
        (
            Figures("294.6", "294.6", "1355"),
            Figures("145.7", "443.5", "938.1"),
            Figures("113.3", "475.9", "847.4"),
        ),
        _R101_B,
    ),
    _retinanet(
        "RetinaNet, ResNet-50, 800x1344",
        "resnet50",
        (
            EnergyRow(
                "conv", _CONV, Figures("239.3", "239.3", "1100"), (800, 1280), remark=_RETINA
            ),
            EnergyRow("conv, GHM", _CONV, Figures("250.3", "250.3", "1152")),
        ),
    ),
    _retinanet("RetinaNet, ResNet-101, 800x1344", "resnet101", (EnergyRow("conv", _CONV),)),
    EnergyGroup(
        "FCOS-RT, ResNet-50, 512x736",
        "fcos",
        {"backbone": "resnet50", "top_levels": 0},
        (512, 736),
        (512, 736),
        (
            EnergyRow("conv", _CONV, Figures("74.86", "74.86", "344.4"), remark=_RT),
            EnergyRow("B", _B, Figures("45.06", "104.7", "260.9")),
            EnergyRow("B+N", _BN, Figures("39.16", "110.6", "244.4")),
            EnergyRow("B+N, R-PAFPN", _R, remark=_HONEST),
            EnergyRow("B+N+H", _BNH),
        ),
    ),
    EnergyGroup(
        "RetinaNet, ResNet-50, 640x640",
        "retinanet",
        {"backbone": "resnet50", "head_norm": "batch"},
        (640, 640),
        (640, 640),
        (
            EnergyRow("conv", _CONV, Figures("95.68", "95.68", "440.1")),
            EnergyRow("B", _B, Figures("62.05", "129.3", "346.0"), whole_parts=True, remark=_WHOLE),
            EnergyRow(
                "B+N", _BN, Figures("55.13", "136.2", "326.6"), whole_parts=True, remark=_WHOLE
            ),
            EnergyRow("B+N, R-PAFPN", _R, remark=_HONEST),
            EnergyRow("B+N+H", _BNH, Figures("16.15", "175.2", "217.4")),
        ),
    ),
    EnergyGroup(
        "Faster R-CNN, ResNet-50, 800x1344",
        "faster_rcnn",
        {"backbone": "resnet50"},
        (800, 1344),
        (800, 1333),
        (
            EnergyRow("conv", _CONV, Figures("215.8", "215.8", "992.8"), remark=_BOX),
            EnergyRow(
                "conv, PAFPN",
                {"neck": "pafpn", "adder": ""},
                Figures("241.7", "241.7", "1112"),
                remark=_PAFPN,
            ),
        ),
    ),
)
"""The table, in the paper's order, and the rows that it leaves out."""
