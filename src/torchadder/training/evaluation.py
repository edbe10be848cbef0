"""Checkpoints put to use: metrics on images with labels, classes of images without.

How images must be prepared is read from the checkpoint, where training wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import torchadder
from torchadder import energy
from torchadder.checkpoint import CheckpointError, read_info
from torchadder.data import DataError, ImageData, Preprocess, decode
from torchadder.data.images import decode_all
from torchadder.data.sources import IMAGE_SUFFIXES
from torchadder.tasks import Classification
from torchadder.training.recipe import DataConfig, RecipeError, check_keys
from torchadder.training.validation import validate
from torchadder.training.weights import weights_of


@dataclass
class Classifier:
    """A trained net with everything needed to use it.

    Attributes:
        path: The checkpoint.
        model: The net, in evaluation mode.
        class_names: Names of its classes.
        preprocess: How an image becomes its input.
        data: Where it was trained, as the recipe's section `data`.
    """

    path: Path
    model: torch.nn.Module
    class_names: list[str]
    preprocess: Preprocess
    data: dict[str, Any]


@dataclass
class Prediction:
    """Classes of one image file, the most probable first; `error` where it cannot be read."""

    path: Path
    names: list[str]
    probabilities: list[float]
    error: str | None = None


def is_detector(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint is that of a detector, trained by a recipe.

    Raises:
        CheckpointError: If it cannot be read.
    """
    return "detection" in read_info(weights_of(path)).metadata


def open_checkpoint(path: str | os.PathLike[str]) -> Classifier:
    """Opens the weights of a training run.

    Args:
        path: A .safetensors file, a run folder (its best checkpoint), or a hub id.

    Raises:
        CheckpointError: If there is no checkpoint, it is damaged, training did not write it, or it
            has not one output for each class.
    """
    path = weights_of(path)
    metadata = read_info(path).metadata
    if "detection" in metadata:
        raise CheckpointError(f"{path}: holds a detector, a net that names images is wanted")
    missing = {"class_names", "preprocess", "data"} - metadata.keys()
    if missing:
        raise CheckpointError(
            f"{path}: written outside a training run: {', '.join(sorted(missing))} unknown"
        )
    model = torchadder.load(path).eval()
    preprocess = Preprocess.from_dict(metadata["preprocess"])
    shape = (1, preprocess.channels, preprocess.height, preprocess.width)
    with torch.inference_mode():
        num_outputs = model(torch.zeros(shape)).shape[1]
    if num_outputs != len(metadata["class_names"]):
        raise CheckpointError(
            f"{path}: the net has {num_outputs} outputs: {len(metadata['class_names'])} are "
            "wanted, one for each of its classes"
        )
    return Classifier(path, model, metadata["class_names"], preprocess, metadata["data"])


def evaluate(
    checkpoint: str | os.PathLike[str],
    data: dict[str, Any] | None = None,
    *,
    batch_size: int = 256,
    threads: int | None = None,
    accelerator: str = "auto",
) -> dict[str, Any]:
    """Accuracy, top-5 accuracy, loss and energy of a checkpoint.

    Args:
        checkpoint: A .safetensors file or a run folder (its best checkpoint).
        data: Keys of the recipe's section `data` to replace, for instance `source`.
        batch_size: Images per batch.
        threads: Threads of torch on the CPU; None leaves the number as it is.
        accelerator: Lightning's accelerator.

    Returns:
        accuracy and top5 (shares; top5 is None up to five classes), loss (mean cross-entropy in
        nats), num_mul, num_add and energy_uj per image, num_images, seconds and what was evaluated.

    Raises:
        CheckpointError: If the checkpoint cannot be used.
        DataError: If the images cannot be used or have other classes.
    """
    net = open_checkpoint(checkpoint)
    images = images_for(net, data, batch_size=batch_size, evaluate_only=True)
    open_images(images, net)
    task = Classification(net.model, num_classes=len(net.class_names))
    loader = images.val_dataloader()
    metrics, seconds = validate(task, loader, threads=threads, accelerator=accelerator)
    cost = energy.count(net.model.cpu(), torch.zeros(1, *images.image_shape))
    return {
        "checkpoint": str(net.path),
        "source": images.source,
        "split": images.val.split.name,
        "num_images": len(images.val),
        "accuracy": metrics["val_accuracy"],
        "top5": metrics.get("val_top5"),
        "loss": metrics["val_loss"],
        "num_mul": cost.num_mul,
        "num_add": cost.num_add,
        "energy_uj": cost.energy_pj / 1e6,
        "seconds": seconds,
    }


