"""Backbones of detectors: the residual nets of `torchadder.models` without their classifiers."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from torchadder import models

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")
"""Nets of `torchadder.models` that can be backbones."""

STEM = ("conv1", "bn1", "relu", "maxpool")


class ResNetBackbone(nn.Module):
    """The maps of a residual net's stages, under the names "c2" to "c5".

    Names and shapes of the parameters are those of the classifier of the same name, so that its
    weights fit. The first layer is multiplicative, as everywhere.

    Args:
        name: one of `BACKBONES`.
        is_adder: whether the layers behind the first one are adder layers.
        grad: gradient rule of the adder layers.
        width: channels of the first stage, of `torchadder.models`.
        first_level: 2 to return "c2" to "c5", 3 for "c3" to "c5".

    Attributes:
        channels: number of channels of each map that is returned.

    Raises:
        ValueError: if the name or the rule is unknown, or the width below 1.
    """

    def __init__(
        self, name: str, *, is_adder: bool, grad: str, width: int = 64, first_level: int = 3
    ) -> None:
        super().__init__()
        if name not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {name!r}")
        conv = {"type": "adder", "grad": grad} if is_adder else "conv"
        classifier = models.build(name, conv=conv, num_classes=1, width=width)
        self.name = name
        self.is_adder = is_adder
        for layer in STEM:
            self.add_module(layer, getattr(classifier, layer))
        for stage in range(1, 5):
            self.add_module(f"layer{stage}", getattr(classifier, f"layer{stage}"))
        self.channels = {
            f"c{level}": classifier.num_features >> (5 - level) for level in range(first_level, 6)
        }

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Map (N, 3, H, W) to maps of H / 4 (c2) to H / 32 (c5)."""
        for layer in STEM:
            x = getattr(self, layer)(x)
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            if f"c{stage + 1}" in self.channels:
                maps[f"c{stage + 1}"] = x
        return maps


def check_frozen(frozen_bn: bool, is_adder: bool, force: bool) -> None:
    """Refuse frozen statistics in adder backbones.

    Raises:
        ValueError: if they are asked for and not forced, with the reason.
    """
    if frozen_bn and is_adder and not force:
        raise ValueError(
            "frozen_bn=True with an adder backbone: its layers' outputs have a large variance, "
            "which moves as the weights shrink in fine-tuning; stored statistics no longer fit and "
            "the loss becomes NaN (arXiv 2112.13608, table 1). force_frozen_bn=True does it anyway"
        )


def freeze_batch_norms_(module: nn.Module) -> None:
    """Replace every batch norm by one with fixed statistics, scale and shift, in place.

    The names in the state dict stay, but for `num_batches_tracked`, which has nothing to count.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen.to(child.weight.device))
        else:
            freeze_batch_norms_(child)
