"""The section `distill`: defaults of the methods, and what does not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

from torchadder.training.recipe.errors import RecipeError, require
from torchadder.training.recipe.sections import DistillConfig

_RAMP_KEYS = ("ramp", "ramp_epochs", "ramp_accuracy")
_TEACHER_KEYS = (
    "shared_init",
    "teacher_model",
    "teacher_kwargs",
    "teacher_conv",
    "teacher_checkpoint",
)

_SPELLED_OUT = ("alpha", "beta", "temperature", "kernel", "linear_map", "progressive")
"""Keys that files had whatever their method, before there were other methods than PKKD."""


def complete(method: str, config: DistillConfig) -> DistillConfig:
    """The section with the method's defaults filled in.

    Args:
        method: `Recipe.method`.
        config: The section as it was written.

    Raises:
        RecipeError: On an unknown method, or a key that it does not know.
    """
    from torchadder.distill import registry

    if method == "supervised" and _is_spelled_out(config):
        config = dataclasses.replace(config, **dict.fromkeys(_SPELLED_OUT, None))
    known: dict[str, Any] = {}
    is_plain = method in ("supervised", "detection")
    if not is_plain:
        try:
            known = registry.options_of(method)
        except ValueError as error:
            raise RecipeError(f"method: {error} (or 'supervised', 'detection')") from error
    wants_teacher = not is_plain and registry.find_method(method).wants_teacher
    shared = _TEACHER_KEYS if wants_teacher else ()
    shared += _RAMP_KEYS if "alpha" in known else ()
    filled = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name in known:
            filled[item.name] = known[item.name] if value is None else value
        elif item.name in shared:
            continue
        elif value != item.default:
            owners = registry.methods_with(item.name)
            if item.name in _RAMP_KEYS:
                owners = registry.methods_with("alpha")
            elif item.name in _TEACHER_KEYS:
                owners = [name for name, each in registry.METHODS.items() if each.wants_teacher]
            raise RecipeError(
                f"distill.{item.name} = {value!r}: method {method} does not know this key; "
                f"it is known to {', '.join(owners)}"
            )
    return dataclasses.replace(config, **filled)


def _is_spelled_out(config: DistillConfig) -> bool:
    """Whether a section holds PKKD's defaults, as files of plain training did at first."""
    from torchadder.distill import registry

    defaults = registry.options_of("pkkd")
    return all(getattr(config, key) == defaults[key] for key in _SPELLED_OUT)


def check_distill(distill: DistillConfig, epochs: int, checkpoint: str | None) -> None:
    """Refuses values out of range, and two sources of the student's initial values.

    Args:
        distill: The section, defaults filled in.
        epochs: Epochs of the run.
        checkpoint: `model.checkpoint`.

    Raises:
        RecipeError: Naming the key.
    """
    from torchadder.ops.pkkd import MAX_LIMIT

    for key in ("alpha", "beta"):
        weight = getattr(distill, key)
        is_weight = weight is None or 0 <= weight < float("inf")
        require(is_weight, f"distill.{key}", weight, "a finite number of at least 0")
    temperature, cycles, share = distill.temperature, distill.cycles, distill.ramp_accuracy
    is_positive = temperature is None or temperature > 0
    require(is_positive, "distill.temperature", temperature, "> 0")
    limit = distill.exponent_limit
    is_limit = limit is None or 0 < limit <= MAX_LIMIT
    wanted = f"a number above 0, up to {MAX_LIMIT:.0f}"
    require(is_limit, "distill.exponent_limit", limit, wanted)
    fits = cycles is None or 2 <= cycles <= epochs
    require(fits, "distill.cycles", cycles, f"2 .. epochs = {epochs}")
    require(
        not distill.shared_init or checkpoint is None,
        "distill.shared_init",
        distill.shared_init,
        "false, because model.checkpoint has the student's initial values,",
    )
    length = distill.ramp_epochs
    is_length = length >= 1 if isinstance(length, int) else 0 < length <= 1
    wanted = "a whole number of epochs, such as 5, or a share of the run in (0, 1], such as 0.125,"
    require(is_length, "distill.ramp_epochs", length, wanted)
    require(0 < share <= 1, "distill.ramp_accuracy", share, "a share above 0, up to 1")
    require(
        distill.ramp != "teacher" or bool(distill.progressive),
        "distill.ramp",
        distill.ramp,
        "none or epochs (a fixed teacher makes no progress)",
    )
    require(
        distill.progressive is not False or distill.teacher_checkpoint is not None,
        "distill.teacher_checkpoint",
        distill.teacher_checkpoint,
        "a file of trained weights (distill.progressive is false, so the teacher is not trained)",
    )