def images_for(
    net: Classifier,
    data: dict[str, Any] | None = None,
    *,
    batch_size: int = 256,
    evaluate_only: bool = False,
) -> ImageData:
    """The images that a net was trained with, or others like them, not opened yet.

    Args:
        net: The net.
        data: Keys of the recipe's section `data` to replace.
        batch_size: Images per batch.
        evaluate_only: Whether no training images are wanted beside those to evaluate on. Another
            source, or a split that is named, is evaluated whole then.

    Raises:
        CheckpointError: If the net's own section `data` has an unknown key.
        RecipeError: If `data` has one.
    """
    data = dict(data or {})
    check_keys(data, "data", DataConfig, "data.")
    try:
        check_keys(net.data, str(net.path), DataConfig, "data.")
    except RecipeError as error:
        raise CheckpointError(str(error)) from error
    is_other = data.get("source", net.data.get("source")) != net.data.get("source")
    if is_other:
        # How the training images were read and divided says nothing about others.
        data = {"val_split": None, "streaming": False} | data
    if evaluate_only and (is_other or data.get("val_split") is not None):
        data = {"val_fraction": None, "streaming": False} | data
    # The checkpoint's own mean and standard deviation are put in once the images are known to fit.
    fixed = {"batch_size": batch_size, "eval_batch_size": None, "device_cache": "auto"}
    fixed |= {"augment": "none", "mean": None, "std": None}
    return ImageData(**net.data | fixed | data, evaluate_only=evaluate_only)


def open_images(images: ImageData, net: Classifier) -> None:
    """Opens images for a net; those to validate on are prepared as the net wants them.

    Raises:
        DataError: If they cannot be used, or have other classes or another size.
    """
    images.setup()
    _check_images(images, net)
    images.val.preprocess = net.preprocess
    if images.val.cache is not None and images.preprocess.resize != net.preprocess.resize:
        images.val.cache = decode_all(images.val.split, net.preprocess, strict=False)


def predict(
    checkpoint: str | os.PathLike[str] | Classifier,
    paths: Sequence[Path],
    *,
    top: int = 5,
    batch_size: int = 64,
) -> Iterator[Prediction]:
    """Classifies image files, one after the other.

    Args:
        checkpoint: A checkpoint, or one opened by `open_checkpoint`.
        paths: Image files.
        top: Classes to name for each.
        batch_size: Images per forward pass.

    Yields:
        One prediction per file, in order; a file that is no image has `error` set.
    """
    net = checkpoint if isinstance(checkpoint, Classifier) else open_checkpoint(checkpoint)
    top = min(top, len(net.class_names))
    for start in range(0, len(paths), batch_size):
        chunk = paths[start : start + batch_size]
        pixels: dict[Path, torch.Tensor] = {}
        errors: dict[Path, str] = {}
        for path in chunk:
            try:
                pixels[path] = net.preprocess.pixels(decode(str(path)))
            except DataError as error:
                errors[path] = str(error)
        found: dict[Path, Prediction] = {}
        if pixels:
            with torch.inference_mode():
                inputs = net.preprocess.normalize(torch.stack(list(pixels.values())))
                probabilities = net.model(inputs).softmax(1)
            values, indices = probabilities.topk(top)
            for path, row, classes in zip(pixels, values.tolist(), indices.tolist(), strict=True):
                found[path] = Prediction(path, [net.class_names[i] for i in classes], row)
        for path in chunk:
            yield found[path] if path in found else Prediction(path, [], [], errors[path])


def image_files(path: str | os.PathLike[str]) -> list[Path]:
    """The image itself, or all images in a folder and below, sorted.

    Raises:
        DataError: If there is no such file or folder, or no image in it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    files = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    if not files:
        suffixes = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        raise DataError(f"{path}: no images in this folder ({suffixes})")
    return files


def _check_images(images: ImageData, net: Classifier) -> None:
    if images.num_classes != len(net.class_names):
        raise DataError(
            f"{images.source} has {images.num_classes} classes, {net.path} was trained on "
            f"{len(net.class_names)}"
        )
    if images.class_names != net.class_names:
        pairs = zip(images.class_names, net.class_names, strict=True)
        here, there = next((a, b) for a, b in pairs if a != b)
        raise DataError(
            f"{images.source} has the class {here!r} where {net.path} was trained on {there!r}"
        )
    want = (net.preprocess.channels, net.preprocess.height, net.preprocess.width)
    if images.image_shape != want:
        raise DataError(
            f"{images.source} has images of {'x'.join(map(str, images.image_shape))}, {net.path} "
            f"takes {'x'.join(map(str, want))}"
        )
