"""True float32 in the convolutions that operators of ours are made of, on NVIDIA GPUs.

torch lets cuDNN round the factors of a product to TF32 unless it is told. Its settings belong to
the process, so they are changed for the length of a call, under a lock, and put back as they were:
a setting that came from a more general one goes on following that.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_allow_tf32 = False
_lock = threading.RLock()  # autograd has a thread a device


def allow_tf32_in_weight_gradient(allow: bool) -> None:
    """Let the convolution behind the weight gradient use TF32 on NVIDIA GPUs; off at the start.

    Likewise those behind ``|x - w|^2``. TF32 keeps 10 bits of each factor's mantissa: faster by a
    multiple, with errors about 1e-3 of the terms. torch's own switch for convolutions, which is on
    by default, does not count here: a layer that multiplies nothing in its forward should not lose
    digits because of it.

    Examples:
        >>> import torchadder as ta
        >>> ta.ops.allow_tf32_in_weight_gradient(False)
    """
    global _allow_tf32
    _allow_tf32 = bool(allow)


@contextlib.contextmanager
def of_convolutions(device: torch.device) -> Iterator[None]:
    """True float32 in the convolutions of cuDNN, unless the user said otherwise."""
    if device.type != "cuda" or torch.version.hip:
        yield
        return
    with _lock:
        restore = _set("tf32" if _allow_tf32 else "ieee")
        try:
            yield
        finally:
            for settings, value in restore:
                settings.fp32_precision = value


def _set(wanted: str) -> list[tuple]:
    """Make convolutions compute so; the settings changed, with the values to put back.

    What a convolution inherits cannot be told from what it was given, and the inheritance that it
    starts with cannot be given back. So the setting of all of cuDNN is tried first.
    """
    cudnn = torch.backends.cudnn
    conv = cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    if (before == "tf32") == (wanted == "tf32"):  # "none" is true float32, too
        return []
    general = cudnn.fp32_precision
    if general == torch.backends.fp32_precision:  # type: ignore[attr-defined]
        general = "none"  # inherited from the setting of all backends
    cudnn.fp32_precision = wanted
    if conv.fp32_precision == wanted:
        return [(cudnn, general)]
    cudnn.fp32_precision = general
    conv.fp32_precision = wanted
    return [(conv, before)]
