"""Taps for a net that is compiled or recorded together with its loss.

`capture` puts its hooks on a net for one call, which `torch.compile` cannot trace. The hooks here
stay until they are removed, and read nothing unless `run` is at work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.distill.taps import Reading, first_input, get_layer


class HeldTaps:
    """Standing hooks on the layers of a net; the same outputs as of `capture`.

    Args:
        net: the net.
        names: names of layers.
        detach: whether to cut the outputs from the graph.
        readings: functions of a layer and its input, by name of the layer, whose results are read
            in place of the layer's output.
    """

    def __init__(
        self,
        net: nn.Module,
        names: Sequence[str],
        *,
        detach: bool,
        readings: Mapping[str, Reading],
    ) -> None:
        self._net = net
        self._names = tuple(names)
        self._detach = detach
        self._readings = readings
        self._is_reading = False
        self._outputs: dict[str, Tensor] = {}
        self._handles = [
            get_layer(net, name).register_forward_hook(self._hook_for(name), with_kwargs=True)
            for name in names
        ]

    def run(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the net.

        Returns:
            What the net puts out, and the outputs of the layers by name.

        Raises:
            RuntimeError: a layer did not run, or ran more than once.
        """
        self._outputs = {}
        self._is_reading = True
        try:
            logits = self._net(inputs)
        finally:
            self._is_reading = False
        outputs, self._outputs = self._outputs, {}
        for name in self._names:
            if name not in outputs:
                raise RuntimeError(f"layer {name!r} did not run in the forward pass, wanted once")
        return logits, outputs

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _hook_for(self, name: str) -> Any:
        def hook(layer: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> None:
            if not self._is_reading:
                return
            if name in self._outputs:
                raise RuntimeError(f"layer {name!r} ran twice in one forward pass, wanted once")
            if name in self._readings:
                with torch.set_grad_enabled(torch.is_grad_enabled() and not self._detach):
                    inputs = first_input(layer, arguments, keywords)
                    output = self._readings[name](layer, inputs)
            self._outputs[name] = output.detach() if self._detach else output

        return hook
