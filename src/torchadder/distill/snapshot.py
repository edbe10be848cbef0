"""Snapshot distillation: the teacher is the student itself, at the end of its last cycle."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill.distiller import (
    Distiller,
    NetOutput,
    check_logits,
    check_temperature,
    check_weights,
)


class Snapshot(Distiller):
    """Snapshot distillation (Yang, Xie, Su and Yuille, arXiv 1812.00123).

    Training is divided into cycles, each with its own fall of the learning rate. The first cycle
    learns from the labels alone; in each later one a copy of the student as it was at the end of
    the cycle before is the teacher, in eval mode:

    `L = L_CE - alpha / N sum_{n,k} softmax(t_n / T)_k log softmax(s_n)_k`

    Only the teacher's logits are divided by the temperature ("asymmetric distillation": the teacher
    is smoothed, the student is not). The formula follows three rules that the paper's abstract
    states in words, and was not compared with its numbered equations: a cyclic learning rate, the
    last snapshot of each cycle as the teacher of the whole next one, and a smoothed teacher. Our
    reading: alpha = 1, the cross-entropy in place of the KL divergence (same gradient), and the
    label's weight 1 in all cycles.

    Whoever trains calls `start_epoch` before each epoch and lets the rate fall once per cycle;
    `cycle_starts` says when cycles begin. `torchadder.tasks.Distillation` does both.

    Args:
        student: the net that learns, images to logits (N, K).
        teacher: None; the teacher is a copy of the student.
        alpha: weight of the snapshot's soft labels.
        temperature: temperature of the snapshot's predictions.
        cycles: number of cycles.

    Raises:
        ValueError: a weight, temperature or number out of range, or a teacher.
    """

    wants_teacher = False

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        alpha: float = 1.0,
        temperature: float = 2.0,
        cycles: int = 4,
    ) -> None:
        check_weights(alpha=alpha)
        check_temperature(temperature)
        if cycles < 2:
            raise ValueError(f"cycles must be at least 2, got {cycles}: the first has no teacher")
        if teacher is not None:
            raise ValueError("Snapshot takes no teacher: it is a copy of the student")
        super().__init__(student, copy.deepcopy(student), progressive=False)
        self.alpha = alpha
        self.temperature = temperature
        self.cycles = cycles
        self.has_snapshot = False

    @property
    def needs_teacher(self) -> bool:
        """Whether there is a snapshot to learn from: not in the first cycle."""
        return self.has_snapshot and self.alpha > 0

    def start_epoch(self, epoch: int, num_epochs: int) -> None:
        """Take a snapshot of the student if a cycle other than the first begins.

        Args:
            epoch: the epoch that begins, counted from 0.
            num_epochs: number of epochs of the whole training.

        Raises:
            ValueError: fewer epochs than cycles.
        """
        if self.teacher is not None and epoch in cycle_starts(num_epochs, self.cycles)[1:]:
            self.teacher.load_state_dict(self.student.state_dict())
        self.resume_epoch(epoch, num_epochs)

    def resume_epoch(self, epoch: int, num_epochs: int) -> None:
        """Keep the snapshot there is, if a cycle other than the first has begun."""
        self.has_snapshot = epoch >= cycle_starts(num_epochs, self.cycles)[1]

    def distillation_terms(
        self, student: NetOutput, teacher: NetOutput
    ) -> dict[str, tuple[float, Tensor]]:
        """Return the term of the snapshot's smoothed predictions."""
        check_logits(student.logits, teacher.logits)
        dtype = torch.promote_types(student.logits.dtype, torch.float32)
        targets = F.softmax(teacher.logits.to(dtype) / self.temperature, dim=1)
        return {"kd": (self.alpha, F.cross_entropy(student.logits.to(dtype), targets))}


def cycle_starts(num_epochs: int, cycles: int) -> list[int]:
    """The first epochs of the cycles, as even as whole epochs allow.

    Raises:
        ValueError: fewer epochs than cycles.

    >>> cycle_starts(10, 4)
    [0, 2, 5, 7]
    """
    if num_epochs < cycles:
        raise ValueError(
            f"cycles = {cycles}: at most the number of epochs, {num_epochs}, is wanted"
        )
    return [cycle * num_epochs // cycles for cycle in range(cycles)]
