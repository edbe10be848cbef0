"""From a recipe to what is trained: the images, the nets and the task that joins them."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchadder import awn, models
from torchadder.awn.config import resolve
from torchadder.checkpoint import CheckpointError, load_into
from torchadder.data import ImageData
from torchadder.data.epochs import EpochData
from torchadder.distill import Distiller, find_method, options_of, share_initial_values
from torchadder.lp import set_exponent_
from torchadder.nn import AdderModule
from torchadder.tasks import (
    AdversarialClassification,
    Classification,
    Distillation,
    Ramp,
    SlacClassification,
    TrainingTask,
)
from torchadder.training.recipe import (
    ModelConfig,
    Recipe,
    RecipeError,
)


def open_data(recipe: Recipe) -> EpochData:
    """The images of a recipe, opened.

    Raises:
        DataError: If they cannot be used.
    """
    if recipe.method == "detection":
        from torchadder.training import detection

        return detection.open_data(recipe)
    return open_images(recipe)


def open_images(recipe: Recipe) -> ImageData:
    """The images of a recipe for classification, opened.

    Raises:
        DataError: If they cannot be used.
    """
    data = ImageData(**dataclasses.asdict(recipe.data), seed=recipe.seed)
    data.setup()
    return data


def without_initial_weights(recipe: Recipe) -> Recipe:
    """The recipe of nets that get the state of a run: where they began does not matter any more.

    Their initial weights, a fixed teacher's too, may have been moved or deleted since.
    """
    recipe = copy.deepcopy(recipe)
    recipe.model.checkpoint = None
    recipe.distill.teacher_checkpoint = None
    recipe.detection.backbone_weights = None
    return recipe


def build_task(recipe: Recipe, data: Any) -> TrainingTask:
    """The task of a recipe: its net (or nets) with loss, optimizer and schedule.

    Args:
        recipe: The recipe.
        data: Its images, as `open_data` opens them.

    Raises:
        RecipeError: If the net cannot be built or does not take the images.
        CheckpointError: If initial weights cannot be used.
    """
    if recipe.method == "detection":
        from torchadder.training import detection

        return detection.build_task(recipe, data, optimizer_options(recipe))
    return _build_classification(recipe, data)


def optimizer_options(recipe: Recipe) -> dict[str, Any]:
    """Optimizer and schedule of a recipe, as every task takes them."""
    return {
        **dataclasses.asdict(recipe.optimizer),
        "schedule": recipe.schedule.name,
        "interval": recipe.schedule.interval,
        "min_lr": recipe.schedule.min_lr,
        "warmup": recipe.schedule.warmup,
    }


def checkpoint_metadata(recipe: Recipe, data: Any) -> dict[str, Any]:
    """What `evaluate` and `predict` must know about the images a checkpoint was trained on."""
    metadata = {
        "recipe": recipe.name,
        "data": dataclasses.asdict(recipe.data),
        "class_names": data.class_names,
    }
    if recipe.method == "detection":
        return metadata | {"detection": dataclasses.asdict(recipe.detection)}
    return metadata | {"preprocess": data.preprocess.to_dict()}


def _build_classification(recipe: Recipe, data: ImageData) -> Classification:
    student = build_model(recipe.model, data, "model")
    _check_exponent(recipe, student)
    options = {"num_classes": data.num_classes, **optimizer_options(recipe)}
    if recipe.method == "supervised":
        normalise_weights(recipe.model, student)
    if recipe.model.head == "slac":
        return SlacClassification(student, **options, **dataclasses.asdict(recipe.slac))
    if recipe.adversarial.attack != "none":
        return AdversarialClassification(
            student,
            mean=data.preprocess.mean,
            std=data.preprocess.std,
            seed=recipe.seed,
            **options,
            **dataclasses.asdict(recipe.adversarial),
        )
    if recipe.method == "supervised":
        return Classification(student, **options)
    config = recipe.distill
    length = config.ramp_epochs
    if isinstance(length, float):
        length *= recipe.epochs
    return Distillation(
        build_distiller(recipe, data, student),
        ramp=Ramp(config.ramp, length, config.ramp_accuracy),
        **options,
    )


def _check_exponent(recipe: Recipe, model: nn.Module) -> None:
    """Refuses an exponent that falls in a net that has none."""
    if recipe.lp.schedule == "none":
        return
    try:
        set_exponent_(model, recipe.lp.start, clip=recipe.lp.clip)
    except ValueError as error:
        raise RecipeError(f"lp.schedule = {recipe.lp.schedule!r}: {error}") from error


def build_distiller(recipe: Recipe, data: ImageData, student: nn.Module) -> Distiller:
    """The loss of a recipe whose method is not "supervised", with its teacher.

    The weights of the student are normalised here, if they are to be: after it has taken over
    initial values, and before a method copies it. Both nets see a blank image, so that those that
    cannot be compared are found before a run begins.

    Raises:
        RecipeError: If the teacher cannot be built, or the method cannot be used on these nets.
        CheckpointError: If the teacher's weights cannot be used.
    """
    config = recipe.distill
    method = find_method(recipe.method)
    options = {name: getattr(config, name) for name in options_of(recipe.method)}
    teacher = None
    if method.wants_teacher:
        of_teacher = dataclasses.replace(
            recipe.model,
            name=config.teacher_model or recipe.model.name,
            kwargs=recipe.model.kwargs if config.teacher_kwargs is None else config.teacher_kwargs,
            conv=config.teacher_conv,
            weight_norm=None,
            checkpoint=config.teacher_checkpoint,
        )
        try:
            teacher = build_model(of_teacher, data, "distill.teacher")
        except CheckpointError as error:
            advice = _where_to_get(Path(config.teacher_checkpoint or ""))
            raise CheckpointError(f"distill.teacher_checkpoint = {error}{advice}") from error
    try:
        if teacher is not None and config.shared_init:
            share_initial_values(student, teacher)
        normalise_weights(recipe.model, student)
        distiller = method(student, teacher, **options)
        distiller.check_agreement(torch.zeros(1, *data.image_shape))
    except (ValueError, RuntimeError) as error:
        raise RecipeError(f"method {recipe.method}: {error}") from error
    return distiller


def _where_to_get(checkpoint: Path) -> str:
    """The command that writes a missing file of a run folder, for the end of an error message.

    A folder that is called as recipes are is taken for a run of the recipe of its name.
    """
    folder = checkpoint.parent.parent
    if checkpoint.exists() or checkpoint.parent.name != "checkpoints":
        return ""
    is_recipe = re.fullmatch(r"[a-z0-9]+_[a-z0-9]+_[\w.]+", folder.name)
    name = folder.name if is_recipe else "RECIPE"
    return f"; train it first: torchadder train {name} --output {folder}"


def normalise_weights(config: ModelConfig, model: nn.Module) -> None:
    """Normalise the weights of the inner layers of a net, adder layers or not, as its recipe says.

    In a CNN these are the layers that are adder layers in the adder net of its name, so that the
    two can be compared.

    Raises:
        RecipeError: If they cannot be normalised.
    """
    awn_config = resolve(config.weight_norm)
    if awn_config is None:
        return
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        twin = models.build(config.name, **{**config.kwargs, "conv": "adder"})
    inner = {name for name, layer in twin.named_modules() if isinstance(layer, AdderModule)}
    try:
        awn.apply_(model, awn_config, lambda layer, name: name in inner)
    except ValueError as error:
        raise RecipeError(f"model.weight_norm = {config.weight_norm!r}: {error}") from error


def build_model(config: ModelConfig, data: ImageData, key: str) -> nn.Module:
    """A net for the given images.

    Args:
        config: Which net.
        data: The images.
        key: What to call the net in an error.

    Raises:
        RecipeError: If the net cannot be built or does not take the images.
        CheckpointError: If the initial weights cannot be used.
    """
    channels, height, width = data.image_shape
    arguments = {
        "num_classes": data.num_classes,
        "in_channels": channels,
        "conv": config.conv,
        **config.kwargs,
    }
    if config.head is not None:
        arguments["head"] = config.head
    try:
        model = models.build(config.name, **arguments)
        model.eval()
        with torch.no_grad():
            num_outputs = model(torch.zeros(1, channels, height, width)).shape[1]
    except (ValueError, TypeError, RuntimeError) as error:
        raise RecipeError(
            f"{key} = {config.name} on images of {channels}x{height}x{width}: {error}"
        ) from error
    if num_outputs != data.num_classes:
        raise RecipeError(
            f"{key} = {config.name} has {num_outputs} outputs: {data.num_classes} are wanted, one "
            "for each class of the data"
        )
    if config.checkpoint is not None:
        load_into(model, config.checkpoint)
    return model.train()
