"""Images and labels for training and evaluation, whatever they come from.

`ImageData` is the Lightning data module; `Preprocess` is the deterministic part of its transforms,
which travels with a checkpoint. What a model does with the images is unknown here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchadder.data.images import Preprocess as Preprocess
    from torchadder.data.images import decode as decode
    from torchadder.data.module import ImageData as ImageData
    from torchadder.data.plan import BatchPlan as BatchPlan
    from torchadder.data.sources import DataError as DataError
    from torchadder.data.within_epoch import begins_within_epoch as begins_within_epoch

_NAMES = {
    "BatchPlan": "torchadder.data.plan",
    "DataError": "torchadder.data.sources",
    "ImageData": "torchadder.data.module",
    "Preprocess": "torchadder.data.images",
    "begins_within_epoch": "torchadder.data.within_epoch",
    "decode": "torchadder.data.images",
}

__all__ = [
    "BatchPlan",
    "DataError",
    "ImageData",
    "Preprocess",
    "begins_within_epoch",
    "decode",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'torchadder.data' has no attribute {name!r}")
