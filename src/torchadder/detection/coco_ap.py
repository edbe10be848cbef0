"""COCO's average precision, by faster-coco-eval: the same figures as pycocotools, several times
faster.

https://cocodataset.org/#detection-eval. A detection matches an object of its class from an
intersection over union of t on; AP is the mean precision at 101 recalls, the mean over t = 0.50,
0.55, ..., 0.95 and over classes. Crowds can be found any number of times and need not be found.
"""  # noqa: D205

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas of objects in pixels of the original image, as COCO divides them."""


@dataclass(frozen=True)
class CocoAP:
    """COCO's figures, shares in 0..1; None where there is no object that they could count.

    Attributes:
        ap: Mean over ten thresholds from 0.50 to 0.95 and all classes.
        ap50: The same at a threshold of 0.50.
        ap75: The same at a threshold of 0.75.
        ap_small: AP of objects below 32 x 32 pixels.
        ap_medium: AP of those between.
        ap_large: AP of objects from 96 x 96 pixels on.
        per_class: AP of each class by name.
        per_class_50: AP at 0.50 of each class by name.
        recall: Highest recall with 100 detections an image, mean over thresholds and classes.
        precision_50: Precision at a threshold of 0.50 at the recalls 0, 0.01, ..., 1 of each class
            that has objects, by name, float64 (101).
        num_images: Images that were looked at.
        num_objects: Objects in them, crowds left out.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    per_class: dict[str, float | None]
    per_class_50: dict[str, float | None]
    recall: float | None
    precision_50: dict[str, NDArray[np.float64]]
    num_images: int
    num_objects: int

    def figures(self) -> dict[str, float]:
        """The six figures by name, those that are defined."""
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def coco_ap(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int] | None = None,
) -> CocoAP:
    """Compare what a detector found with what is there.

    Args:
        truth: the content of an instances file, as `coco_ground_truth` makes it.
        results: the content of a results file, as `coco_results` makes it; boxes in pixels of the
            original images.
        image_ids: the images that were looked at; None: all.

    Returns:
        The figures.

    Raises:
        ValueError: if there are no images, or a result is of an image that is not among them.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    known = {entry["id"] for entry in truth["images"]}
    chosen = sorted(known if image_ids is None else set(image_ids))
    if not chosen or not known.issuperset(chosen):
        raise ValueError(f"image_ids must name images of the truth, got {chosen[:5]}")
    strangers = sorted({entry["image_id"] for entry in results} - set(chosen))
    if strangers:
        raise ValueError(f"results hold images that were not looked at: {strangers[:5]}")
    whole = COCO(dict(truth), use_deepcopy=True)  # it adds entries of its own
    found = whole.loadRes([dict(entry) for entry in results]) if results else COCO(_nothing(truth))
    evaluation = COCOeval_faster(whole, found, iouType="bbox")
    evaluation.params.imgIds = chosen
    evaluation.evaluate()
    evaluation.accumulate()
    # Thresholds, recalls, classes, areas (all, small, medium, large), detections (1, 10, 100).
    precision_TRKA = evaluation.eval["precision"][..., -1]
    recall_TKA = evaluation.eval["recall"][..., -1]
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    classes = [names[number] for number in evaluation.params.catIds]
    all_TRK = precision_TRKA[..., 0]
    looked_at = set(chosen)
    return CocoAP(
        ap=_mean(all_TRK),
        ap50=_mean(all_TRK[0]),
        ap75=_mean(all_TRK[5]),
        ap_small=_mean(precision_TRKA[..., 1]),
        ap_medium=_mean(precision_TRKA[..., 2]),
        ap_large=_mean(precision_TRKA[..., 3]),
        per_class={name: _mean(all_TRK[..., k]) for k, name in enumerate(classes)},
        per_class_50={name: _mean(all_TRK[0, :, k]) for k, name in enumerate(classes)},
        recall=_mean(recall_TKA[..., 0]),
        precision_50={
            name: all_TRK[0, :, k] for k, name in enumerate(classes) if all_TRK[0, 0, k] >= 0
        },
        num_images=len(chosen),
        num_objects=sum(
            entry["image_id"] in looked_at and not entry.get("iscrowd")
            for entry in truth["annotations"]
        ),
    )


def _nothing(truth: Mapping[str, Any]) -> dict[str, Any]:
    """Results without a detection: a results file cannot be empty."""
    return {**truth, "annotations": []}


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean of the values that are defined; COCO marks the others by -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
