"""Models of which a part can be done in integers, and the rest stays as it is: detectors.

What a model has to offer for it is written here; which models do is not known here.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from torchadder.quantize.net import IntegerNet


@runtime_checkable
class HasCore(Protocol):
    """A model around a net: it prepares what the net reads and makes something of its maps.

    Attributes:
        integers: The integer net that has taken the core's place; None before that.
    """

    integers: IntegerNet | None

    def integer_core(self) -> nn.Module:
        """The net, images (N, C, H, W) to a tuple of maps; its layers have the model's paths.

        Raises:
            QuantizationError: If the model has none that integers could do.
        """
        ...

    def core_images(self, batch: Any) -> Tensor:
        """What the core reads of something that the model takes.

        Raises:
            QuantizationError: If the model does not take it.
        """
        ...

    def use_integers_(self, net: IntegerNet) -> None:
        """Puts an integer net in the place of the core."""
        ...


def integer_net(model: Any) -> IntegerNet | None:
    """The integer net that a model is or has; None for a model in float."""
    if isinstance(model, IntegerNet):
        return model
    return model.integers if isinstance(model, HasCore) else None
