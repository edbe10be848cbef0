"""Says where in a net numbers stop being finite, by running a batch with a hook on every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def first_non_finite(
    task: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, str | None, str | None]:
    """Runs a task's `objective` forward and backward and names where numbers stop being finite.

    Args:
        task: A task with the method `objective(images, labels)`.
        images: Images (N, C, H, W).
        labels: Labels (N).

    Returns:
        The loss, detached; the first layer with a non-finite weight or output in forward order, and
        the first gradient that is not finite in the order of the backward pass, as words, or None
        where all is finite. Gradients already present are discarded.
    """
    outputs: list[str] = []
    gradients: list[str] = []
    handles = []

    def watch_output(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            for key, parameter in module.named_parameters(recurse=False):
                if not all_finite([parameter]):
                    outputs.append(f"{layer_words(f'{name}.{key}')}")
            if not all_finite([output]):
                outputs.append(f"output of layer {short_name(name)!r}")
            if output.requires_grad:
                output.register_hook(watch_gradient(f"output of layer {short_name(name)!r}"))

        return hook

    def watch_gradient(words: str) -> Any:
        def hook(gradient: Tensor) -> None:
            if not all_finite([gradient]):
                gradients.append(words)

        return hook

    def watch_parameter(words: str) -> Any:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None and not all_finite([parameter.grad]):
                gradients.append(words)

        return hook

    task.zero_grad(set_to_none=True)
    for name, module in task.named_modules():
        # A parametrized layer is watched as a whole, beside what computes its weight.
        if all(child == "parametrizations" for child, _ in module.named_children()):
            handles.append(module.register_forward_hook(watch_output(name)))
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            hook = watch_parameter(layer_words(name))
            handles.append(parameter.register_post_accumulate_grad_hook(hook))
    try:
        with torch.enable_grad():
            loss: Tensor = task.objective(images, labels)  # type: ignore[operator]
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    return loss.detach(), next(iter(outputs), None), next(iter(gradients), None)


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no entry is NaN or infinite; waits for the device."""
    # The largest absolute value is not finite if any entry is not; nothing can overflow on the way.
    largest = nn.utils.get_total_norm([tensor.detach() for tensor in tensors], float("inf"))
    return bool(torch.isfinite(largest))


def short_name(name: str) -> str:
    """A module's name without the task's own level."""
    return name.removeprefix("model.")


def layer_words(name: str) -> str:
    """`model.conv1.weight` in words: weight of layer 'conv1'."""
    layer, _, parameter = short_name(name).rpartition(".")
    return f"{parameter} of layer {layer!r}" if layer else parameter
