"""Steps of an integer program as JSON values and tensors, there and back.

The JSON names no tensor: what a step's tensors are called follows from its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchadder.quantize.steps import STEPS, Requantisation, Step

_TENSORS = ("weight", "bias", "order")
"""Fields of steps that are tensors, beside those of their requantisation."""


def describe(step: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A step as JSON values; its tensors are added to `tensors`, unless another step has them."""
    described: dict[str, Any] = {"op": step.op}
    own: dict[str, Tensor] = {}
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if isinstance(value, Tensor):
            own[f"{step.name}.{field.name}"] = value
        elif isinstance(value, Requantisation):
            own[f"{step.name}.multiplier"] = value.multiplier
            own[f"{step.name}.offset"] = value.offset
            described[field.name] = {
                name: getattr(value, name)
                for name in ("shift", "low", "high", "residual_multiplier")
            }
        else:
            described[field.name] = value
    if described.get("shared") is None:
        tensors.update(own)
    return described


def read_step(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Step:
    """The step that `describe` has written down."""
    arguments = tuples(described)
    kind = STEPS[arguments.pop("op")]
    name = arguments.get("shared") or arguments["name"]
    if "requantisation" in arguments:
        arguments["requantisation"] = Requantisation(
            tensors[f"{name}.multiplier"], tensors[f"{name}.offset"], **arguments["requantisation"]
        )
    for tensor in _TENSORS:
        if tensor in {field.name for field in dataclasses.fields(kind)}:
            arguments[tensor] = tensors[f"{name}.{tensor}"]
    return kind(**arguments)


def lists(value: Any) -> Any:
    """The same with lists for tuples, as JSON would give it back."""
    if isinstance(value, dict):
        return {name: lists(item) for name, item in value.items()}
    return [lists(item) for item in value] if isinstance(value, list | tuple) else value


def tuples(described: Mapping[str, Any]) -> dict[str, Any]:
    """The same with tuples for lists."""
    return {
        name: tuple(item) if isinstance(item, list) else item for name, item in described.items()
    }
