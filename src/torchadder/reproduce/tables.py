"""The papers' tables as data: rows, the recipe of each, and the accuracies that are printed.

A figure stands here only if it was read in a paper, its supplement or the authors' repository;
what was not found is None and appears in no column. Figures are top-1 accuracies, for detectors
average precisions, in percent, with the digits that are printed.
"""

from __future__ import annotations

from dataclasses import dataclass

ADDERNET = "AdderNet, arXiv 1912.13200, camera-ready rows as cited by SLAC, NeurIPS 2021"
PKKD = "PKKD, arXiv 2009.13044"
PKKD_SUPPLEMENT = "PKKD, arXiv 2009.13044, supplement, table 1"
SLAC = "SLAC, NeurIPS 2021, 800 epochs"
SLAC_IMAGENET = "SLAC, NeurIPS 2021, 300 epochs"

NETS = {
    "lenet5bn": "LeNet-5-BN",
    "vggsmall": "VGG-small",
    "resnet18": "ResNet-18",
    "resnet18narrow": "ResNet-18, a quarter of its width",
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "resnet50": "ResNet-50",
}
"""Nets by their part of a recipe's name."""

METHODS = {
    "conv": "CNN",
    "adder": "AdderNet",
    "kd": "AdderNet + KD, fixed teacher",
    "kd_progressive": "AdderNet + KD, progressive teacher",
    "pkkd": "AdderNet + PKKD",
    "pkkd_fixed": "AdderNet + PKKD, fixed teacher",
    "pkkd_nokernel": "AdderNet + PKKD without kernel",
    "pkkd_batchscale": "AdderNet + PKKD, kernels scaled by each batch",
    "at": "AdderNet + attention transfer",
    "sp": "AdderNet + similarity-preserving KD",
    "fsp": "AdderNet + FSP matrices (Gift-KD)",
    "fitnet": "AdderNet + FitNet features",
    "snapshot": "AdderNet + Snapshot distillation",
    "dropout": "AdderNet + dropout",
    "slac": "AdderNet + SLAC",
    "lp": "AdderNet, exponent from 2 to 1",
    "adder_awn": "AdderNet + AWN",
    "conv_awn": "CNN + AWN",
    "adder_pgd": "AdderNet, trained on images attacked by PGD",
    "conv_pgd": "CNN, trained on images attacked by PGD",
    "conv_kd": "CNN + KD, progressive teacher",
    "conv_kd_fixed": "CNN + KD, fixed teacher",
    "conv_pkkd": "CNN + PKKD",
    "conv_pkkd_fixed": "CNN + PKKD, fixed teacher",
}
"""Methods by their part of a recipe's name, and what the tables call them."""

FIXED_TEACHER = frozenset(
    {
        "kd",
        "pkkd_fixed",
        "pkkd_fixed_nokernel",
        "pkkd_fixed_ramp",
        "at",
        "sp",
        "fsp",
        "fitnet",
        "conv_kd_fixed",
        "conv_pkkd_fixed",
    }
)
"""Methods whose teacher is the CNN of the same net, trained before."""


@dataclass(frozen=True)
class Figure:
    """What a table compares.

    Attributes:
        column: Its column of `metrics.csv`, a share.
        key: What it is called in CSV files.
        name: What it is called elsewhere.
    """

    column: str
    key: str
    name: str


ACCURACY = Figure("val_accuracy", "accuracy", "accuracy")
AP = Figure("val_ap", "ap", "AP")
AP50 = Figure("val_ap50", "ap50", "AP50")
VOC_AP = Figure("val_voc_ap", "voc_ap", "VOC AP")


@dataclass(frozen=True)
class Printed:
    """A figure in a paper.

    Attributes:
        accuracy: Top-1 accuracy, or average precision, in percent.
        source: Where it is printed.
        digits: Digits behind the point, as printed.
        top5: The top-5 accuracy beside it, in percent; None if none is printed.
    """

    accuracy: float
    source: str
    digits: int = 2
    top5: float | None = None

    def __str__(self) -> str:
        return f"{self.accuracy:.{self.digits}f}"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        recipe: Name of its recipe.
        label: What the table calls it.
        group: Net, the heading it stands under.
        printed: The paper's figure; None if it is not known.
        teacher: Recipe of the row whose final weights teach this one; None for no such teacher.
        baseline: Recipe of the row it is compared with, seed by seed; None for no comparison.
    """

    recipe: str
    label: str
    group: str
    printed: Printed | None = None
    teacher: str | None = None
    baseline: str | None = None

    @property
    def key(self) -> str:
        """The recipe's name without the data set: what `--rows` and folders call the row."""
        return self.recipe.partition("_")[2]


