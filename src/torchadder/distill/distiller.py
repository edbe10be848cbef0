"""What every way of distilling has in common: two nets, one batch, two disjoint graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.taps import capture


class NetOutput(NamedTuple):
    """What one net made of a batch.

    Attributes:
        logits: shape (N, K).
        taps: outputs of the tapped layers by name, each (N, C, ...).
    """

    logits: Tensor
    taps: dict[str, Tensor]


class DistillerOutput(NamedTuple):
    """What a training step needs, and what it may log.

    Attributes:
        loss: the student's loss, a scalar; its gradient reaches the student and the distiller's
            own parameters only.
        teacher_loss: the teacher's own loss, a scalar; None if the teacher is fixed.
        student_logits: shape (N, K).
        teacher_logits: shape (N, K); None if the teacher did not have to run.
        parts: the terms of `loss` before weighting, detached scalars.
    """

    loss: Tensor
    teacher_loss: Tensor | None
    student_logits: Tensor
    teacher_logits: Tensor | None
    parts: dict[str, Tensor]


class Distiller(nn.Module, ABC):
    """Base of the distillation losses: runs both nets once and adds the terms of a method.

    A method derives from this class, states the layers it reads in `taps` and its terms in
    `distillation_terms`. The student's loss is its cross-entropy with the labels plus the weighted
    terms. The teacher is a constant for it: its logits and taps arrive detached. A progressive
    teacher is trained by its own cross-entropy, `teacher_loss`; since the graphs are disjoint,
    `(output.loss + output.teacher_loss).backward()` gives each net its own gradient.

    Neither net is changed: hooks exist during a call only, and the student is used after training
    as it is. A fixed teacher stays in eval mode whatever `train()` is told, and its parameters
    are marked as not requiring gradients.

    Args:
        student: the net that learns, images to logits.
        teacher: the net it learns from.
        progressive: whether the teacher is trained, too.

    Raises:
        ValueError: the nets share parameters.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, *, progressive: bool) -> None:
        super().__init__()
        of_student = {id(parameter) for parameter in student.parameters()}
        if any(id(parameter) in of_student for parameter in teacher.parameters()):
            raise ValueError("student and teacher share parameters; they must be separate nets")
        self.student = student
        self.teacher = teacher
        self.progressive = progressive
        self.taps: tuple[str, ...] = ()
        if not progressive:
            teacher.requires_grad_(False)
            teacher.eval()

    def train(self, mode: bool = True) -> Self:
        """Set training mode, which a fixed teacher does not follow."""
        super().train(mode)
        if not self.progressive:
            self.teacher.eval()
        return self

    def own_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that belong to neither net."""
        nets = {id(p) for net in (self.student, self.teacher) for p in net.parameters()}
        return [p for p in self.parameters() if id(p) not in nets]

    def forward(self, inputs: Tensor, labels: Tensor) -> DistillerOutput:
        """Run both nets on a batch and return the losses.

        Args:
            inputs: batch of images, any size.
            labels: int64 class indices (N,), or probabilities (N, K).

        Raises:
            ValueError: logits or taps of the nets differ in shape.
            RuntimeError: a tapped layer did not run exactly once, see `capture`.
        """
        teacher = None
        if self.progressive or self.needs_teacher:
            with torch.set_grad_enabled(self.progressive and torch.is_grad_enabled()):
                teacher = self._run(self.teacher, inputs, detach=True)
        student = self._run(self.student, inputs, detach=False)
        with torch.autocast(student.logits.device.type, enabled=False):
            loss = _cross_entropy(student.logits, labels)
            parts = {"ce": loss.detach()}
            teacher_loss = None
            if teacher is not None:
                if self.progressive:
                    teacher_loss = _cross_entropy(teacher.logits, labels)
                constant = teacher._replace(logits=teacher.logits.detach())
                for name, (weight, term) in self._terms(student, constant).items():
                    loss = loss + weight * term
                    parts[name] = term.detach()
        return DistillerOutput(
            loss, teacher_loss, student.logits, teacher.logits if teacher else None, parts
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher's outputs."""
        return True

    @abstractmethod
    def distillation_terms(
        self, student: NetOutput, teacher: NetOutput
    ) -> dict[str, tuple[float, Tensor]]:
        """Return the method's terms, name to (weight, scalar); the teacher's side is detached."""
        raise NotImplementedError

    def _terms(self, student: NetOutput, teacher: NetOutput) -> dict[str, tuple[float, Tensor]]:
        for name, output in student.taps.items():
            if output.shape != teacher.taps[name].shape:
                raise ValueError(
                    f"layer {name!r} puts out {tuple(output.shape)} in the student and "
                    f"{tuple(teacher.taps[name].shape)} in the teacher; "
                    f"the nets must have the same shape"
                )
        return self.distillation_terms(student, teacher)

    def _run(self, net: nn.Module, inputs: Tensor, *, detach: bool) -> NetOutput:
        if not self.taps:
            return NetOutput(net(inputs), {})
        with capture(net, self.taps, detach=detach) as outputs:
            logits = net(inputs)
        return NetOutput(logits, outputs)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)


def check_weights(**weights: float) -> None:
    """Raise ValueError unless all weights are finite and not negative."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name} must be a finite number of at least 0, got {weight}")
