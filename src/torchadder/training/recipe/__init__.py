"""What a training run is: plain dataclasses that a YAML file or the command line fills.

A `Recipe` is data only. Nothing here imports torch, so the command line can explain and check every
option at once; `torchadder.training.fit` turns a recipe into a run.
"""

from __future__ import annotations

from torchadder.training.recipe.errors import RecipeError
from torchadder.training.recipe.reading import (
    PLACE_KEYS,
    check_keys,
    explain,
    from_dict,
    keys,
    read_recipe,
    suggest,
    takes_text,
)
from torchadder.training.recipe.sections import (
    AdversarialConfig,
    DataConfig,
    DetectionConfig,
    DistillConfig,
    LpConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    SlacConfig,
    TrainerConfig,
)
from torchadder.training.recipe.whole import Recipe

__all__ = [
    "PLACE_KEYS",
    "AdversarialConfig",
    "DataConfig",
    "DetectionConfig",
    "DistillConfig",
    "LpConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Recipe",
    "RecipeError",
    "ScheduleConfig",
    "SlacConfig",
    "TrainerConfig",
    "check_keys",
    "explain",
    "from_dict",
    "keys",
    "read_recipe",
    "suggest",
    "takes_text",
]
