"""Classifiers with the layer class as an argument: one definition for CNN and adder net.

Every builder takes `conv`, the class of the inner layers: `torchadder.nn.Adder2d` (the default),
`torch.nn.Conv2d`, any callable with the signature of `torch.nn.Conv2d`, such as
`functools.partial(Adder2d, grad="sign")`, or what a recipe can spell: "adder", "conv" and
`{"type": "adder", "grad": "sign"}`. First and last layer are multiplicative whatever `conv` is.
Two nets of the same name have the same module names, parameter names and shapes; the names are
the state-dict contract and do not change.

This package knows nothing of training, data or files: `torchadder.checkpoint` stores models.
"""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from torchadder.models import published
from torchadder.models.classifier import ImageClassifier
from torchadder.models.convolution import CONVOLUTIONS, ConvFactory, ConvSpec
from torchadder.models.lenet import LeNet5BN, lenet5_bn
from torchadder.models.resnet import (
    CifarResNet,
    ImageNetResNet,
    ResNet,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet50,
    resnet101,
)
from torchadder.models.vgg import VGGSmall, vgg_small
from torchadder.slac import SlacHead

__all__ = [
    "CONVOLUTIONS",
    "HEADS",
    "MODELS",
    "CifarResNet",
    "ConvFactory",
    "ConvSpec",
    "ImageClassifier",
    "ImageNetResNet",
    "LeNet5BN",
    "ResNet",
    "VGGSmall",
    "build",
    "lenet5_bn",
    "published",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "resnet101",
    "vgg_small",
]

MODELS: dict[str, Callable[..., ImageClassifier]] = {
    "lenet5_bn": lenet5_bn,
    "vgg_small": vgg_small,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
}
"""Every model of the package by the name that recipes, checkpoints and the command line use."""


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"slac": SlacHead}
"""Classifiers that `build` can put in the place of a model's own, made from the number of features
and of classes."""


def build(name: str, **kwargs: Any) -> ImageClassifier:
    """Build the model called `name`, as recipes and checkpoints do.

    Args:
        name: a key of `MODELS`.
        **kwargs: arguments of the builder; `conv` may be "conv", "adder" or a mapping, and `head`
            a key of `HEADS` for every model.

    Raises:
        ValueError: if `name` is unknown (the message names the nearest ones) or an argument has
            a wrong value.
        TypeError: if the builder takes no such argument, or `conv` is no layer class.

    >>> build("resnet20", conv="conv", num_classes=100).config["name"]
    'resnet20'
    """
    if name not in MODELS:
        nearest = difflib.get_close_matches(str(name), MODELS) or list(MODELS)
        raise ValueError(f"model {name!r} is unknown; the nearest names are {', '.join(nearest)}")
    builder = MODELS[name]
    head = kwargs.get("head")
    if isinstance(head, str) and head in HEADS:
        model = build(name, **{key: value for key, value in kwargs.items() if key != "head"})
        model.replace_head(HEADS[head](model.num_features, model.num_classes))
        assert model.config is not None
        model.config["kwargs"]["head"] = head
        return model
    accepted = inspect.signature(builder).parameters
    unknown = [key for key in kwargs if key not in accepted]
    if unknown:
        raise TypeError(
            f"model {name!r} takes no argument {', '.join(map(repr, unknown))}; "
            f"it takes {', '.join(accepted)}"
        )
    return builder(**kwargs)
