"""Integer convolutions of other libraries on the same bytes: what VNNI does for a CNN.

torch's is the operator that its compiler puts into quantised nets (`onednn::qconv2d_pointwise`);
onnxruntime's is `QLinearConv` in channels-last form. Where one is missing there is None.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from torchadder.bench.shapes import Shape

INPUT_SCALE, INPUT_ZERO_POINT = 0.1, 9
OUTPUT_SCALE, OUTPUT_ZERO_POINT = 4.0, 100
FILTER_SCALE = 0.01

Run = Callable[[], Tensor]


def torch_convolution(shape: Shape, x: Tensor, w: Tensor) -> Run | None:
    """Convolution of bytes by torch, filters prepared beforehand.

    Args:
        shape: The layer.
        x: Images, uint8 in channels-last form.
        w: Filters, int8.

    Returns:
        A function that gives bytes; None where this torch was built without oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    operators = torch.ops.onednn
    scales = torch.full((shape.out_channels,), FILTER_SCALE)
    zeros = torch.zeros(shape.out_channels, dtype=torch.int64)
    window = ([shape.stride] * 2, [shape.padding] * 2, [1, 1], 1)
    packed = operators.qconv_prepack(
        w, scales, INPUT_SCALE, INPUT_ZERO_POINT, *window, list(x.shape)
    )

    def run() -> Tensor:
        return operators.qconv2d_pointwise(
            x, INPUT_SCALE, INPUT_ZERO_POINT, packed, scales, zeros, None, *window,
            OUTPUT_SCALE, OUTPUT_ZERO_POINT, torch.uint8, "none", [], "",
        )  # fmt: skip

    return run


def onnxruntime_convolution(shape: Shape, x: Tensor, w: Tensor, threads: int) -> Run | None:
    """Likewise by onnxruntime; None where it is not installed.

    Args:
        shape: The layer.
        x: Images, uint8 in channels-last form.
        w: Filters, int8.
        threads: Number of threads.
    """
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return None
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    images = x.permute(0, 2, 3, 1).numpy()
    O = shape.out_channels
    constants = {
        "x_scale": np.float32(INPUT_SCALE),
        "x_zero_point": np.uint8(INPUT_ZERO_POINT),
        "w": w.numpy(),
        "w_scale": np.full(O, FILTER_SCALE, np.float32),
        "w_zero_point": np.zeros(O, np.int8),
        "y_scale": np.float32(OUTPUT_SCALE),
        "y_zero_point": np.uint8(OUTPUT_ZERO_POINT),
    }
    node = helper.make_node(
        "QLinearConv",
        ["x", *constants],
        ["y"],
        domain="com.microsoft",
        channels_last=1,
        kernel_shape=[shape.kernel] * 2,
        strides=[shape.stride] * 2,
        pads=[shape.padding] * 4,
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, list(images.shape))],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would go on spinning on the cores that the next side is timed on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run() -> Tensor:
        (y,) = session.run(None, {"x": images})
        return torch.from_numpy(y).permute(0, 3, 1, 2)

    return run
