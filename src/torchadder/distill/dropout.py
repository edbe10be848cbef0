"""Dropout on the student: no teacher at all, the control for what distillation regularises."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.distiller import Distiller, NetOutput
from torchadder.distill.taps import find_head, get_layer, input_key, name_layers


class Dropout(Distiller):
    """Student alone, with dropout: `L = L_CE`; the row "ANN + dropout" of PKKD's supplement.

    `x[n,c] -> x[n,c] m[n,c] / (1 - p)`, m drawn from {0, 1} with `P(m = 0) = p`, in training, for
    the inputs of the named layers. This is the dropout of Srivastava et al. (JMLR 15, 2014) in the
    form that they describe in words: what is kept is scaled in training, not the weights afterwards
    (their p is the share that is kept). The supplement of arXiv 2009.13044 gives neither the rate
    nor the place; the default, the inputs of the classifier, is our reading.

    The student is not changed: hooks exist during a call only.

    Args:
        student: the net that learns, images to logits (N, K).
        teacher: None.
        dropout: p, share of the inputs set to zero.
        taps: names or patterns of the layers whose inputs are dropped; None for the last
            multiplicative layer.

    Raises:
        ValueError: a rate outside [0, 1), unknown layers, or a teacher.
    """

    wants_teacher = False

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        dropout: float = 0.2,
        taps: Sequence[str] | None = None,
    ) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if teacher is not None:
            raise ValueError("Dropout takes no teacher: the student learns from the labels alone")
        super().__init__(student, None, progressive=False)
        self.dropout = dropout
        self._is_held = False
        self._is_dropping = False
        self.dropped = (find_head(student),) if taps is None else name_layers(student, taps)

    @property
    def needs_teacher(self) -> bool:
        """False: there is none."""
        return False

    def distillation_terms(
        self, student: NetOutput, teacher: NetOutput
    ) -> dict[str, tuple[float, Tensor]]:
        """Return no terms."""
        return {}

    @contextlib.contextmanager
    def hold_taps(self) -> Iterator[None]:
        """Let the hooks stay for a `with` block, in which `forward` can be compiled as a whole."""
        with super().hold_taps(), self._hooks():
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False

    def run_student(self, inputs: Tensor) -> NetOutput:
        """Run the student with dropout, if it trains."""
        if not self.training or not self.dropout:
            return super().run_student(inputs)
        if self._is_held:
            return self._run_dropping(inputs)
        with self._hooks():
            return self._run_dropping(inputs)

    def _run_dropping(self, inputs: Tensor) -> NetOutput:
        self._is_dropping = True
        try:
            return super().run_student(inputs)
        finally:
            self._is_dropping = False

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        """Hooks that drop while `_run_dropping` is at work."""

        def drop(layer: nn.Module, arguments: Any, keywords: Any) -> Any:
            if not self._is_dropping:
                return None
            if arguments:
                first, *rest = arguments
                return (F.dropout(first, self.dropout), *rest), keywords
            key = input_key(layer, keywords)
            return arguments, keywords | {key: F.dropout(keywords[key], self.dropout)}

        with contextlib.ExitStack() as hooks:
            for name in self.dropped:
                layer = get_layer(self.student, name)
                handle = layer.register_forward_pre_hook(drop, with_kwargs=True)
                hooks.callback(handle.remove)
            yield
