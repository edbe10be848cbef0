"""Which layer class a model is built from: the classes a user may name, inject or store as JSON.

Models know one interface, the call signature of `torch.nn.Conv2d`; what the layer computes is
decided here and nowhere else in the models.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from torchadder.lp import LpAdder2d
from torchadder.nn import Adder2d, AdderModule

ConvFactory = Callable[..., nn.Module]
"""Anything called like `torch.nn.Conv2d` that returns a module."""

ConvSpec = str | Mapping[str, Any] | ConvFactory
"""A factory, a name ("conv", "adder") or a mapping {"type": name, **extra arguments}."""

CONVOLUTIONS: dict[str, ConvFactory] = {
    "adder": Adder2d,
    "adder_lp": LpAdder2d,
    "conv": nn.Conv2d,
}


GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "bias")
"""Arguments that a model gives to each of its layers."""


def resolve(spec: ConvSpec, argument: str = "conv") -> ConvFactory:
    """Return the layer factory that `spec` stands for.

    Args:
        spec: a class or callable with the signature of `torch.nn.Conv2d`, one of the names in
            `CONVOLUTIONS`, or a mapping such as `{"type": "adder", "grad": "sign"}`.
        argument: name of the argument in error messages.

    Raises:
        ValueError: if a name is unknown, a mapping has no "type", or an extra argument is one
            that the model sets for each layer (`GEOMETRY`).
        TypeError: if `spec` is neither a name, a mapping nor a layer factory.

    >>> resolve("conv")
    <class 'torch.nn.modules.conv.Conv2d'>
    """
    names = ", ".join(repr(name) for name in CONVOLUTIONS)
    if isinstance(spec, str):
        if spec not in CONVOLUTIONS:
            raise ValueError(f"{argument}={spec!r} is unknown; wanted one of {names} or a class")
        return CONVOLUTIONS[spec]
    if isinstance(spec, Mapping):
        extra = dict(spec)
        kind = extra.pop("type", None)
        if not isinstance(kind, str) or kind not in CONVOLUTIONS:
            raise ValueError(f"{argument}={dict(spec)!r} needs a 'type' that is one of {names}")
        _refuse_geometry(extra, argument)
        return functools.partial(CONVOLUTIONS[kind], **extra) if extra else CONVOLUTIONS[kind]
    if isinstance(spec, nn.Module) or not callable(spec):
        raise TypeError(
            f"{argument} must be a class or callable with the signature of torch.nn.Conv2d, "
            f"or one of {names}, got {_short(spec)}"
        )
    if isinstance(spec, functools.partial):
        _refuse_geometry(spec.keywords, argument)
    return spec


def _refuse_geometry(extra: Mapping[str, Any], argument: str) -> None:
    taken = [name for name in GEOMETRY if name in extra]
    if taken:
        raise ValueError(f"{argument} sets {', '.join(taken)}, which the model sets for each layer")


def describe(spec: ConvSpec) -> str | dict[str, Any]:
    """Return `spec` as a JSON value: the inverse of `resolve` for everything it can name.

    Factories outside `CONVOLUTIONS` become `{"type": "package.module.name", ...}`: a note for the
    reader of a checkpoint, which `resolve` refuses (a file must not choose the code to import).

    >>> import functools
    >>> describe(functools.partial(Adder2d, grad="sign"))
    {'type': 'adder', 'grad': 'sign'}
    """
    factory = resolve(spec)
    keywords: dict[str, Any] = {}
    while isinstance(factory, functools.partial):
        keywords = {**factory.keywords, **keywords}
        factory = factory.func
    for name, known in CONVOLUTIONS.items():
        if factory is known:
            return {"type": name, **_plain(keywords)} if keywords else name
    owner = getattr(factory, "__module__", type(factory).__module__)
    name = getattr(factory, "__qualname__", type(factory).__qualname__)
    return {"type": f"{owner}.{name}", **_plain(keywords)}


def make_conv(
    factory: ConvFactory,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool = False,
) -> nn.Module:
    """Build one layer with `factory` and check that it is the two-dimensional layer asked for.

    Raises:
        TypeError: if `factory` cannot be called like `torch.nn.Conv2d`, returns no module, or
            returns a layer of another shape (`Conv1d`, `ConvTranspose2d`).
    """
    try:
        layer = factory(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias
        )
    except TypeError as error:
        raise TypeError(
            f"conv={_short(factory)} cannot be called like torch.nn.Conv2d: {error}"
        ) from error
    if not isinstance(layer, nn.Module):
        raise TypeError(f"conv={_short(factory)} must return an nn.Module, got {_short(layer)}")
    wanted = (out_channels, in_channels, kernel_size, kernel_size)
    if isinstance(layer, AdderModule | nn.modules.conv._ConvNd):
        shape = tuple(layer.weight.shape)
        if shape != wanted or getattr(layer, "transposed", False):
            raise TypeError(
                f"conv={_short(factory)} built a {type(layer).__name__} with a weight of shape "
                f"{shape}, wanted a two-dimensional convolution with {wanted}"
            )
    return layer


def _plain(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keep JSON values as they are and turn any other value (a dtype, a device) into its text."""
    plain = {}
    for key, value in keywords.items():
        try:
            plain[key] = json.loads(json.dumps(value))
        except TypeError:
            plain[key] = str(value)
    return plain


def _short(value: object) -> str:
    """Name `value` in one line of an error message."""
    if isinstance(value, nn.Module):
        return f"an instance of {type(value).__name__}"
    name = getattr(value, "__qualname__", None)
    return str(name) if name else f"{type(value).__name__} {value!r}"
