"""Changing the exponent of whole nets, in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from torchadder.lp.layer import LpAdder2d
from torchadder.nn import Adder2d, AdderModule
from torchadder.ops.lp import check_exponent

# What `torchadder.models` calls the two layers in a model's config.
_PLAIN, _LP = "adder", "adder_lp"


def set_exponent_(model: nn.Module, p: float, *, clip: bool = False) -> int:
    """Give every ``Adder2d`` of ``model`` the exponent ``p``, in place.

    Above 1 the layers become :class:`LpAdder2d`, at 1 plain ``Adder2d`` layers again. Modules,
    parameters, buffers and hooks stay the same objects, so an optimizer goes on with them; a model
    of ``torchadder.models`` keeps a config that builds it again, whatever its p.

    Args:
        model: the net.
        p: the exponent, 1 .. 2.
        clip: whether the input gradient is kept within [-1, 1] while p > 1.

    Returns:
        The number of layers.

    Raises:
        ValueError: p lies outside 1 .. 2, or the model has no adder layers, or one that has no
            exponent; nothing is changed then.

    Examples:
        >>> import torchadder as ta
        >>> net = ta.models.lenet5_bn()
        >>> ta.lp.set_exponent_(net, 1.5)
        3
        >>> type(net.conv2).__name__, net.conv2.p
        ('LpAdder2d', 1.5)
    """
    check_exponent(p)
    layers: list[nn.Module] = []
    for name, module in model.named_modules():
        if type(module) in (Adder2d, LpAdder2d):
            layers.append(module)
        elif isinstance(module, AdderModule):
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__}: only Adder2d has an exponent"
            )
    if not layers:
        raise ValueError(f"model {type(model).__name__} has no Adder2d layers")
    for layer in layers:
        # The two classes differ in what forward() does and in these two attributes only.
        layer.__dict__.pop("p", None)
        layer.__dict__.pop("clip", None)
        layer.__class__ = Adder2d if p == 1 else LpAdder2d
        if isinstance(layer, LpAdder2d):
            layer.p, layer.clip = p, clip
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, Mapping) and isinstance(config.get("kwargs"), Mapping):
            kwargs = {key: _spec(value, p, clip) for key, value in config["kwargs"].items()}
            module.config = {**config, "kwargs": kwargs}  # pyright: ignore
    return len(layers)


def finish_(model: nn.Module) -> int:
    """``set_exponent_(model, 1)``: back to a plain adder net."""
    return set_exponent_(model, 1.0)


def _spec(value: Any, p: float, clip: bool) -> Any:
    """The value of a config with every adder layer in it given the exponent."""
    kind = value.get("type") if isinstance(value, Mapping) else value
    if kind not in (_PLAIN, _LP):
        return value
    options = dict(value) if isinstance(value, Mapping) else {}
    for key in ("type", "p", "clip"):
        options.pop(key, None)
    if p > 1:
        return {"type": _LP, **options, "p": p, "clip": clip}
    return {"type": _PLAIN, **options} if options else _PLAIN
