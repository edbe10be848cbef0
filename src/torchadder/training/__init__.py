"""Training runs: a `Recipe` says what, `fit` does it with Lightning's Trainer, `resume` goes on.

Names are imported on first use, so that a recipe can be read and checked without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchadder.training.checkpoint_io import SafetensorsCheckpointIO as SafetensorsCheckpointIO
    from torchadder.training.guard import NonFiniteError as NonFiniteError
    from torchadder.training.recipe import Recipe as Recipe
    from torchadder.training.recipe import RecipeError as RecipeError
    from torchadder.training.run import RunResult as RunResult
    from torchadder.training.run import fit as fit
    from torchadder.training.run import resume as resume

_NAMES = {
    "NonFiniteError": "torchadder.training.guard",
    "Recipe": "torchadder.training.recipe",
    "RecipeError": "torchadder.training.recipe",
    "RunResult": "torchadder.training.run",
    "SafetensorsCheckpointIO": "torchadder.training.checkpoint_io",
    "fit": "torchadder.training.run",
    "resume": "torchadder.training.run",
}

__all__ = [
    "NonFiniteError",
    "Recipe",
    "RecipeError",
    "RunResult",
    "SafetensorsCheckpointIO",
    "fit",
    "resume",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'torchadder.training' has no attribute {name!r}")
