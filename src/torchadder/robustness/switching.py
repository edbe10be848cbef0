"""How a model computes while it is attacked: gradient rule of adder layers, statistics of BN.

Nothing of the model is changed. A switch is a mode of the thread that enters it: it rewrites the
arguments of adder and batch-norm operations on their way to torch. Other threads may train or
attack the same model meanwhile, and neither an exception nor Ctrl-C leaves anything behind.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from torchadder.nn import AdderModule
from torchadder.ops.geometry import check_rule

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


class _ThreadState(threading.local):
    """What this thread has switched on: its modes, the innermost last, and models with batch BN."""

    def __init__(self) -> None:
        self.modes: list[_Switch] = []
        self.coupled: list[nn.Module] = []


_state = _ThreadState()


class _Switch(TorchFunctionMode):
    """Rewrites operations of this thread; what it does not set is taken from the mode around it.

    Args:
        rule: Gradient rule of adder operations; None keeps their own.
        batch: Whether batch norm takes the statistics of the batch and leaves running ones alone.
        constant: Whether the weights of adder operations are constants, with no gradient.
    """

    def __init__(
        self, *, rule: str | None = None, batch: bool = False, constant: bool = False
    ) -> None:
        super().__init__()
        self.rule = rule
        self.batch = batch
        self.constant = constant

    def __enter__(self) -> _Switch:
        if _state.modes:
            around = _state.modes[-1]
            self.rule = self.rule or around.rule
            self.batch = self.batch or around.batch
            self.constant = self.constant or around.constant
        super().__enter__()
        _state.modes.append(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        """Leave this switch and those after it, which an interrupted call did not leave."""
        while self in _state.modes:
            _state.modes.pop()
            super().__exit__(*exception)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        rewrite = _REWRITES.get(func)
        # Torch asks the modes from the innermost to the outermost; the innermost knows all.
        if rewrite is not None and self is _state.modes[-1]:
            args, kwargs = rewrite(self, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _adder(
    switch: _Switch,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    grad: str,
) -> Call:
    weight, bias = _constant(switch, weight, bias)
    window = (stride, padding, dilation, groups)
    return (input, weight, bias, *window, switch.rule or grad), {}


def _adder_lp(
    switch: _Switch,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    p: float,
    clip: bool,
) -> Call:
    weight, bias = _constant(switch, weight, bias)
    window = (stride, padding, dilation, groups)
    # With an exponent above 1 the gradient is the true one, unless it is clipped.
    clip = switch.rule == "clip" if switch.rule else clip
    return (input, weight, bias, *window, p, clip), {}


def _constant(switch: _Switch, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if not switch.constant:
        return weight, bias
    return weight.detach(), None if bias is None else bias.detach()


def _batch_norm(
    switch: _Switch,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *rest: Any,
    **options: Any,
) -> Call:
    if not switch.batch:
        return (input, running_mean, running_var, *rest), options
    names = ("weight", "bias", "training", "momentum", "eps")
    options |= dict(zip(names, rest, strict=False))
    return (input, None, None), options | {"training": True}


_REWRITES: dict[Any, Callable[..., Call]] = {
    torch.ops.torchadder.adder2d: _adder,
    torch.ops.torchadder.adder2d_lp: _adder_lp,
    F.batch_norm: _batch_norm,
}


@contextlib.contextmanager
def input_gradient(model: nn.Module, rule: str) -> Iterator[nn.Module]:
    """Give all adder layers of a model another gradient rule while the block runs.

    AdderNet's backward pass is a surrogate: the input gradient of ``-|x - w|`` is taken as
    ``clamp(w - x, -1, 1)`` (arXiv 1912.13200, Eq. 6), not as the true ``sign(w - x)``. An attack
    through a surrogate may fail where the model is not robust at all, so it has to be repeated
    with ``rule="sign"``.

    It concerns calls of `model` itself in this thread. The attribute ``grad`` of the layers stays
    as it is, and so does what other threads compute. Of nested blocks the innermost one counts.

    Args:
        model: Any model with adder layers.
        rule: "clip", "sign", "l2" or "exact", see :mod:`torchadder.functional`; "sign" and
            "exact" have the same input gradient.

    Yields:
        The model.

    Raises:
        ValueError: If the rule is unknown or the model has no adder layers.

    Examples:
        >>> import torch, torchadder as ta
        >>> layer = ta.nn.AdderLinear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(layer.weight)
        >>> x = torch.tensor([[0.25]], requires_grad=True)
        >>> with ta.robustness.input_gradient(layer, "sign"):
        ...     layer(x).backward()
        >>> x.grad.item()
        -1.0
    """
    check_rule(rule)
    if not has_adder_layers(model):
        raise ValueError(
            f"input gradient {rule!r}: {type(model).__name__} has no adder layers, its gradient is "
            "the true one"
        )
    with _switched(model, rule=rule):
        yield model


@contextlib.contextmanager
def batch_statistics(model: nn.Module) -> Iterator[nn.Module]:
    """Let a model in evaluation mode normalise with the statistics of its batch.

    Our reading of the rows "-R" of "Towards Stable and Robust AdderNets" (NeurIPS 2021), whose full
    text we could not read: batch norm takes mean and variance of the test batch instead of the
    running ones. Running statistics and their counter are neither used nor changed.

    The images of a batch are coupled by this: what the model says about one depends on the
    others, so figures hold for a batch size and an order of the images only.

    It concerns calls of `model` itself in this thread.

    Args:
        model: Any model with batch norm.

    Yields:
        The model.

    Raises:
        ValueError: If the model has no batch norm.
    """
    if not has_batch_norm(model):
        raise ValueError(
            f"batch statistics: {type(model).__name__} has no batch norm, nothing depends on the "
            "batch"
        )
    _state.coupled.append(model)
    try:
        with _switched(model, batch=True):
            yield model
    finally:
        _state.coupled.remove(model)


def constant_weights() -> contextlib.AbstractContextManager[Any]:
    """A block in which the adder operations of this thread have no gradient of their weights.

    `torch.autograd.grad` leaves out the weight gradients of torch's own layers by itself, where
    only the input's is asked for; those of registered operators it computes and throws away.
    """
    return _Switch(constant=True)


def is_coupled(model: nn.Module) -> bool:
    """Whether the images of a batch influence each other now.

    They do within `batch_statistics`, and always where a batch norm keeps no running statistics.
    """
    modules = set(model.modules())
    return not modules.isdisjoint(_state.coupled) or any(
        isinstance(module, _BatchNorm) and module.running_mean is None for module in modules
    )


def has_adder_layers(model: nn.Module) -> bool:
    """Whether there is a layer with a surrogate gradient."""
    return any(isinstance(module, AdderModule) for module in model.modules())


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there is a batch norm."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


@contextlib.contextmanager
def _switched(model: nn.Module, **switches: Any) -> Iterator[None]:
    """Hooks on the model that enter a switch when it is called here and leave it afterwards."""
    here = threading.get_ident()
    entered: list[_Switch] = []

    def enter(module: nn.Module, args: Any) -> None:
        if threading.get_ident() == here:
            entered.append(_Switch(**switches).__enter__())

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == here and entered:
            entered.pop().__exit__(None, None, None)

    handles = [
        model.register_forward_pre_hook(enter),
        model.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        # Torch runs no hook after a KeyboardInterrupt.
        for switch in reversed(entered):
            switch.__exit__(None, None, None)
