"""One layer of bytes: sums of absolute differences against convolutions, in float and in integers.

Ours takes images as the layer before leaves them, bytes in channels-last form, and gives bytes: the
copy with its padding and the requantisation are inside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadder import functional as AF
from torchadder.bench import int8_rivals
from torchadder.bench.shapes import SHAPES, Shape
from torchadder.bench.timing import median_ms
from torchadder.ops import int8

INT8_SHAPES = (*SHAPES, replace(SHAPES[-2], kernel=1))
"""The layers of the float benchmark and a shortcut of a residual net."""

_SHIFT = 24
_LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@dataclass(frozen=True)
class Int8LayerResult:
    """Medians of one layer, in milliseconds.

    Attributes:
        shape: Name of the layer.
        int8_ms: Our adder layer of bytes.
        conv_ms: torch's conv2d in float32, in the faster layout.
        conv_layout: That layout, "NCHW" or "NHWC".
        adder_ms: Our adder layer in float32, in its faster layout.
        int8_conv_ms: Our convolution of bytes.
        torch_int8_ms: torch's convolution of bytes; None where there is none.
        onnxruntime_int8_ms: onnxruntime's; None where it is not installed.
        ratio_to_conv: int8_ms / conv_ms.
        ratio_to_adder: int8_ms / adder_ms.
        ratio_to_int8_conv: int8_ms over the fastest convolution of bytes.
        pairs_per_second: |x - w| a second.
    """

    shape: str
    int8_ms: float
    conv_ms: float
    conv_layout: str
    adder_ms: float
    int8_conv_ms: float
    torch_int8_ms: float | None
    onnxruntime_int8_ms: float | None
    ratio_to_conv: float
    ratio_to_adder: float
    ratio_to_int8_conv: float
    pairs_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def integer_layers(shape: Shape, x: Tensor, w: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Our layers of bytes, requantised like those of `int8_rivals`.

    Args:
        shape: The layer.
        x: Images, uint8 in channels-last form.
        w: Filters, int8.

    Returns:
        Functions that give bytes, "int8" of differences to the filters + 128 and "int8 conv" of
        products with them.
    """
    rivals = int8_rivals
    factor = rivals.INPUT_SCALE * rivals.FILTER_SCALE / rivals.OUTPUT_SCALE
    multiplier = torch.full((shape.out_channels,), round(factor * 2**_SHIFT), dtype=torch.int32)
    constant = rivals.OUTPUT_ZERO_POINT * 2**_SHIFT + 2 ** (_SHIFT - 1)
    window = ((shape.stride, shape.stride), (shape.padding, shape.padding), (1, 1), 1)
    sums = w.sum((1, 2, 3), dtype=torch.int64)
    operands: dict[str, tuple[Any, Tensor, Tensor]] = {
        "int8": (
            torch.ops.torchadder.adder2d_int8_requantised,
            (w.to(torch.int16) + 128).to(torch.uint8),
            torch.full_like(sums, constant),
        ),
        "int8 conv": (
            torch.ops.torchadder.conv2d_int8_requantised,
            w,
            constant - rivals.INPUT_ZERO_POINT * sums * multiplier,
        ),
    }

    def layer(operator: Any, filters: Tensor, offset: Tensor) -> Callable[[], Tensor]:
        packed = int8.pack(filters)
        shape_of_filters = tuple(filters.shape)
        return lambda: operator(
            x, packed, shape_of_filters, rivals.INPUT_ZERO_POINT, *window, multiplier, offset,
            _SHIFT, 0, 255, None, 0,
        )  # fmt: skip

    return {name: layer(*of) for name, of in operands.items()}


def _functions(shape: Shape) -> dict[str, Callable[[], Tensor]]:
    x, w = torch.randn(shape.input_shape), torch.randn(shape.weight_shape)
    bytes_x = torch.randint(0, 256, shape.input_shape, dtype=torch.uint8)
    bytes_x = bytes_x.contiguous(memory_format=torch.channels_last)
    bytes_w = torch.randint(-127, 128, shape.weight_shape, dtype=torch.int8)
    functions = integer_layers(shape, bytes_x, bytes_w)
    for layout, memory_format in _LAYOUTS.items():
        images, filters = (t.contiguous(memory_format=memory_format) for t in (x, w))
        functions[f"conv {layout}"] = functools.partial(
            F.conv2d, images, filters, None, shape.stride, shape.padding
        )
        functions[f"adder {layout}"] = functools.partial(
            AF.adder2d, images, filters, None, shape.stride, shape.padding
        )
    rivals = {
        "torch int8": int8_rivals.torch_convolution(shape, bytes_x, bytes_w),
        "onnxruntime int8": int8_rivals.onnxruntime_convolution(
            shape, bytes_x, bytes_w, torch.get_num_threads()
        ),
    }
    return functions | {name: run for name, run in rivals.items() if run is not None}


def measure_int8_layer(shape: Shape, seconds: float = 0.5) -> Int8LayerResult:
    """Time one layer in all ways, in turns.

    Args:
        shape: The layer.
        seconds: Time for each way.
    """
    with torch.no_grad():
        times = median_ms(_functions(shape), seconds)
    layout = min(_LAYOUTS, key=lambda layout: times[f"conv {layout}"])
    ours, conv = times["int8"], times[f"conv {layout}"]
    adder = min(times[f"adder {layout}"] for layout in _LAYOUTS)
    convolutions = ("int8 conv", "torch int8", "onnxruntime int8")
    return Int8LayerResult(
        shape=shape.name,
        int8_ms=ours,
        conv_ms=conv,
        conv_layout=layout,
        adder_ms=adder,
        int8_conv_ms=times["int8 conv"],
        torch_int8_ms=times.get("torch int8"),
        onnxruntime_int8_ms=times.get("onnxruntime int8"),
        ratio_to_conv=ours / conv,
        ratio_to_adder=ours / adder,
        ratio_to_int8_conv=ours / min(times[name] for name in convolutions if name in times),
        pairs_per_second=shape.num_taps / (ours / 1e3),
    )
