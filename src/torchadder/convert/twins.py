"""The adder twin of a torch layer: which class it is, and how it takes over the layer's state.

This file knows one layer at a time; the model around it, and whether it is to be converted, are
not its business.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.module import _WrappedHook

from torchadder import nn as adder_nn
from torchadder.convert.config import AdderConfig
from torchadder.convert.hooks import HOOKS

_CONV_ARGUMENTS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
# Each torch layer, its adder twin, and the attributes that are the twin's arguments.
TWINS: dict[type[nn.Module], tuple[type[adder_nn.AdderModule], tuple[str, ...]]] = {
    nn.Conv1d: (adder_nn.Adder1d, _CONV_ARGUMENTS),
    nn.Conv2d: (adder_nn.Adder2d, _CONV_ARGUMENTS),
    nn.ConvTranspose2d: (adder_nn.AdderTranspose2d, (*_CONV_ARGUMENTS, "output_padding")),
    nn.Linear: (adder_nn.AdderLinear, ("in_features", "out_features")),
}

# What a subclass may define and still compute what its torch base computes.
_HARMLESS_DEFINITIONS = {"__init__", "__module__", "__doc__", "__qualname__", "__annotations__"} | {
    "__firstlineno__",
    "__static_attributes__",
    "__parameters__",
}


def twin_base(module: nn.Module) -> type[nn.Module] | None:
    """The torch class that ``module`` computes as, if that class has an adder twin."""
    cls = nn.utils.parametrize.type_before_parametrizations(module)
    base = next((base for base in TWINS if issubclass(cls, base)), None)
    if base is None or "forward" in vars(module):
        return None
    own = cls.__mro__[: cls.__mro__.index(base)]
    harmless = all(vars(c).keys() <= _HARMLESS_DEFINITIONS for c in own)
    return base if harmless else None


def build_twin(old: nn.Module, config: AdderConfig) -> adder_nn.AdderModule:
    """The adder layer of the same arguments, its parameters still without storage."""
    base = twin_base(old)
    assert base is not None
    twin, names = TWINS[base]
    arguments: dict[str, Any] = {name: getattr(old, name) for name in names}
    return twin(**arguments, bias=old.bias is not None, device="meta", grad=config.grad)


def move_state(old: nn.Module, new: nn.Module) -> None:
    """Give ``new`` what ``old`` holds: parameters, buffers, hooks, own attributes.

    The hook dictionaries themselves move, so the handles that users hold can still remove hooks.
    """
    base = twin_base(old)
    assert base is not None
    plain = base(*(1,) * (2 if base is nn.Linear else 3), device="meta")  # type: ignore[call-arg]
    for name, value in vars(old).items():
        if name not in vars(plain) and name != "_compiled_call_impl":
            vars(new)[name] = value
    for name in HOOKS:
        vars(new)[name] = vars(old)[name]
    for hook in old._load_state_dict_pre_hooks.values():
        if isinstance(hook, _WrappedHook) and hook.with_module:
            hook.module = weakref.ref(new)
    vars(new)["_is_full_backward_hook"] = old._is_full_backward_hook
    new._parameters.update(old._parameters)
    new._buffers.update(old._buffers)
    new._non_persistent_buffers_set.update(old._non_persistent_buffers_set)
    new._modules.update(old._modules)
    new.training = old.training


def reset_parameters(twins: Iterable[adder_nn.AdderModule]) -> None:
    """Draw the weights from N(0, 1) and zero the biases, shared ones once."""
    done: set[int] = set()
    for module in twins:
        for parameter, init in ((module.weight, nn.init.normal_), (module.bias, nn.init.zeros_)):
            if parameter is not None and id(parameter) not in done:
                done.add(id(parameter))
                init(parameter)
