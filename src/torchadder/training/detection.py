"""From a recipe of a detector to its images, its net and its task."""

from __future__ import annotations

import dataclasses
from typing import Any

from torchadder import detection
from torchadder.checkpoint import CheckpointError, load_into
from torchadder.data.detection import DetectionData, DetectionDataError
from torchadder.tasks.detection import Detection
from torchadder.training.recipe import DataConfig, DetectionConfig, Recipe, RecipeError
from torchadder.training.weights import weights_of

OPENING = (
    "format",
    "images",
    "class_names",
    "box_format",
    "first_pixel",
    "objects_column",
)
"""Keys of the section `detection` that say how a source is opened."""

FEEDING = (
    "shorter",
    "longer",
    "flip",
    "train_split",
    "use_difficult",
    "skip_bad",
    "scenes",
)
"""Keys that say how its images are fed."""

BUILDING = (
    "adder",
    "backbone",
    "backbone_width",
    "backbone_weights",
    "neck",
    "neck_channels",
    "num_head_convs",
    "grad",
    "frozen_bn",
    "force_frozen_bn",
)
"""Keys that are arguments of the detector's builder."""


def open_data(recipe: Recipe) -> DetectionData:
    """The images of a recipe, opened.

    Raises:
        DataError: If they cannot be used.
        RecipeError: If a value is out of range.
    """
    try:
        data = data_of(recipe.data, recipe.detection, seed=recipe.seed)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"detection: {error}") from error
    data.setup()
    split = data.val.split
    if not (~split.is_crowd).any():
        raise DetectionDataError(
            f"{data.source}: the {len(split)} validation images (split {split.name!r}) hold no "
            "object, so nothing could be measured"
        )
    return data


def data_of(
    data: DataConfig, config: DetectionConfig, *, seed: int = 0, **options: Any
) -> DetectionData:
    """The images that two sections of a recipe name, not opened yet.

    Args:
        data: The section `data`.
        config: The section `detection`.
        seed: Seed of order and augmentation.
        **options: Further arguments of `DetectionData`.

    Raises:
        ValueError: If a value is out of range.
    """
    return DetectionData(
        data.source,
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        val_split=data.val_split,
        val_fraction=data.val_fraction,
        workers=data.workers,
        image_column=data.image_column,
        num_classes=data.num_classes,
        seed=seed,
        **{key: getattr(config, key) for key in (*OPENING, *FEEDING)},
        **options,
    )


def build_task(recipe: Recipe, data: DetectionData, options: dict[str, Any]) -> Detection:
    """The task of a recipe.

    Args:
        recipe: The recipe.
        data: Its images, opened.
        options: Optimizer and schedule.

    Raises:
        RecipeError: If the detector cannot be built.
        CheckpointError: If initial weights cannot be used.
    """
    model = build_detector(recipe, data.num_classes)
    return Detection(model, truth=data.val.split, metric=recipe.detection.metric, **options)


def build_detector(recipe: Recipe, num_classes: int) -> Any:
    """The detector of a recipe, in training mode.

    Raises:
        RecipeError: If it cannot be built.
        CheckpointError: If initial weights cannot be used.
    """
    config = recipe.detection
    arguments: dict[str, Any] = {key: getattr(config, key) for key in BUILDING}
    for name, values in (("image_mean", recipe.data.mean), ("image_std", recipe.data.std)):
        if values is not None:
            arguments[name] = list(values)
    if config.backbone_weights is not None:
        kind = "adder" if "B" in config.adder else "conv"
        arguments["backbone_weights"] = weights_of(config.backbone_weights.replace("{kind}", kind))
    arguments |= {"min_size": max(config.shorter), "max_size": config.longer}
    try:
        model = detection.build(
            recipe.model.name, num_classes=num_classes, **arguments | recipe.model.kwargs
        )
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise RecipeError(f"model.name = {recipe.model.name}: {error}") from error
    if recipe.model.checkpoint is not None:
        load_into(model, recipe.model.checkpoint)
    return model.train()


def sections_of(metadata: dict[str, Any]) -> tuple[DataConfig, DetectionConfig]:
    """The sections `data` and `detection` that a checkpoint was trained with."""
    known = {field.name for field in dataclasses.fields(DetectionConfig)}
    kept = {key: value for key, value in metadata["detection"].items() if key in known}
    return DataConfig(**metadata["data"]), DetectionConfig(**kept)
