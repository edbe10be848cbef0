"""The normalisation behind a layer: what counts as one, and what may stand in between.

It is looked for in the graph of the forward, or else in the order of registration; how the graph
is made, and what is done about a layer without a norm, this file does not know.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from torchadder.convert.layers import Layer, is_layer
from torchadder.nn import AdderLinear

_LINEAR = (nn.Linear, AdderLinear)

_NORM_CLASSES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_NORM_FUNCTIONS = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"}
_NORM_NAME = re.compile(r"Norm(?!al)")

# What may stand between a layer and its norm: it moves, picks, averages or joins values or scales
# them. Activations may not: behind an adder layer a ReLU sees negative numbers only.
_TRANSPARENT_CLASSES = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.modules.dropout._DropoutNd,
    nn.modules.padding._ConstantPadNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.pooling._MaxPoolNd,
)
_TRANSPARENT_NAMES = {
    *("add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "truediv", "div", "neg"),
    *("cat", "concat", "stack", "chunk", "split", "getitem", "unbind"),
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "unsqueeze", "squeeze"),
    *("expand", "contiguous", "clone", "to", "float", "half", "type_as", "movedim", "roll", "flip"),
    *("mean", "sum", "pad", "interpolate", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "stochastic_depth", "drop_path"),
    *(f"{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("avg", "max")),
    *(f"adaptive_{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("avg", "max")),
}
# Uses that ask for a property and pass no values on.
_DATALESS_NAMES = {"getattr", "size", "dim", "numel", "ndimension", "_assert", "new_empty"}


def is_norm(module: nn.Module) -> bool:
    """A normalisation: torch's, or a class named so that holds no layer itself."""
    if isinstance(module, _NORM_CLASSES):
        return True
    named = _NORM_NAME.search(type(module).__name__) is not None
    return named and not any(is_layer(m) for m in module.modules())


class NormsBehind:
    """Finds the normalisation behind a layer, in the graph or else by order of registration."""

    def __init__(self, model: nn.Module, graph: fx.Graph | None) -> None:
        # What computes a weight stands in front of no other layer.
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if "parametrizations" not in name.split(".")
        }
        self._leaves = [n for n, m in self._modules.items() if is_layer(m) or self._is_leaf(m)]
        self._nodes = [] if graph is None else list(graph.nodes)
        self._position = {node: index for index, node in enumerate(self._nodes)}

    @staticmethod
    def _is_leaf(module: nn.Module) -> bool:
        return is_norm(module) or next(module.children(), None) is None

    def of(self, layer: Layer) -> dict[str, Any]:
        """``norm``, ``norm_kind`` and ``found_by`` of the layer's report."""
        calls = [n for n in self._nodes if n.op == "call_module" and n.target == layer.name]
        if calls:
            found = [self._in_graph(call) for call in calls]
            norm = found[0] if None not in found else None
        else:
            norm = self._by_order(layer)
        kind = type(self._modules[norm]).__name__ if norm in self._modules else None
        return {"norm": norm, "norm_kind": kind, "found_by": "trace" if calls else "order"}

    def _in_graph(self, call: fx.Node) -> str | None:
        """The nearest norm, if each way from the call leads to one through what is transparent."""
        norms: dict[fx.Node, str] = {}
        seen = {call}
        ahead = list(call.users)
        while ahead:
            node = ahead.pop()
            if node in seen or self._name(node) in _DATALESS_NAMES:
                continue
            seen.add(node)
            norm = self._norm_at(node)
            if norm is not None:
                norms[node] = norm
            elif self._is_transparent(node):
                ahead.extend(node.users)
            else:
                return None
        return norms[min(norms, key=self._position.__getitem__)] if norms else None

    @staticmethod
    def _name(node: fx.Node) -> str:
        if node.op == "call_function":
            return getattr(node.target, "__name__", "")
        return str(node.target) if node.op == "call_method" else ""

    def _norm_at(self, node: fx.Node) -> str | None:
        if node.op == "call_module":
            name = str(node.target)
            return name if is_norm(self._modules[name]) else None
        name = self._name(node)
        return f"functional {name}" if name in _NORM_FUNCTIONS else None

    def _is_transparent(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._modules[str(node.target)], _TRANSPARENT_CLASSES)
        return self._name(node) in _TRANSPARENT_NAMES

    def _by_order(self, layer: Layer) -> str | None:
        """The next module registered, or the norm at the same place among its siblings."""
        norm = self._in_run(layer)
        if norm is not None:
            return norm
        for name in self._leaves[self._leaves.index(layer.name) + 1 :]:
            module = self._modules[name]
            if is_norm(module) and _fits(layer.module, module):
                return name
            if not isinstance(module, _TRANSPARENT_CLASSES):
                break
        return self._paired(layer)

    def _in_run(self, layer: Layer) -> str | None:
        """For ``conv1, conv2, bn1, bn2`` without anything between: the n-th of as many norms."""
        parent_name, _, own = layer.name.rpartition(".")
        children = self._modules[parent_name].named_children()
        runs = [
            (kind, dict(run))
            for kind, run in itertools.groupby(children, lambda child: self._kind(child[1]))
        ]
        for (_, layers), (kind, norms) in itertools.pairwise(runs):
            if own in layers and kind == "norm" and len(layers) == len(norms):
                norm = list(norms)[list(layers).index(own)]
                path = f"{parent_name}.{norm}" if parent_name else norm
                return path if _fits(layer.module, norms[norm]) else None
        return None

    @staticmethod
    def _kind(module: nn.Module) -> str:
        return "layer" if is_layer(module) else "norm" if is_norm(module) else "other"

    def _paired(self, layer: Layer) -> str | None:
        """The n-th of as many norms as there are convolutions, pooling and the like between."""
        parent_name, _, own = layer.name.rpartition(".")
        children = list(self._modules[parent_name].named_children())
        linear = isinstance(layer.module, _LINEAR)
        layers = [n for n, m in children if is_layer(m) and isinstance(m, _LINEAR) is linear]
        norms = [name for name, child in children if is_norm(child)]
        if own not in layers or len(layers) != len(norms):
            return None
        norm = norms[layers.index(own)]
        path = f"{parent_name}.{norm}" if parent_name else norm
        names = [name for name, _ in children]
        between = children[names.index(own) + 1 : names.index(norm)]
        plausible = names.index(norm) > names.index(own) and all(
            is_layer(m) or is_norm(m) or isinstance(m, _TRANSPARENT_CLASSES) for _, m in between
        )
        return path if plausible and _fits(layer.module, self._modules[path]) else None


def _fits(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether the norm has the layer's number of outputs, as far as both say so."""
    outputs = getattr(layer, "out_channels", getattr(layer, "out_features", None))
    features = getattr(norm, "num_features", getattr(norm, "num_channels", None))
    return outputs is None or features is None or outputs == features
