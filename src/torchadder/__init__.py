"""Adder neural networks for PyTorch: convolutions that compute ``-sum |x - w|``.

>>> import torch, torchadder as ta
>>> layer = ta.nn.Adder2d(3, 16, kernel_size=3, padding=1)
>>> layer(torch.randn(1, 3, 32, 32)).shape
torch.Size([1, 16, 32, 32])

Sub-packages are imported on first use, so that ``import torchadder`` costs no more than torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torchadder import functional as functional
from torchadder import nn as nn
from torchadder import ops as ops

if TYPE_CHECKING:
    from torchadder import awn as awn
    from torchadder import checkpoint as checkpoint
    from torchadder import data as data
    from torchadder import detection as detection
    from torchadder import distill as distill
    from torchadder import energy as energy
    from torchadder import export as export
    from torchadder import lp as lp
    from torchadder import models as models
    from torchadder import optim as optim
    from torchadder import quantize as quantize
    from torchadder import report as report
    from torchadder import robustness as robustness
    from torchadder import slac as slac
    from torchadder import stability as stability
    from torchadder import tasks as tasks
    from torchadder import training as training
    from torchadder.checkpoint import load as load
    from torchadder.checkpoint import save as save
    from torchadder.convert import AdderConfig as AdderConfig
    from torchadder.convert import convert_ as convert_
    from torchadder.quantize import Int8Config as Int8Config
    from torchadder.quantize import quantize_ as quantize_

__version__ = "0.1.0"

_MODULES = (
    "awn",
    "checkpoint",
    "data",
    "detection",
    "distill",
    "energy",
    "export",
    "lp",
    "models",
    "optim",
    "quantize",
    "report",
    "robustness",
    "slac",
    "stability",
    "tasks",
    "training",
)
_NAMES = {
    "AdderConfig": "torchadder.convert",
    "Int8Config": "torchadder.quantize",
    "convert_": "torchadder.convert",
    "load": "torchadder.checkpoint",
    "quantize_": "torchadder.quantize",
    "save": "torchadder.checkpoint",
}

__all__ = [
    "AdderConfig",
    "Int8Config",
    "__version__",
    "awn",
    "checkpoint",
    "convert_",
    "data",
    "detection",
    "distill",
    "energy",
    "export",
    "functional",
    "load",
    "lp",
    "models",
    "nn",
    "ops",
    "optim",
    "quantize",
    "quantize_",
    "report",
    "robustness",
    "save",
    "slac",
    "stability",
    "tasks",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"torchadder.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'torchadder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
