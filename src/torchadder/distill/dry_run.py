"""The shapes that parts of a net put out, found by a run without data.

What a part is for, and what is done about a part whose shape is not found, is not known here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.convert.layers import is_layer
from torchadder.convert.tracing import without_data

SIZE = 224
"""Rows and columns of the images; large enough for the nets that shrink them most."""


@torch.no_grad()
def dry_run(net: nn.Module, parts: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the outputs of parts of a net for two images of 224 pixels a side.

    A copy without data (meta tensors) and without hooks runs in evaluation mode, so nothing that
    the net holds is touched. Parts that did not run are left out: the forward is the user's code
    and may want images of another size. What ran before it failed counts.

    Args:
        net: the net, not compiled as a whole.
        parts: modules in it, by name.

    Examples:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
        >>> dry_run(net, {"1": net[1], "3": net[3]})
        {'1': (2, 8, 224, 224)}
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape)

        return hook

    # What is compiled in the net is not compiled for this.
    eager = torch.compiler.set_stance("force_eager")
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(()), torch.device("meta"), eager:
            warnings.simplefilter("ignore")
            empty = without_data(net).eval()
            twins = dict(zip(net.modules(), empty.modules(), strict=True))
            for name, part in parts.items():
                twins[part].register_forward_hook(note(name))
            empty(_images(empty))
    except Exception:  # the user's code: without data it may raise anything
        return shapes
    return shapes


def _images(net: nn.Module) -> Tensor:
    """A batch that the first layer of a net takes."""
    first: Any = next(layer for layer in net.modules() if is_layer(layer))
    if hasattr(first, "in_features"):
        shape = (2, first.in_features)
    else:
        shape = (2, first.in_channels, *[SIZE] * len(first.kernel_size))
    return torch.empty(shape, dtype=first.weight.dtype)
