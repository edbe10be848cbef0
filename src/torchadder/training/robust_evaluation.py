"""The robustness of a checkpoint: its images, every attack, and a folder with what was found."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.atomic import write_atomically
from torchadder.checkpoint import CheckpointError
from torchadder.data import DataError
from torchadder.provenance import provenance
from torchadder.quantize import IntegerNet
from torchadder.report.robustness_figures import write_figures
from torchadder.robustness import Normalised, RobustnessReport, evaluate
from torchadder.robustness.evaluation import Progress
from torchadder.training.environment import tf32_convolutions
from torchadder.training.evaluation import Classifier, images_for, open_checkpoint, open_images

NUM_IMAGES = 200
"""Images that are attacked unless it is said how many."""


@dataclass(frozen=True)
class RobustnessTarget:
    """A checkpoint ready to be attacked.

    Attributes:
        net: The checkpoint.
        model: Its net as a model of images in [0, 1].
        images: Images of the split that accuracy is measured on, (N, C, H, W) in [0, 1].
        labels: Their classes (N).
        source: Where they come from.
        split: Name of the split.
        choice: Which images of it, in words.
        transfer: Another net as a model of images in [0, 1], or None.
        transfer_path: Its checkpoint, or None.
    """

    net: Classifier
    model: nn.Module
    images: Tensor
    labels: Tensor
    source: str
    split: str
    choice: str
    transfer: nn.Module | None = None
    transfer_path: Path | None = None


def open_target(
    checkpoint: str | os.PathLike[str],
    data: dict[str, Any] | None = None,
    *,
    num_images: int | None = None,
    sample_seed: int | None = 0,
    transfer: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> RobustnessTarget:
    """Opens a checkpoint and the images to attack it on.

    Args:
        checkpoint: A .safetensors file or a run folder (its best checkpoint).
        data: Keys of the recipe's section `data` to replace, for instance `source`.
        num_images: Images to attack; None: 200, or all of a smaller split.
        sample_seed: Seed of the random sample they are, in random order; None: the first ones of
            the split. Many splits are sorted by class, and batches of one class tell nothing about
            a net that takes the statistics of its batch.
        transfer: Checkpoint of another net for the same images, whose adversarial images are tried
            on this one.
        device: Where to compute.

    Raises:
        CheckpointError: If a checkpoint cannot be used.
        DataError: If the images cannot be used, are too few, or do not fit a net.
    """
    net = open_checkpoint(checkpoint)
    if isinstance(net.model, IntegerNet):
        raise CheckpointError(
            f"{net.path}: an integer net has no gradients to attack it by; attack its float net"
        )
    source = None if transfer is None else open_checkpoint(transfer)
    if source is not None:
        _check_transfer(source, net)
    images = images_for(net, data, evaluate_only=True)
    open_images(images, net)
    if num_images is None:
        num_images = min(NUM_IMAGES, len(images.val))
    if not 1 <= num_images <= len(images.val):
        raise DataError(
            f"images = {num_images}: 1 .. {len(images.val)} are wanted, the images of split "
            f"{images.val.split.name} of {images.source}"
        )
    channels = net.preprocess.channels
    # Pixels in 0..1: the nets normalise them.
    images.val.preprocess = dataclasses.replace(
        net.preprocess, mean=(0.0,) * channels, std=(1.0,) * channels
    )
    if sample_seed is None:
        chosen, words = list(range(num_images)), f"the first {num_images:,} images"
    else:
        generator = torch.Generator().manual_seed(sample_seed)
        chosen = torch.randperm(len(images.val), generator=generator)[:num_images].tolist()
        words = f"{num_images:,} random images (seed {sample_seed})"
    split = images.val.split.name
    pixels, labels = images.val.__getitems__([(0, index) for index in chosen])
    return RobustnessTarget(
        net=net,
        model=_of_pixels(net, device),
        images=pixels.to(device),
        labels=labels.to(device),
        source=images.source,
        split=split,
        choice=f"{words} of {images.source}, split {split}",
        transfer=None if source is None else _of_pixels(source, device),
        transfer_path=None if source is None else source.path,
    )


def evaluate_robustness(
    target: RobustnessTarget,
    folder: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> RobustnessReport:
    """Attacks a checkpoint and writes what was found.

    Leaves `robustness.csv`, `robustness.md`, `robustness.json` (with settings and provenance) and
    the figures `accuracy_over_epsilon.png` and `perturbed_images.png` in `folder`.

    Args:
        target: The checkpoint with its images.
        folder: An existing folder.
        progress: As of `torchadder.robustness.evaluate`.
        **options: Further arguments of that function.

    Raises:
        ValueError: As of that function.
        OSError: If a file cannot be written.
    """
    with tf32_convolutions(False):
        report = evaluate(
            target.model,
            target.images,
            target.labels,
            transfer_from=target.transfer,
            progress=progress,
            **options,
        )
    origin = {
        "checkpoint": str(target.net.path),
        "source": target.source,
        "split": target.split,
        "choice": target.choice,
        "transfer": None if target.transfer_path is None else str(target.transfer_path),
    }
    described = origin | report.to_dict() | {"provenance": provenance()}
    write_atomically(folder / "robustness.json", json.dumps(described, indent=2) + "\n")
    report.to_csv(folder / "robustness.csv")
    heading = (
        f"# Robustness of {target.net.path}\n\n{target.choice[0].upper()}{target.choice[1:]}.\n\n"
    )
    write_atomically(folder / "robustness.md", heading + report.to_markdown())
    write_figures(report, target.net.class_names, folder)
    return report


def _of_pixels(net: Classifier, device: str | torch.device) -> nn.Module:
    model = Normalised(net.model, net.preprocess.mean, net.preprocess.std)
    return model.to(device).eval()


def _check_transfer(source: Classifier, net: Classifier) -> None:
    if len(source.class_names) != len(net.class_names):
        raise DataError(
            f"transfer: {source.path} has {len(source.class_names)} classes, {net.path} has "
            f"{len(net.class_names)}"
        )
    shapes = [
        (one.preprocess.channels, one.preprocess.height, one.preprocess.width)
        for one in (source, net)
    ]
    if shapes[0] != shapes[1]:
        words = ["x".join(map(str, shape)) for shape in shapes]
        raise DataError(
            f"transfer: {source.path} takes images of {words[0]}, {net.path} takes {words[1]}"
        )
