"""What a net in evaluation mode computes, written down by `torch.export` and read as steps.

Whatever Python its forward is made of. A net that does something that integers cannot do is
refused, with the layer and the reason.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, fx, nn

from torchadder.quantize import operators, shaping
from torchadder.quantize.graph import FloatGraph, QuantizationError
from torchadder.quantize.reader import Handler, Reader

_HANDLERS: dict[str, Handler] = {
    "torchadder.adder2d": operators.layer,
    "aten.conv2d": operators.layer,
    "aten.linear": operators.linear,
    "aten.batch_norm": operators.batch_norm,
    "aten.group_norm": operators.group_norm,
    "aten.mul": operators.multiply,
    "aten.relu": operators.relu,
    "aten.relu_": operators.relu,
    "aten.add": operators.add,
    "aten.add_": operators.add,
    "aten.max_pool2d": shaping.pool,
    "aten.avg_pool2d": shaping.pool,
    "aten.adaptive_avg_pool2d": shaping.adaptive_pool,
    "aten.mean": shaping.mean,
    "aten.flatten": shaping.reshape,
    "aten.view": shaping.reshape,
    "aten.reshape": shaping.reshape,
    "aten.unsqueeze": shaping.reshape,
    "aten.squeeze": shaping.reshape,
    "aten.slice": shaping.thinned,
    "aten.upsample_nearest2d": shaping.upsample,
    "aten.dropout": shaping.dropout,
    "aten.dropout_": shaping.dropout,
    "aten.feature_dropout": shaping.dropout,
    "aten.feature_dropout_": shaping.dropout,
    "aten.contiguous": shaping.passes,
    "aten.alias": shaping.passes,
}


def trace(model: nn.Module, images: Tensor) -> FloatGraph:
    """Writes a net down as steps.

    Args:
        model: In evaluation mode, images to logits.
        images: A batch that it takes, (N, C, H, W).

    Raises:
        QuantizationError: If the net is in training mode, cannot be exported, or does something
            that integers cannot do here.
    """
    if model.training:
        raise QuantizationError("the net is in training mode: call model.eval() first")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A batch of one is a special case to torch.export.
            example = images[:2] if len(images) > 1 else images.repeat(2, 1, 1, 1)
            batch = torch.export.Dim("batch")
            program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises dozens of types, without a common base
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise QuantizationError(f"the net cannot be exported: {reason[0]}") from error
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    _keep_layers(module, model)
    return Reader(module, _HANDLERS).read()


def _keep_layers(module: fx.GraphModule, model: nn.Module) -> None:
    """Leaves only layers of the net in what is known of where an operation stands.

    What torch.export itself adds to a net has entries there, too.
    """
    paths = {path for path, _ in model.named_modules(remove_duplicate=False)}
    for node in module.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["nn_module_stack"] = {
            key: entry for key, entry in stack.items() if entry[0] in paths
        }
