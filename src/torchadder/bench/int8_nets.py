"""Whole nets: the integer net that `quantize` makes against its CNN twin run eagerly by torch.

The nets have random weights, and batch norms with the statistics of random images: what is timed
does not depend on what was learned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchadder import models
from torchadder.bench.timing import median_ms
from torchadder.quantize import IntegerNet, quantize

NETS = {"resnet20": 32, "resnet18": 224, "resnet50": 224}
"""Nets and the height and width of their images."""
BATCHES = (1, 32)

_SEEN_IMAGES = 2


@dataclass(frozen=True)
class Int8NetResult:
    """Medians of one net at one batch size, in milliseconds.

    Attributes:
        net: Name of the net.
        size: Height and width of the images.
        batch: Images a call.
        int8_ms: The integer adder net, float images in, logits out.
        conv_ms: The CNN twin in float32, in the faster layout.
        conv_layout: That layout, "NCHW" or "NHWC".
        adder_ms: The adder net in float32, channels last.
        int8_conv_ms: The CNN twin as an integer net on our kernels.
        ratio_to_conv: int8_ms / conv_ms.
        ratio_to_adder: int8_ms / adder_ms.
        ratio_to_int8_conv: int8_ms / int8_conv_ms.
        weight_bytes: What the filters of the integer net take in memory.
        float_weight_bytes: Likewise of the CNN twin's convolutions and linear layers.
    """

    net: str
    size: int
    batch: int
    int8_ms: float
    conv_ms: float
    conv_layout: str
    adder_ms: float
    int8_conv_ms: float
    ratio_to_conv: float
    ratio_to_adder: float
    ratio_to_int8_conv: float
    weight_bytes: int
    float_weight_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)


def measure_int8_net(
    name: str, size: int, batches: Sequence[int] = BATCHES, seconds: float = 5.0
) -> list[Int8NetResult]:
    """Time one net with its twins, in turns.

    Args:
        name: A model of :mod:`torchadder.models`.
        size: Height and width of the images.
        batches: Images a call.
        seconds: Time for each net at each batch size.

    Returns:
        One result a batch size.
    """
    seen = torch.randn(_SEEN_IMAGES, 3, size, size)
    nets = {layer: _settled(name, layer, seen) for layer in ("adder", "conv")}
    integers = {layer: IntegerNet(quantize(net, [seen])[0]) for layer, net in nets.items()}
    conv_nhwc = copy.deepcopy(nets["conv"]).to(memory_format=torch.channels_last)
    adder_nhwc = nets["adder"].to(memory_format=torch.channels_last)
    filters = (m for m in nets["conv"].modules() if isinstance(m, nn.Conv2d | nn.Linear))
    float_weight_bytes = sum(m.weight.numel() * m.weight.element_size() for m in filters)
    results = []
    for batch in batches:
        images = torch.randn(batch, 3, size, size)
        wide = images.contiguous(memory_format=torch.channels_last)
        functions: dict[str, Callable[[], Tensor]] = {
            "int8": lambda images=images: integers["adder"](images),
            "int8 conv": lambda images=images: integers["conv"](images),
            "conv NCHW": lambda images=images: nets["conv"](images),
            "conv NHWC": lambda images=wide: conv_nhwc(images),
            "adder": lambda images=wide: adder_nhwc(images),
        }
        with torch.no_grad():
            times = median_ms(functions, seconds, warm_up=1)
        layout = min(("NCHW", "NHWC"), key=lambda layout: times[f"conv {layout}"])
        ours, conv = times["int8"], times[f"conv {layout}"]
        results.append(
            Int8NetResult(
                net=name,
                size=size,
                batch=batch,
                int8_ms=ours,
                conv_ms=conv,
                conv_layout=layout,
                adder_ms=times["adder"],
                int8_conv_ms=times["int8 conv"],
                ratio_to_conv=ours / conv,
                ratio_to_adder=ours / times["adder"],
                ratio_to_int8_conv=ours / times["int8 conv"],
                weight_bytes=_packed_bytes(integers["adder"]),
                float_weight_bytes=float_weight_bytes,
            )
        )
    return results


def _settled(name: str, layer: str, images: Tensor) -> nn.Module:
    """A net in evaluation mode whose batch norms have seen images."""
    net = models.build(name, conv=layer)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over what it sees
    with torch.no_grad():
        net(images)
    return net.eval()


def _packed_bytes(net: IntegerNet) -> int:
    return sum(buffer.numel() for name, buffer in net.named_buffers() if name.endswith("packed"))
