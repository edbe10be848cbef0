"""Detection: the losses of torchvision's detectors, and average precision on held-out images."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from torchadder.data.detection import DetectionSplit, coco_ground_truth, coco_results
from torchadder.detection import CocoAP, VocAP, coco_ap, feature_sparsity, voc_ap
from torchadder.processes import objects_of_processes
from torchadder.quantize import integer_net
from torchadder.tasks.base import TrainingTask

METRICS = {"coco": "val_ap", "voc": "val_voc_ap"}
"""The validation metric that says which epoch is best, by the name recipes use."""

NUM_MEASURED = 4
"""Images of the first validation batch on which the zeros of feature maps are counted."""


class Detection(TrainingTask):
    """Trains a detector with the sum of its losses.

    Logs per epoch `train_loss` and its parts, `train_classification_loss` and whatever else the
    detector names; after a validation COCO's figures `val_ap`, `val_ap50`, `val_ap75`,
    `val_ap_small`, `val_ap_medium`, `val_ap_large`, VOC's `val_voc_ap` (area) and `val_voc_ap11`
    (11 points), as far as the images define them, all shares in 0..1, and `val_zeros_<level>`, the
    share of zeros on each level of backbone and neck (`torchadder.detection.feature_sparsity`).

    In training, images keep the size that the data gives them, one of several perhaps. Elsewhere
    the detector brings images to its own size, which validation images of the data have already.

    Args:
        model: A detector of `torchadder.detection`.
        truth: The validation images and what is in them.
        metric: Which average precision says which epoch is best: "coco" or "voc".
        **options: Optimizer and schedule, as of `TrainingTask`.

    Attributes:
        found (list[dict[str, Any]]): What was found in the validation images, the content of a COCO
            results file, from the first validation on.
        seen (list[int]): Numbers of these images.
        coco (CocoAP): COCO's figures of them.
        voc (VocAP): VOC's figures.

    Raises:
        ValueError: If the metric is unknown.
    """

    has_tensor_batches = False
    coco: CocoAP
    voc: VocAP

    def __init__(
        self, model: nn.Module, *, truth: DetectionSplit, metric: str = "coco", **options: Any
    ) -> None:
        super().__init__(model, **options)
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        self.monitor = METRICS[metric]
        self.truth = truth
        self.found: list[dict[str, Any]] = []
        self.seen: list[int] = []

    def forward(self, images: Sequence[Tensor]) -> Any:
        """Boxes, scores and labels of each image (3, H, W), in pixels of the image."""
        return self.model(list(images))

    def loss_and_sums(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the detector's losses, and each of them."""
        plain = [
            {"boxes": target["boxes"].as_subclass(Tensor), "labels": target["labels"]}
            for target in targets
        ]
        with _size_kept(self.model):
            losses: dict[str, Tensor] = self.model(list(images), plain)
        loss = sum(losses.values(), start=next(iter(losses.values())).new_zeros(()))
        parts = {f"train_{name.removeprefix('loss_')}_loss": part for name, part in losses.items()}
        sums = {"train_loss": loss, **parts}
        return loss, {name: part.detach() * len(images) for name, part in sums.items()}

    def on_validation_epoch_start(self) -> None:
        """Forgets what was found before."""
        self.found, self.seen = [], []

    def validation_step(
        self, batch: tuple[Sequence[Tensor], Sequence[Mapping[str, Any]]], batch_idx: int
    ) -> None:
        """Adds what is found in a batch."""
        images, targets = batch
        detections = self(images)
        if batch_idx == 0 and integer_net(self.model) is None:
            zeros = feature_sparsity(self.model, images[:NUM_MEASURED])
            values = {f"val_zeros_{level}": share for level, share in zeros.items()}
            self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        self.found += coco_results(detections, targets, self.truth.categories)
        self.seen += [int(target["image_id"]) for target in targets]

    def on_validation_epoch_end(self) -> None:
        """Compares what was found with the truth, over all processes."""
        self.found = list(itertools.chain(*objects_of_processes(self.found)))
        self.seen = sorted(itertools.chain(*objects_of_processes(self.seen)))
        truth = coco_ground_truth(self.truth)
        self.coco = coco_ap(truth, self.found, self.seen)
        self.voc = voc_ap(truth, self.found, self.seen)
        figures = {f"val_{name}": value for name, value in self.coco.figures().items()}
        for name, value in (("val_voc_ap", self.voc.area), ("val_voc_ap11", self.voc.points)):
            if value is not None:
                figures[name] = value
        # Without an object among the images looked at, every epoch is as good as another.
        figures.setdefault(self.monitor, 0.0)
        self.log_dict(figures, sync_dist=True)


@contextlib.contextmanager
def _size_kept(model: Any) -> Iterator[None]:
    """A block in which a detector of torchvision leaves the size of training images as it is."""
    before = model.transform._skip_resize
    model.transform._skip_resize = True
    try:
        yield
    finally:
        model.transform._skip_resize = before
