"""The graph of a model's forward, and the order in which it calls modules.

The forward is followed on a copy without data. This file does not know what a layer or a norm is:
the caller says at which modules the graph ends, and which of them it asks about.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn

from torchadder.convert.hooks import HOOKS


def trace(
    model: nn.Module, is_leaf: Callable[[nn.Module], bool]
) -> tuple[fx.Graph | None, str | None]:
    """The graph of ``model.forward``, or None and the reason why there is none.

    Modules for which ``is_leaf`` holds are not looked into. Arguments with a default take it. The
    forward runs on a skeleton of the model, so that nothing that it stores or counts stays behind
    in the model.
    """
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=()):
            warnings.simplefilter("ignore")
            skeleton = without_data(model)
            defaults = {
                name: parameter.default
                for name, parameter in inspect.signature(skeleton.forward).parameters.items()
                if parameter.default is not inspect.Parameter.empty
            }
            graph = _Tracer(is_leaf).trace(skeleton, concrete_args=defaults)
    except Exception as error:  # the forward is the user's code: on a symbol it may raise anything
        message = str(error).strip().split("\n")[0]
        return None, f"{type(error).__name__}: {message}"
    return graph, None


def execution_order(graph: fx.Graph, names: Collection[str]) -> list[str]:
    """Those of ``names`` that the graph calls, in the order of their first calls."""
    calls = (str(node.target) for node in graph.nodes if node.op == "call_module")
    return list(dict.fromkeys(name for name in calls if name in names))


class _Tracer(fx.Tracer):
    """Follows a forward down to the leaves, whatever package defines them."""

    def __init__(self, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__(param_shapes_constant=True)
        self._is_leaf = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m) or super().is_leaf_module(m, module_qualified_name)


def without_data(model: nn.Module) -> nn.Module:
    """A copy of the modules without data (meta tensors) and without hooks."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    for module in model.modules():
        for name in HOOKS:
            memo[id(vars(module)[name])] = OrderedDict()
    return copy.deepcopy(model, memo)