@dataclass(frozen=True)
class Table:
    """A table to be trained again.

    Attributes:
        name: What the command line calls it.
        title: Its heading.
        epochs: Budget of each row unless another is asked for: that of the papers.
        rows: Its rows; a teacher comes before the rows that it teaches.
        note: What a reader of the figures must know.
        figure: What it compares.
        second: What it shows beside.
    """

    name: str
    title: str
    epochs: int
    rows: tuple[Row, ...]
    note: str = ""
    figure: Figure = ACCURACY
    second: Figure | None = None


_PRINTED = {
    "cifar10_vggsmall_conv": Printed(93.80, ADDERNET),
    "cifar10_vggsmall_adder": Printed(93.72, ADDERNET),
    "cifar10_vggsmall_pkkd": Printed(95.03, PKKD),
    "cifar10_vggsmall_slac": Printed(93.96, SLAC),
    "cifar10_resnet20_conv": Printed(92.25, ADDERNET),
    "cifar10_resnet20_adder": Printed(91.84, ADDERNET),
    "cifar10_resnet20_pkkd": Printed(92.96, PKKD),
    "cifar10_resnet20_slac": Printed(92.29, SLAC),
    "cifar10_resnet20_dropout": Printed(92.20, PKKD_SUPPLEMENT),
    "cifar10_resnet20_snapshot": Printed(92.33, PKKD_SUPPLEMENT),
    "cifar10_resnet20_sp": Printed(92.38, PKKD_SUPPLEMENT),
    "cifar10_resnet20_fsp": Printed(92.22, PKKD_SUPPLEMENT),
    "cifar10_resnet20_at": Printed(92.27, PKKD_SUPPLEMENT),
    "cifar10_resnet32_conv": Printed(93.29, ADDERNET),
    "cifar10_resnet32_adder": Printed(93.01, ADDERNET),
    "cifar10_resnet32_pkkd": Printed(93.62, PKKD),
    "cifar10_resnet32_slac": Printed(93.24, SLAC),
    "cifar100_vggsmall_conv": Printed(72.73, ADDERNET),
    "cifar100_vggsmall_adder": Printed(72.64, ADDERNET),
    "cifar100_vggsmall_pkkd": Printed(76.94, PKKD),
    "cifar100_vggsmall_slac": Printed(73.63, SLAC),
    "cifar100_resnet20_conv": Printed(68.14, ADDERNET),
    "cifar100_resnet20_adder": Printed(67.60, ADDERNET),
    "cifar100_resnet20_pkkd": Printed(69.93, PKKD),
    "cifar100_resnet20_slac": Printed(68.31, SLAC),
    "cifar100_resnet32_conv": Printed(69.74, ADDERNET),
    "cifar100_resnet32_adder": Printed(69.02, ADDERNET),
    "cifar100_resnet32_pkkd": Printed(72.41, PKKD),
    "cifar100_resnet32_slac": Printed(69.83, SLAC),
    "imagenet_resnet18_conv": Printed(69.8, ADDERNET, 1, 89.1),
    "imagenet_resnet18_adder": Printed(67.0, ADDERNET, 1, 87.6),
    "imagenet_resnet18_pkkd": Printed(68.8, PKKD, 1, 88.6),
    "imagenet_resnet18_slac": Printed(67.7, SLAC_IMAGENET, 1, 87.9),
    "imagenet_resnet50_conv": Printed(76.2, ADDERNET, 1, 92.9),
    "imagenet_resnet50_adder": Printed(74.9, ADDERNET, 1, 91.7),
    "imagenet_resnet50_pkkd": Printed(76.8, PKKD, 1, 93.3),
    "imagenet_resnet50_slac": Printed(75.3, SLAC_IMAGENET, 1, 92.6),
}

