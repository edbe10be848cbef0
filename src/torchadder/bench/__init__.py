"""Measures the operator against convolution: shapes, timing, baselines, a table.

Measures and reports; asserts nothing. See ``torchadder bench``.
"""

from torchadder.bench.layers import LayerResult as LayerResult
from torchadder.bench.layers import measure_layer as measure_layer
from torchadder.bench.shapes import SHAPES as SHAPES
from torchadder.bench.shapes import Shape as Shape
from torchadder.bench.step import StepResult as StepResult
from torchadder.bench.step import measure_step as measure_step

__all__ = ["SHAPES", "LayerResult", "Shape", "StepResult", "measure_layer", "measure_step"]
