"""Trained nets as files that need no Python: programs of torch, ONNX models, C source."""

from torchadder.export.errors import ExportError
from torchadder.export.onnx_model import to_onnx
from torchadder.export.traced import to_torch

__all__ = ["ExportError", "to_onnx", "to_torch"]