_ALL = ("conv", "adder", "kd", "kd_progressive", "pkkd", "pkkd_fixed", "pkkd_nokernel")
_FURTHER = ("slac", "lp", "adder_awn")
_DISTILLERS = ("kd", "at", "sp", "fsp", "fitnet", "snapshot", "dropout", "pkkd")
_WEIGHTS = ("0.1", "0.5", "1", "10")
_ABLATION = {
    "pkkd": "PKKD",
    "pkkd_fixed": "fixed teacher",
    "pkkd_nokernel": "no kernel",
    "pkkd_fixed_nokernel": "no kernel, fixed teacher",
    "pkkd_fixed_ramp": "ramp over the epochs, fixed teacher",
    "pkkd_gaussian": "Gaussian kernels on both sides",
    "pkkd_laplacian": "Laplacian kernels on both sides",
    "pkkd_magnitude": "kernels scaled by magnitude",
    "pkkd_batchscale": "kernels scaled by each batch",
    "pkkd_constscales": "scales not learned",
    "pkkd_studentscales": "only the student's scales learned",
    "pkkd_limit3": "exponents in [-3, 3], not [-6, 6]",
    "pkkd_limit12": "exponents in [-12, 12]",
    "pkkd_nomap": "no linear map",
    "kd_progressive": "no feature loss (beta 0)",
    "pkkd_nokd": "no soft labels (alpha 0)",
    "pkkd_sum": "distances summed over the layers",
    "pkkd_stageends": "taps at the ends of the stages",
    "pkkd_sharedinit": "shared initial values",
    "pkkd_ramp": "ramp over the epochs",
    "pkkd_rampteacher": "ramp with the teacher",
}
_BY_WEIGHT = {
    f"pkkd_{key}{value}": f"{label} {value}"
    for key, label in {"alpha": "alpha", "beta": "beta", "both": "alpha and beta"}.items()
    for value in _WEIGHTS
}
_AWN = {
    "conv": "CNN",
    "adder": "AdderNet",
    "adder_awn": "AWN (axis filter, scale filter, 2 at the start)",
    "adder_awn_layerscale": "one scale a layer",
    "adder_awn_fixed": "fixed scales",
    "adder_awn_layeraxis": "axis layer",
    "adder_awn_init0.5": "scales of 0.5 at the start",
    "adder_awn_keep": "scales of 1, the weights' deviation, at the start",
    "adder_awn_init4": "scales of 4 at the start",
    "adder_awn_nodecay": "no weight decay on the scales",
}


def _rows(
    prefix: str,
    methods: tuple[str, ...] | dict[str, str],
    baseline: str = "adder",
    *,
    without: tuple[str, ...] = (),
) -> tuple[Row, ...]:
    """Rows of the recipes `<prefix>_<method>`, compared with the row of `baseline`.

    Args:
        prefix: Data set and net.
        methods: Methods, with labels where they are not those of `METHODS`.
        baseline: The method that the others are compared with.
        without: Methods to leave out.
    """
    labels = methods if isinstance(methods, dict) else {name: METHODS[name] for name in methods}
    return tuple(
        Row(
            recipe=f"{prefix}_{method}",
            label=label,
            group=NETS[prefix.split("_")[1]],
            printed=_PRINTED.get(f"{prefix}_{method}"),
            teacher=f"{prefix}_conv" if method in FIXED_TEACHER else None,
            baseline=f"{prefix}_{baseline}" if method not in ("conv", baseline) else None,
        )
        for method, label in labels.items()
        if method not in without
    )


DETECTION = "Adder detection, arXiv 2112.13608, table 5"
DETECTION_NECKS = "Adder detection, arXiv 2112.13608, table 4"
DETECTION_VOC = "Adder detection, arXiv 2112.13608, table 6"

_PRINTED_AP = {
    "coco_fcos_r50_conv": Printed(38.4, DETECTION, 1),
    "coco_fcos_r50_adder_b": Printed(37.2, DETECTION, 1),
    "coco_fcos_r50_adder_bn": Printed(36.5, DETECTION, 1),
    "coco_fcos_r50_adder_bn_fpn": Printed(34.8, DETECTION_NECKS, 1),
    "coco_fcos_r50_adder_bn_pafpn": Printed(34.9, DETECTION_NECKS, 1),
    "coco_fcos_r50_adder_bn_pafpn_shortcut": Printed(36.1, DETECTION_NECKS, 1),
    "voc_fcos_r50_conv": Printed(79.1, DETECTION_VOC, 1),
    "voc_fcos_r50_adder_bn": Printed(76.5, DETECTION_VOC, 1),
}

DETECTORS = {
    "conv": "FCOS",
    "adder_b": "Adder FCOS, B",
    "adder_bn": "Adder FCOS, B+N, R-PAFPN",
    "adder_bn_fpn": "Adder FCOS, B+N, FPN",
    "adder_bn_pafpn": "Adder FCOS, B+N, PAFPN",
    "adder_bn_pafpn_shortcut": "Adder FCOS, B+N, PAFPN + shortcut",
    "adder_bn_clip": "Adder FCOS, B+N, R-PAFPN, clipped gradient",
    "adder_bn_frozen": "Adder FCOS, B+N, R-PAFPN, frozen BN",
    "conv_r_pafpn": "FCOS, R-PAFPN",
    "conv_frozen": "FCOS, frozen BN",
}
"""Detectors by their part of a recipe's name, and what the tables call them."""

