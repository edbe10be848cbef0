"""Running ONNX models, and what their rounding may be."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch


def session(model):
    """A session of onnxruntime for a path or a model; warnings of the runtime are errors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 2
    source = str(model) if not hasattr(model, "SerializeToString") else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model, images):
    """The outputs as tensors."""
    opened = model if isinstance(model, onnxruntime.InferenceSession) else session(model)
    (source,) = opened.get_inputs()
    outputs = opened.run(None, {source.name: images.numpy()})
    return [torch.from_numpy(np.asarray(output)) for output in outputs]


def rounding_bound(num_additions, magnitude, dtype):
    """How far a sum may be off whose terms go through so many additions each.

    Recursive summation errs by at most gamma_m times the sum of the magnitudes, gamma_m = m u /
    (1 - m u) (Higham, Accuracy and Stability, Eq. 4.4); the difference in each term adds one
    rounding.
    """
    u = torch.finfo(dtype).eps / 2
    m = num_additions + 1
    return m * u / (1 - m * u) * magnitude


def grown_bytes(call):
    """By how much the resident set was larger at its peak during a call than before it.

    Linux keeps the peak, and forgets it when asked to.
    """
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    forget.write_text("5", encoding="ascii")
    before = _kilobytes(status, "VmRSS")
    call()
    return 1024 * (_kilobytes(status, "VmHWM") - before)


def _kilobytes(status, key):
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1])
