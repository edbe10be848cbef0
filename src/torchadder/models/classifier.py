"""What every classifier of this package has in common: its config, its input check, its outputs."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

from torchadder.models.convolution import describe


class ImageClassifier(nn.Module):
    """Base of the models: images of shape (N, C, H, W) to logits of shape (N, num_classes).

    Attributes:
        config: `{"name": ..., "kwargs": {...}}`, JSON values from which `torchadder.models.build`
            makes the same architecture again. None for a model that was put together by hand.
        built_by: the package whose `build` that is.
        image_shape: (C, H, W) that the architecture was designed for.
        num_features: width of `forward_features`.
        num_classes: width of `forward`.
        min_size: smallest height and width the layers can process.
        head: module that classifies the features in the place of `forward_head`, or None; see
            `replace_head`.
        head_layers: names of the layers that `forward_head` uses.
    """

    config: dict[str, Any] | None = None
    built_by = "torchadder.models"
    head_layers: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        num_classes: int,
        num_features: int,
        image_shape: tuple[int, int, int],
        min_size: int = 1,
    ) -> None:
        super().__init__()
        self.num_classes = positive_int("num_classes", num_classes)
        self.num_features = num_features
        self.image_shape = (positive_int("in_channels", image_shape[0]), *image_shape[1:])
        self.min_size = min_size
        self.head: nn.Module | None = None

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the flattened penultimate features, shape (N, num_features)."""
        raise NotImplementedError

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits of `features`, shape (N, num_classes)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images `x`, shape (N, num_classes).

        Raises:
            ValueError: if `x` is not (N, C, H, W) with the model's C, or too small for its layers.
        """
        features = self.forward_features(x)
        return self.forward_head(features) if self.head is None else self.head(features)

    def replace_head(self, head: nn.Module) -> None:
        """Classify by `head`, (N, num_features) to (N, num_classes); the old layers are removed."""
        for name in self.head_layers if self.head is None else ():
            delattr(self, name)
        self.head = head

    def check_images(self, x: Tensor) -> None:
        """Raise ValueError unless `x` can pass through the layers."""
        channels = self.image_shape[0]
        name = type(self).__name__
        if x.dim() != 4:
            raise ValueError(
                f"{name} wants images of shape (N, {channels}, H, W), got {tuple(x.shape)}"
            )
        if x.shape[1] != channels:
            raise ValueError(
                f"{name} was built with in_channels={channels}, "
                f"got images with {x.shape[1]} channels: {tuple(x.shape)}"
            )
        if x.shape[2] < self.min_size or x.shape[3] < self.min_size:
            raise ValueError(
                f"{name} needs images of at least {self.min_size}x{self.min_size} pixels, "
                f"got {x.shape[2]}x{x.shape[3]}"
            )


P = ParamSpec("P")
M = TypeVar("M", bound=ImageClassifier)


def records_config(builder: Callable[P, M]) -> Callable[P, M]:
    """Let the model that `builder` returns carry the name and the arguments it was built with."""
    signature = inspect.signature(builder)

    @functools.wraps(builder)
    def build(*args: P.args, **kwargs: P.kwargs) -> M:
        model = builder(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for name in ("conv", "head"):
            if name in arguments:
                arguments[name] = describe(arguments[name])
        model.config = {"name": builder.__name__, "kwargs": arguments}
        return model

    return build


def positive_int(name: str, value: int) -> int:
    """Return `value` if it is an integer of at least 1.

    Raises:
        ValueError: otherwise, naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value