_NECKS = ("adder_bn_fpn", "adder_bn_pafpn", "adder_bn_pafpn_shortcut")
_SWITCHES = ("adder_bn_clip", "adder_bn_frozen", "conv_r_pafpn", "conv_frozen")


def _detectors(prefix: str, group: str, methods: tuple[str, ...]) -> tuple[Row, ...]:
    """Rows of the recipes `<prefix>_<method>`, compared with the conv detector."""
    return tuple(
        Row(
            recipe=f"{prefix}_{method}",
            label=DETECTORS[method],
            group=group,
            printed=_PRINTED_AP.get(f"{prefix}_{method}"),
            baseline=None if method == "conv" else f"{prefix}_conv",
        )
        for method in methods
    )


_SMALL_NOTE = (
    "The backbone has a quarter of ResNet-18's width, neck and head have 64 channels. Without "
    "--detection.backbone_weights all rows are trained from scratch, and frozen BN fixes the "
    "initial statistics, mean 0 and variance 1; with it, those of the file. {kind} in its name "
    "becomes conv or adder."
)

_ABLATION_NOTE = (
    "Each row changes one thing in PKKD with alpha = beta = 5; those with a fixed teacher and "
    "something else, and those with another alpha and beta, change two."
)

_CIFAR_NOTE = (
    "The papers train for 400 epochs (PKKD for 400 or 800: two readers of the paper differ). "
    "No figures of theirs were found for KD alone, a fixed teacher, or PKKD without its kernel. "
    "SLAC trains for 800 epochs."
)

