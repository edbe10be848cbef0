"""Heads of torchvision's detectors, with towers of conv or adder layers.

Losses and the last layers (logits, boxes, centre-ness), which stay multiplicative as in the paper,
are torchvision's; only the towers in front of them are built here, under torchvision's names.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import faster_rcnn, fcos, retinanet, rpn

from torchadder.detection.layers import make_norm
from torchadder.models.convolution import ConvFactory
from torchadder.nn import AdderLinear


def tower(
    channels: int, num_convs: int, layer: ConvFactory, norm: str, *, bias: bool | None = None
) -> nn.Sequential:
    """Return `num_convs` times a 3x3 layer, a norm and a ReLU, initialised as in torchvision.

    Layers have a bias if `bias` says so; None: if no norm follows.
    """
    blocks = []
    for _ in range(num_convs):
        has_bias = norm == "none" if bias is None else bias
        conv = layer(channels, channels, 3, padding=1, bias=has_bias)
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        blocks.append(nn.Sequential(conv, make_norm(norm, channels), nn.ReLU()))
    return nn.Sequential(*blocks)


def _widen(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {name: _widen(value) for name, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        return type(outputs)(_widen(value) for value in outputs)
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


class _FullPrecision(nn.Module):
    """Hands on in float32 what a module computes in 16 bits under autocast.

    torchvision computes boxes in the dtype of its heads' outputs. In bfloat16 a position of several
    hundred pixels is a multiple of 2 or 4 of them, and small boxes miss their objects.
    """

    def forward(self, *args: Any) -> Any:
        """Return the same structure of tensors."""
        return _widen(super().forward(*args))


class FCOSHead(_FullPrecision, fcos.FCOSHead):
    """torchvision's, in float32."""


class RetinaNetHead(_FullPrecision, retinanet.RetinaNetHead):
    """torchvision's, in float32."""


class RPNHead(_FullPrecision, rpn.RPNHead):
    """torchvision's, in float32."""


class FastRCNNPredictor(_FullPrecision, faster_rcnn.FastRCNNPredictor):
    """torchvision's, in float32."""


FIRST_DISTANCE = 2.0
"""Distance, in strides, from a point to each side of its box before training."""


def fcos_head(
    channels: int, num_classes: int, *, num_convs: int, layer: ConvFactory, norm: str
) -> FCOSHead:
    """Return FCOS's head, one point a position; convolutions have a bias in front of their norm.

    The distances to the four sides of a box are the ReLU of a layer. torchvision lets that layer
    begin around 0, where a side can be negative nearly everywhere, gets hardly a gradient, and may
    stay 0 for good. Here it begins at `FIRST_DISTANCE`.
    """
    head = FCOSHead(channels, 1, num_classes, num_convs=0)
    assert head.regression_head.bbox_reg.bias is not None
    nn.init.constant_(head.regression_head.bbox_reg.bias, FIRST_DISTANCE)
    bias = layer is nn.Conv2d
    head.classification_head.conv = tower(channels, num_convs, layer, norm, bias=bias)
    head.regression_head.conv = tower(channels, num_convs, layer, norm, bias=bias)
    return head


def retinanet_head(
    channels: int,
    num_anchors: int,
    num_classes: int,
    *,
    num_convs: int,
    layer: ConvFactory,
    norm: str,
) -> RetinaNetHead:
    """Return RetinaNet's head."""
    head = RetinaNetHead(channels, num_anchors, num_classes)
    head.classification_head.conv = tower(channels, num_convs, layer, norm)
    head.regression_head.conv = tower(channels, num_convs, layer, norm)
    return head


def rpn_head(
    channels: int, num_anchors: int, *, num_convs: int, layer: ConvFactory, norm: str
) -> RPNHead:
    """Return the head of Faster R-CNN's proposals."""
    head = RPNHead(channels, num_anchors)
    head.conv = tower(channels, num_convs, layer, norm)
    return head


class BoxHead(nn.Module):
    """Faster R-CNN's two layers on the features of each proposal; names as in torchvision.

    Args:
        in_features: size of a proposal's features.
        num_features: width of both layers.
        is_adder: whether they are adder layers.
        norm: kind of norm behind each.
        grad: gradient rule of the adder layers.
    """

    def __init__(
        self, in_features: int, num_features: int, *, is_adder: bool, norm: str, grad: str
    ) -> None:
        super().__init__()

        def linear(size: int) -> nn.Module:
            if is_adder:
                return AdderLinear(size, num_features, bias=False, grad=grad)
            return nn.Linear(size, num_features, bias=norm == "none")

        self.fc6 = linear(in_features)
        self.norm6 = make_norm(norm, num_features, nn.BatchNorm1d)
        self.fc7 = linear(num_features)
        self.norm7 = make_norm(norm, num_features, nn.BatchNorm1d)

    def forward(self, x: Tensor) -> Tensor:
        """Map proposals (R, C, 7, 7) to features (R, num_features)."""
        x = F.relu(self.norm6(self.fc6(x.flatten(1))))
        return F.relu(self.norm7(self.fc7(x)))
