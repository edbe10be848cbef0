"""Trained nets as files that need no Python: programs of torch, ONNX models, C source.

`traced` writes a net down with `torch.export`, `onnx_model` translates that, and `c` makes
C99 of an integer net (`torchadder.quantize_`). How nets are trained or quantised is not known here.
"""

from torchadder.export.c import CReport, to_c
from torchadder.export.errors import ExportError
from torchadder.export.onnx_model import to_onnx
from torchadder.export.traced import to_torch

__all__ = ["CReport", "ExportError", "to_c", "to_onnx", "to_torch"]