TABLES = {
    table.name: table
    for table in (
        Table(
            "mnist",
            "LeNet-5-BN on 5,000 MNIST digits",
            30,
            _rows("mnist_lenet5bn", (*_ALL, "pkkd_batchscale", *_FURTHER, "adder_pgd")),
            "No paper trains on these 4,000 + 1,000 digits; nothing is printed to compare with.",
        ),
        Table(
            "cifar10",
            "CIFAR-10",
            400,
            (
                *_rows("cifar10_resnet20", _ALL + _FURTHER),
                *_rows("cifar10_resnet20", ("conv_awn",), baseline="conv"),
                *_rows("cifar10_vggsmall", (*_ALL, "slac")),
                *_rows("cifar10_resnet32", (*_ALL, "slac", "adder_awn")),
            ),
            _CIFAR_NOTE,
        ),
        Table(
            "cifar100",
            "CIFAR-100",
            400,
            tuple(
                row
                for net in ("resnet20", "vggsmall", "resnet32")
                for row in _rows(f"cifar100_{net}", (*_ALL, "slac"))
            ),
            _CIFAR_NOTE,
        ),
        Table(
            "imagenet",
            "ImageNet",
            150,
            tuple(
                row
                for net in ("resnet18", "resnet50")
                for row in _rows(f"imagenet_{net}", ("conv", "adder", "pkkd"))
            ),
            "AdderNet trains for 150 epochs, PKKD for 150 or 300: two readers of the paper differ.",
        ),
        Table(
            "imagenet-slac",
            "SLAC on ImageNet",
            300,
            tuple(
                row
                for net in ("resnet18", "resnet50")
                for row in _rows(f"imagenet_{net}", ("slac",), baseline="slac")
            ),
            "Apart from the table imagenet because weight decay is a tenth of AdderNet's, as in "
            "the paper.",
        ),
        Table(
            "distillers",
            "Ways of distilling, ResNet-20 on CIFAR-10",
            400,
            _rows("cifar10_resnet20", ("conv", "adder", *_DISTILLERS)),
            "The supplement prints no figure for KD and FitNet features alone.",
        ),
        Table(
            "ablation",
            "PKKD switch by switch, ResNet-20 on CIFAR-10",
            400,
            _rows(
                "cifar10_resnet20",
                {"conv": "CNN", "adder": "AdderNet", **_ABLATION, **_BY_WEIGHT},
            ),
            _ABLATION_NOTE,
        ),
        Table(
            "ablation-mnist",
            "PKKD switch by switch, LeNet-5-BN on 5,000 MNIST digits",
            15,
            _rows(
                "mnist_lenet5bn",
                {"conv": "CNN", "adder": "AdderNet", **_ABLATION, **_BY_WEIGHT},
                without=("pkkd_stageends",),
            ),
            f"{_ABLATION_NOTE} Nothing is printed to compare with.",
        ),
        Table(
            "ablation-cifar100",
            "PKKD's alpha and beta, ResNet-20 on CIFAR-100",
            400,
            _rows(
                "cifar100_resnet20",
                {
                    "conv": "CNN",
                    "adder": "AdderNet",
                    "pkkd": "PKKD, alpha 5, beta 5",
                    **_BY_WEIGHT,
                },
            ),
            "The paper chose alpha and beta here, among 0.1, 0.5, 1, 5 and 10; 5 and 5 were best. "
            "Each row changes one of them, or both.",
        ),
        Table(
            "cnn-distillation",
            "A CNN taught by its twin, ResNet-20 on CIFAR-10",
            400,
            _rows(
                "cifar10_resnet20",
                ("conv", "conv_kd_fixed", "conv_kd", "conv_pkkd_fixed", "conv_pkkd"),
                baseline="conv",
            ),
            "Rows of the PKKD supplement's table 2; the figures it prints were not found. With a "
            "fixed teacher the student begins with the initial values that its teacher once had.",
        ),
        Table(
            "awn",
            "Adaptive weight normalisation, LeNet-5-BN on 5,000 MNIST digits",
            5,
            _rows("mnist_lenet5bn", _AWN),
            "Each row changes one choice that the abstract of the paper leaves open. Few epochs: "
            "what AWN is for, running statistics that keep up with the weights, shows early. "
            "Nothing is printed to compare with.",
        ),
        Table(
            "robustness",
            "Training on attacked images, ResNet-20 on CIFAR-10",
            100,
            _rows("cifar10_resnet20", ("conv", "adder", "conv_pgd", "adder_pgd")),
            "Accuracies here are those on clean images; torchadder evaluate --robust attacks what "
            "the rows leave. An epoch with PGD costs about eight without.",
        ),
        Table(
            "deeper",
            "The kernel in a deeper net, ResNet-50 on 64x64 images (Tiny ImageNet)",
            100,
            _rows(
                "tinyimagenet_resnet50",
                ("conv", "adder", "kd_progressive", "pkkd", "pkkd_nokernel"),
            ),
            "Asked for by a reviewer of PKKD, who found the kernel's gain on ResNet-20 (0.21 "
            "points) within noise; the paper prints nothing for these images.",
        ),
        Table(
            "backbones",
            "Backbones of the small detectors, ResNet-18 of a quarter of its width on CIFAR-10",
            10,
            _rows("cifar10_resnet18narrow", ("conv", "adder")),
            "Images are enlarged to 64x64. Nothing is printed to compare with.",
        ),
        Table(
            "digits-detection",
            "Detectors on scenes of real digits",
            6,
            _detectors("digits_fcos", "FCOS", ("conv", "adder_b", "adder_bn")),
            "Nothing is printed to compare with. " + _SMALL_NOTE,
            AP,
            AP50,
        ),
        Table(
            "neudet",
            "Detectors on NEU-DET, defects of steel",
            24,
            _detectors(
                "neudet_fcos_r18", "FCOS", ("conv", "adder_b", "adder_bn", *_NECKS, *_SWITCHES)
            ),
            "Nothing is printed to compare with. " + _SMALL_NOTE,
            AP,
            AP50,
        ),
        Table(
            "bccd",
            "Detectors on BCCD, blood cells",
            60,
            _detectors(
                "bccd_fcos_r18", "FCOS", ("conv", "adder_b", "adder_bn", *_NECKS, *_SWITCHES)
            ),
            "Nothing is printed to compare with. " + _SMALL_NOTE,
            AP,
            AP50,
        ),
        Table(
            "coco",
            "Detectors on COCO",
            12,
            _detectors("coco_fcos_r50", "FCOS", ("conv", "adder_b", "adder_bn", *_NECKS)),
            "The paper's backbones are trained on ImageNet, the adder ones by PKKD: "
            "--detection.backbone_weights names a checkpoint. It prints no learning rate.",
            AP,
            AP50,
        ),
        Table(
            "voc",
            "Detectors on PASCAL VOC 2007",
            12,
            _detectors("voc_fcos_r50", "FCOS", ("conv", "adder_b", "adder_bn")),
            "The paper trains on 2007 and 2012, tests on 2007 and prints mAP at an overlap of 0.5.",
            VOC_AP,
            AP,
        ),
    )
}
"""The tables by name."""

COUNTED = {
    "detection-energy": "Operations and energy of adder detectors (arXiv 2112.13608, table 5)",
}
"""Tables that are counted and not trained, by name, with their titles."""
