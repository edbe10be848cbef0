"""What every way of distilling has in common: two nets, one batch, two disjoint graphs."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.held import HeldTaps
from torchadder.distill.taps import Reading, capture


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

    A method derives from this class, states the layers it reads in `taps` (and in
    `student_readings` and `teacher_readings` what it reads of them, if not their outputs) and its
    terms in `distillation_terms`. The student's loss is its cross-entropy with the labels plus the
    weighted terms, all of them times `strength`, which whoever trains may change between steps. The
    teacher is a constant for it: its logits and taps arrive detached. A progressive teacher is
    trained by its own cross-entropy, `teacher_loss`; since the graphs are disjoint,
    `(output.loss + output.teacher_loss).backward()` gives each net its own gradient.

    Neither net is changed: hooks exist during a call only, and the student is used after training
    as it is. A fixed teacher stays in eval mode whatever `train()` is told, and its parameters
    are marked as not requiring gradients.

    Args:
        student: the net that learns, images to logits.
        teacher: the net it learns from; None for a method without one.
        progressive: whether the teacher is trained, too.

    Attributes:
        was_checked (bool): whether a call has shown that no tapped output is overwritten in place,
            which hooks that stay cannot see.

    Raises:
        ValueError: the nets share parameters, a teacher is missing, or a net that is to be trained
            is frozen (as a teacher is once a method has had it as a fixed one).
    """

    wants_teacher: ClassVar[bool] = True
    """Whether the caller brings the teacher."""

    agreement: ClassVar[Literal["shape", "channels", "positions", "samples"]] = "shape"
    """What the tapped outputs of the two nets must have in common."""

    reads_activations: ClassVar[bool] = False
    """Whether taps may be overwritten in place, see `torchadder.distill.capture`."""

    cycles: int = 1
    """How often the learning rate starts anew."""

    strength: Tensor

    def __init__(self, student: nn.Module, teacher: nn.Module | None, *, progressive: bool) -> None:
        super().__init__()
        if teacher is None and self.wants_teacher:
            raise ValueError(f"{type(self).__name__} needs a teacher, got None")
        of_student = {id(parameter) for parameter in student.parameters()}
        if teacher is not None and any(
            id(parameter) in of_student for parameter in teacher.parameters()
        ):
            raise ValueError("student and teacher share parameters; they must be separate nets")
        trained = {"student": student}
        if progressive and teacher is not None:
            trained["teacher"] = teacher
        for side, net in trained.items():
            if not any(parameter.requires_grad for parameter in net.parameters()):
                raise ValueError(
                    f"{type(self).__name__} trains the {side}, of which no parameter requires a "
                    f"gradient; {side}.requires_grad_(True) thaws it"
                )
        self.student = student
        self.teacher = teacher
        self.progressive = progressive
        self.taps: tuple[str, ...] = ()
        self.student_readings: dict[str, Reading] = {}
        self.teacher_readings: dict[str, Reading] = {}
        self.was_checked = False
        self._held: dict[str, HeldTaps] = {}
        self.register_buffer("strength", torch.ones(()), persistent=False)
        if teacher is not None and not progressive:
            teacher.requires_grad_(False)
            teacher.eval()

    def train(self, mode: bool = True) -> Self:
        """Set training mode, which a fixed teacher does not follow."""
        super().train(mode)
        if self.teacher is not None and not self.progressive:
            self.teacher.eval()
        return self

    def start_epoch(self, epoch: int, num_epochs: int) -> None:
        """Called by whoever trains before each epoch, counted from 0. Most methods do nothing."""

    def resume_epoch(self, epoch: int, num_epochs: int) -> None:
        """Called in place of `start_epoch` where an interrupted training goes on within an epoch.

        Both nets are those of the interruption already.
        """

    @property
    def can_hold_taps(self) -> bool:
        """Whether `hold_taps` can be used."""
        return self.was_checked or self.reads_activations or not self.taps

    @contextlib.contextmanager
    def hold_taps(self) -> Iterator[None]:
        """Let the hooks stay for a `with` block, in which `forward` can be compiled as a whole.

        Raises:
            RuntimeError: there was no call before, so nobody knows whether a layer overwrites the
                output of a tapped one.
        """
        if not self.can_hold_taps:
            raise RuntimeError(
                f"{type(self).__name__} must be called once before its taps are held: only a call "
                "on its own shows whether a tapped output is overwritten in place"
            )
        sides = {
            "student": (self.student, self.student_readings),
            "teacher": (self.teacher, self.teacher_readings),
        }
        for side, (net, readings) in sides.items():
            if net is not None and self.taps:
                detach = side == "teacher"
                self._held[side] = HeldTaps(net, self.taps, detach=detach, readings=readings)
        try:
            yield
        finally:
            for held in self._held.values():
                held.remove()
            self._held.clear()

    def own_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that belong to neither net."""
        nets = [net for net in (self.student, self.teacher) if net is not None]
        of_nets = {id(parameter) for net in nets for parameter in net.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in of_nets]

    def forward(self, inputs: Tensor, labels: Tensor) -> DistillerOutput:
        """Run both nets on a batch and return the losses.

        Args:
            inputs: batch of images, any size.
            labels: int64 class indices (N,), or probabilities (N, K).

        Raises:
            ValueError: logits or taps of the nets do not fit together.
            RuntimeError: a tapped layer did not run exactly once, see `capture`.
        """
        teacher = None
        if self.progressive or self.needs_teacher:
            with torch.set_grad_enabled(self.progressive and torch.is_grad_enabled()):
                teacher = self.run_teacher(inputs)
        student = self.run_student(inputs)
        both_ran = teacher is not None or self.teacher is None
        if both_ran and not self._held and not torch.compiler.is_compiling():
            self.was_checked = True
        with torch.autocast(student.logits.device.type, enabled=False):
            loss = _cross_entropy(student.logits, labels)
            parts = {"ce": loss.detach()}
            teacher_loss = None
            if teacher is not None:
                constant = teacher._replace(logits=teacher.logits.detach())
                self._check_outputs(student, constant)
                if self.progressive:
                    teacher_loss = _cross_entropy(teacher.logits, labels)
                for name, (weight, term) in self.distillation_terms(student, constant).items():
                    loss = loss + weight * (term * self.strength)
                    parts[name] = term.detach()
        return DistillerOutput(
            loss, teacher_loss, student.logits, teacher.logits if teacher else None, parts
        )

    @torch.no_grad()
    def check_agreement(self, images: Tensor) -> None:
        """Run both nets once in evaluation mode, to find out whether the method can compare them.

        Nothing is changed: no parameter, buffer or mode of either net or of the loss, and
        `was_checked` neither.

        Args:
            images: a batch of the size that is trained on; its values do not matter.

        Raises:
            ValueError: logits or taps of the nets do not fit together.
            RuntimeError: a tapped layer did not run exactly once, see `capture`.
        """
        if self.teacher is None or not self.needs_teacher:
            return
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            teacher, student = self.run_teacher(images), self.run_student(images)
            self._check_outputs(student, teacher)
            self.distillation_terms(student, teacher)
        finally:
            for module, mode in modes:
                module.training = mode

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

    def run_student(self, inputs: Tensor) -> NetOutput:
        """Run the student and read its taps."""
        return self._run(self.student, inputs, self.student_readings, detach=False)

    def run_teacher(self, inputs: Tensor) -> NetOutput:
        """Run the teacher and read its taps, which are cut from its graph."""
        assert self.teacher is not None
        return self._run(self.teacher, inputs, self.teacher_readings, detach=True)

    def _run(
        self, net: nn.Module, inputs: Tensor, readings: dict[str, Reading], *, detach: bool
    ) -> NetOutput:
        if not self.taps:
            return NetOutput(net(inputs), {})
        if self._held:
            return NetOutput(
                *self._held["teacher" if net is self.teacher else "student"].run(inputs)
            )
        reading = capture(
            net,
            self.taps,
            detach=detach,
            activations=self.reads_activations,
            readings=readings,
        )
        with reading as outputs:
            logits = net(inputs)
        return NetOutput(logits, outputs)

    def _check_outputs(self, student: NetOutput, teacher: NetOutput) -> None:
        if self.progressive:
            # It learns the same labels. A fixed one may have other classes, if only its features
            # are compared.
            check_logits(student.logits, teacher.logits)
        self._check_taps(student, teacher)

    def _check_taps(self, student: NetOutput, teacher: NetOutput) -> None:
        if all(
            _common(output.shape, self.agreement)
            == _common(teacher.taps[name].shape, self.agreement)
            for name, output in student.taps.items()
        ):
            return
        sides = [
            ", ".join(f"{name} {tuple(output.shape)}" for name, output in net.taps.items())
            for net in (student, teacher)
        ]
        wanted = {
            "shape": "the same shape",
            "channels": "the same number of channels",
            "positions": "maps of the same size",
            "samples": "the same number of samples",
        }
        raise ValueError(
            f"{type(self).__name__} compares layers of {wanted[self.agreement]}; "
            f"the student has {sides[0]}; the teacher has {sides[1]}"
        )


def _common(shape: torch.Size, agreement: str) -> tuple[int, ...]:
    """The part of a shape (N, C, ...) that the other net must share."""
    parts = {
        "shape": shape,
        "channels": shape[:2],
        "positions": (*shape[:1], *shape[2:]),
        "samples": shape[:1],
    }
    return tuple(parts[agreement])


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)


def check_weights(**weights: float) -> None:
    """Raise ValueError unless all weights are finite and not negative."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name} must be a finite number of at least 0, got {weight}")


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless the temperature is positive and finite."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a positive number, got {temperature}")


def check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise ValueError unless the nets put out logits of the same shape."""
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher must put out logits of the same shape, got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
