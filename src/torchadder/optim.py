"""AdderNet's adaptive local learning rate, as a step in front of any optimizer.

The backward of the adder operator is linear in ``grad_output``, as autograd, loss scaling, gradient
accumulation and data-parallel training assume. The rate of the paper is not linear, so it is
applied to the finished ``.grad``, right before the optimizer uses it. This module knows optimizers
and which layers are adder layers; it knows nothing of losses, trainers or schedules. Derivations
and the order of events are in ``docs/adaptive_lr.md``.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.nn import AdderModule

__all__ = ["AdaptiveLR"]

# Floor of the gradient norm, so that a zero gradient stays zero (the released AdderNet code).
_MIN_NORM = 1e-12

_attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


class AdaptiveLR:
    """Scale every adder layer's weight gradient to one length right before the optimizer's step.

    ``grad <- grad * eta * sqrt(k) / max(||grad||_2, 1e-12)`` with k the number of elements of the
    layer's weight (AdderNet, arXiv 1912.13200, Eq. 12-13), so that the root mean square of the
    gradient is ``eta`` in every adder layer. Biases and all other layers are left alone.

    The optimizer's ``step`` is hooked: construct the object and train as usual; the optimizer keeps
    it alive. The scaling happens once a step, after gradient accumulation, the all-reduce of
    data-parallel training, unscaling and clipping, and before momentum and weight decay. It also
    holds for ``step(closure)``, for ``fused=True`` optimizers under ``torch.amp.GradScaler`` (which
    divide by the loss scale inside their kernel), for weights shared between layers, and for
    parametrized and pruned weights, whose underlying parameters are scaled. It never waits for the
    accelerator.

    The adder layers are looked up at each step, so layers that are added later take part as soon as
    the optimizer holds their weights. Parameters that the optimizer does not hold, or that have no
    gradient, are left alone. ``.grad`` is changed in place and stays scaled until it is zeroed.

    Copies and pickles of the optimizer carry no hooks (torch's rule), so neither do they carry this
    one; its ``state_dict`` is unchanged. Copying the optimizer, the model and this object together
    keeps them connected.

    Args:
        optimizer: the optimizer that holds the adder weights, built after ``convert_``.
        model: the module whose adder layers are meant.
        eta: root mean square of the scaled gradients, the paper's 0.2 by default.

    Raises:
        TypeError: ``optimizer``, ``model`` or ``eta`` is of another type.
        ValueError: ``eta`` is not positive and finite, the model has no adder layers, the optimizer
            holds none of their weights, or it has an AdaptiveLR already.

    Examples:
        >>> import torch, torchadder as ta
        >>> model = torch.nn.Sequential(ta.nn.Adder2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> _ = ta.optim.AdaptiveLR(optimizer, model)
        >>> model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        >>> optimizer.step()
        >>> round(model[0].weight.grad.square().mean().sqrt().item(), 4)
        0.2
    """

    optimizer: torch.optim.Optimizer
    model: nn.Module
    eta: float

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, eta: float = 0.2
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; "
                "of a wrapped optimizer pass the inner one"
            )
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(eta, bool) or not isinstance(eta, (int, float)):
            raise TypeError(f"eta must be a number, got {type(eta).__name__}")
        if not (eta > 0 and math.isfinite(eta)):
            raise ValueError(f"eta must be positive and finite, got {eta}")
        weights = list(_adder_weights(model))
        if not weights:
            raise ValueError(
                f"model {type(model).__name__} has no adder layers; convert it first "
                "(torchadder.convert_) or build it from torchadder.nn"
            )
        held = _parameter_ids(optimizer)
        if not any(id(weight) in held for weight in weights):
            raise ValueError(
                f"optimizer holds none of the model's {len(weights)} adder weights; build it from "
                "the parameters of this model"
            )
        self.optimizer = optimizer
        self.model = model
        self.eta = float(eta)
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        self._attach()

    def _attach(self) -> None:
        if self.optimizer in _attached:
            raise ValueError("optimizer has an AdaptiveLR already; remove() that one first")
        _attached.add(self.optimizer)
        self._handle = self.optimizer.register_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Detach from the optimizer; later steps use the gradients as they are."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            _attached.discard(self.optimizer)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_handle"] = self._handle is not None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        attached = state["_handle"]
        self.__dict__.update(state, _handle=None)
        if attached:
            self._attach()

    def __repr__(self) -> str:
        detached = "" if self._handle is not None else ", removed"
        return (
            f"AdaptiveLR({type(self.optimizer).__name__}, {type(self.model).__name__}, "
            f"eta={self.eta}{detached})"
        )

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Scale the gradients, or arrange it for when the step's closure has made them.

        ``args`` starts with the optimizer itself, as torch passes it.
        """
        if "grad_scaler" in kwargs:
            raise RuntimeError(
                f"{type(optimizer).__name__}.step takes a GradScaler and unscales by itself, after "
                "AdaptiveLR; use an optimizer that reads its grad_scale attribute instead"
            )
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._after(args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._after(kwargs["closure"])}
        self._scale_gradients()
        return None

    def _after(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(closure, updated=())
        def closure_then_scale() -> Any:
            loss = closure()
            self._scale_gradients()
            return loss

        return closure_then_scale

    @torch.no_grad()
    def _scale_gradients(self) -> None:
        held = _parameter_ids(self.optimizer)
        gradients: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        targets: dict[tuple[torch.device, torch.dtype], list[float]] = defaultdict(list)
        for weight in _adder_weights(self.model):
            if weight.grad is None or id(weight) not in held:
                continue
            if weight.grad.is_sparse:
                weight.grad = weight.grad.coalesce()
                gradient = weight.grad._values()
            else:
                gradient = weight.grad
            key = gradient.device, gradient.dtype
            gradients[key].append(gradient)
            targets[key].append(self.eta * math.sqrt(weight.numel()))

        # Set by GradScaler on optimizers that unscale in their kernel. The gradients g are then
        # S * (true gradient), and the kernel divides by S. Dividing the norm by S makes the result
        # S * eta * sqrt(k) * g / ||g||, which the kernel turns into what is wanted.
        loss_scale: Tensor | None = getattr(self.optimizer, "grad_scale", None)
        for (device, dtype), group in gradients.items():
            half = dtype in (torch.float16, torch.bfloat16)
            if dtype == torch.float16 and loss_scale is not None:
                raise ValueError(
                    "adder weights in float16 cannot be trained with a GradScaler; keep them in "
                    "float32 and use torch.autocast"
                )
            norm_dtype = torch.float32 if half else None
            norms = list(torch._foreach_norm(group, 2, dtype=norm_dtype))  # pyright: ignore
            if loss_scale is not None:
                scale = loss_scale.to(device, non_blocking=True)
                norms = [norm / scale for norm in norms]
            torch._foreach_clamp_min_(norms, _MIN_NORM)  # pyright: ignore
            torch._foreach_div_(norms, targets[device, dtype])  # pyright: ignore
            if half:
                # A divisor rounded to half precision could leave its range.
                for gradient, divisor in zip(group, norms, strict=True):
                    gradient.copy_(gradient.float() / divisor)
            else:
                torch._foreach_div_(group, norms)  # pyright: ignore


def _parameter_ids(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _adder_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters behind the weight of every adder layer in the model, each once.

    A parametrized weight (``torch.nn.utils.parametrize``) is computed from its originals, a pruned
    one (``torch.nn.utils.prune``) from ``weight_orig``, one under the old
    ``torch.nn.utils.weight_norm`` from ``weight_g`` and ``weight_v``: these are what the optimizer
    holds.
    """
    seen: set[int] = set()
    for module in model.modules():
        if not isinstance(module, AdderModule):
            continue
        named = dict(module.named_parameters(recurse=False))
        if "weight" in named:
            weights = [named["weight"]]
        elif "weight_orig" in named:
            weights = [named["weight_orig"]]
        elif "weight_g" in named:
            weights = [named["weight_g"], named["weight_v"]]
        elif nn.utils.parametrize.is_parametrized(module, "weight"):
            chain: nn.Module = module.parametrizations["weight"]  # type: ignore[index]
            originals = chain.named_parameters(recurse=False)
            weights = [p for name, p in originals if name.startswith("original")]
        else:
            weights = []
        for weight in weights:
            if id(weight) not in seen:
                seen.add(id(weight))
                yield weight
