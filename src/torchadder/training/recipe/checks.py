"""What a recipe may say: ranges of its values, and keys that exclude each other.

Each function looks at one concern and raises `RecipeError`, which names the key.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from torchadder.training.recipe.errors import RecipeError, require

if TYPE_CHECKING:
    from torchadder.training.recipe.sections import (
        DataConfig,
        OptimizerConfig,
        ScheduleConfig,
        TrainerConfig,
    )
    from torchadder.training.recipe.whole import Recipe

_NOT_OF_DETECTION = (
    "data.augment",
    "data.image_size",
    "data.label_column",
    "data.device_cache",
    "data.streaming",
    "model.conv",
    "model.weight_norm",
    "model.head",
    "lp.schedule",
    "adversarial.attack",
    "trainer.compile",
    "trainer.cuda_graph",
    "trainer.record_stability",
)
"""Keys that mean nothing in detection, and are refused there."""


def check_run(recipe: Recipe) -> None:
    """Name, seed and number of epochs."""
    is_name = bool(recipe.name) and not set(recipe.name) & set("/\\\0")
    require(is_name, "name", recipe.name, "a name without slashes")
    require(0 <= recipe.seed < 2**32, "seed", recipe.seed, "0 .. 4294967295")
    require(recipe.epochs >= 1, "epochs", recipe.epochs, "at least 1")


def check_data(data: DataConfig) -> None:
    """Counts, shares and pixel statistics."""
    for key in ("batch_size", "shuffle_buffer"):
        _at_least("data", data, key, 1)
    for key, smallest in (("image_size", 1), ("workers", 0), ("eval_batch_size", 1)):
        if getattr(data, key) is not None:
            _at_least("data", data, key, smallest)
    part = data.val_fraction
    require(0 < part < 1, "data.val_fraction", part, "between 0 and 1")
    are_positive = data.std is None or all(value > 0 for value in data.std)
    require(are_positive, "data.std", data.std, "positive numbers")


def check_optimizer(optimizer: OptimizerConfig) -> None:
    """Rates and penalties."""
    require(optimizer.lr > 0, "optimizer.lr", optimizer.lr, "a positive number")
    for key in ("momentum", "weight_decay"):
        _at_least("optimizer", optimizer, key, 0)
    eta = optimizer.eta
    require(eta is None or eta > 0, "optimizer.eta", eta, "a positive number or null")


def check_schedule(schedule: ScheduleConfig, lr: float) -> None:
    """The lowest rate, and the steps up to `lr`."""
    wanted = f"0 .. optimizer.lr={lr}"
    require(0 <= schedule.min_lr <= lr, "schedule.min_lr", schedule.min_lr, wanted)
    _at_least("schedule", schedule, "warmup", 0)


def check_trainer(trainer: TrainerConfig) -> None:
    """Counts and limits of the loop, and what a recorded step excludes."""
    for key in ("accumulate", "check_val_every"):
        _at_least("trainer", trainer, key, 1)
    for key, smallest in (("patience", 1), ("record_stability", 0)):
        if getattr(trainer, key) is not None:
            _at_least("trainer", trainer, key, smallest, "at least {}, or null")
    if trainer.threads is not None:
        _at_least("trainer", trainer, "threads", 1)
    for key in ("limit_train_batches", "limit_val_batches"):
        limit = getattr(trainer, key)
        is_limit = limit >= 1 if isinstance(limit, int) else 0 < limit <= 1
        wanted = "an int of at least 1 or a float in (0, 1]"
        require(is_limit, f"trainer.{key}", limit, wanted)
    clip = trainer.gradient_clip
    require(clip is None or clip > 0, "trainer.gradient_clip", clip, "a positive number or null")
    precision = trainer.precision
    require(
        not precision.endswith("-true") or precision in ("32-true", "64-true"),
        "trainer.precision",
        precision,
        "32-true, 64-true, bf16-mixed or 16-mixed (weights and sums in 16 bits are too coarse)",
    )
    devices = trainer.devices
    is_number = devices == -1 or not isinstance(devices, int) or devices >= 1
    require(is_number, "trainer.devices", devices, "at least 1, or auto")
    minutes = trainer.checkpoint_minutes
    require(
        minutes is None or 0 <= minutes < math.inf,
        "trainer.checkpoint_minutes",
        minutes,
        "0 or more minutes, or null",
    )
    require(trainer.timeout > 0, "trainer.timeout", trainer.timeout, "a positive number")
    if trainer.cuda_graph:
        require(
            trainer.accumulate == 1,
            "trainer.accumulate",
            trainer.accumulate,
            "1 (a replayed step, trainer.cuda_graph, writes its gradients over those of the batch "
            "before)",
        )
        require(
            trainer.compile not in ("reduce-overhead", "max-autotune"),
            "trainer.compile",
            trainer.compile,
            "a mode without CUDA graphs of its own (trainer.cuda_graph makes one of the whole "
            "step)",
        )


def check_lp_and_slac(recipe: Recipe) -> None:
    """The exponents over time, and the head with a loss of its own."""
    lp, slac, model = recipe.lp, recipe.slac, recipe.model
    require(1 < lp.start <= 2, "lp.start", lp.start, "above 1, up to 2")
    require(0 < lp.share <= 1, "lp.share", lp.share, "a share above 0, up to 1")
    _at_least("lp", lp, "steps", 1)
    patience = recipe.trainer.patience
    require(
        lp.schedule == "none" or patience is None,
        "trainer.patience",
        patience,
        f"null, because lp.schedule is {lp.schedule}: a run that ends early may end above p = 1,",
    )
    require(
        lp.schedule == "none" or recipe.method != "snapshot",
        "lp.schedule",
        lp.schedule,
        "none, because method is snapshot, whose teacher would keep the first exponent,",
    )
    for key in ("nll_weight", "ac_weight"):
        weight = getattr(slac, key)
        is_weight = 0 <= weight < float("inf")
        require(is_weight, f"slac.{key}", weight, "a finite number of at least 0")
    require(0 < slac.sigma_rate < float("inf"), "slac.sigma_rate", slac.sigma_rate, "> 0")
    if model.head is not None:
        require(
            "head" not in model.kwargs,
            "model.kwargs.head",
            model.kwargs.get("head"),
            f"no second head beside model.head = {model.head!r}",
        )
        require(
            recipe.method == "supervised",
            "model.head",
            model.head,
            f"null, because method is {recipe.method}: the loss of the head is that of labels "
            "alone",
        )


def check_weight_norm(recipe: Recipe) -> None:
    """How weights are normalised, and with what it cannot be combined."""
    from torchadder.awn.config import resolve

    spec = recipe.model.weight_norm
    try:
        resolve(spec)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"model.weight_norm = {spec!r}: {error}") from error
    schedule = recipe.lp.schedule
    require(
        spec is None or schedule == "none",
        "model.weight_norm",
        spec,
        f"null, because lp.schedule is {schedule}: its layers change their class",
    )


def check_adversarial(recipe: Recipe) -> None:
    """The attack on the training images."""
    attack = recipe.adversarial
    require(0 < attack.epsilon <= 1, "adversarial.epsilon", attack.epsilon, "above 0, up to 1")
    is_step = attack.step is None or 0 < attack.step < float("inf")
    require(is_step, "adversarial.step", attack.step, "a positive number or null")
    _at_least("adversarial", attack, "iterations", 1)
    _at_least("adversarial", attack, "val_iterations", 0)
    is_plain = recipe.method == "supervised" and recipe.model.head is None
    require(
        attack.attack == "none" or is_plain,
        "adversarial.attack",
        attack.attack,
        "none, unless method is supervised and model.head null",
    )


def check_detection(recipe: Recipe) -> None:
    """The section `detection`, or the keys that mean nothing beside it."""
    detection = recipe.detection
    if recipe.method != "detection":
        for key, default in dataclasses.asdict(type(detection)()).items():
            value = getattr(detection, key)
            wanted = f"{default!r}, because method is {recipe.method},"
            require(value == default, f"detection.{key}", value, wanted)
        return
    for key in _NOT_OF_DETECTION:
        section, _, name = key.partition(".")
        values = getattr(recipe, section)
        value, default = getattr(values, name), getattr(type(values)(), name)
        require(value == default, key, value, f"{default!r}, because method is detection,")
    for key, sides in (("shorter", detection.shorter), ("longer", [detection.longer])):
        fits = bool(sides) and all(side >= 1 for side in sides)
        require(fits, f"detection.{key}", getattr(detection, key), "pixels of at least 1")
    require(0 <= detection.flip <= 1, "detection.flip", detection.flip, "a share in 0..1")
    first = detection.first_pixel
    require(first in (0, 1), "detection.first_pixel", first, "0 or 1")


def _at_least(
    section: str, values: object, key: str, smallest: int, wanted: str = "at least {}"
) -> None:
    value = getattr(values, key)
    require(value >= smallest, f"{section}.{key}", value, wanted.format(smallest))
