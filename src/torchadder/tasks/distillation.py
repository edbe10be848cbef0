"""Distillation as a task: a student, mostly with a teacher, in one training step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from torchadder.distill import Distiller, cycle_starts, layer_alignment, shared_layers
from torchadder.distill.cka import MIN_SAMPLES
from torchadder.distill.kernels import OutputKernel
from torchadder.tasks.classification import Classification, validation_metrics
from torchadder.tasks.length import RunLength, epochs_of
from torchadder.tasks.ramp import Ramp

NUM_ALIGNED = 128
"""Validation images of a process that the alignment of the nets is measured on, at most."""


class Distillation(Classification):
    """Trains a student by a method of `torchadder.distill`, such as PKKD (arXiv 2009.13044).

    Both nets see the batch once. The student's loss treats the teacher as a constant and the
    teacher's loss does not know the student, so the two graphs are disjoint and one backward pass
    of their sum gives each net its own gradient, which is clipped on its own, too. One optimizer
    updates both, and the scales and linear maps of the loss, whose weights do not decay.

    Logs what `Classification` logs for the student, the same for the teacher with the prefix
    `teacher_` (of a fixed teacher in validation only, and if it has the same classes), the parts of
    the student's loss as `train_<part>`, the strength of its terms in the epoch's last batch as
    `distill_strength`, the kernel scales, and after each epoch how alike the two nets represent
    validation images: `alignment/<layer>`, the `linear_cka` of the tapped layers (or, for a method
    without taps, of `shared_layers`).

    Args:
        distiller: The loss, which holds both nets.
        num_classes: Number of classes.
        ramp: How the strength of the distillation terms grows; None: full from the start.
        **options: Optimizer and schedule, as of `Classification`. The schedule is run through once
            in each of the distiller's cycles.

    Raises:
        ValueError: A ramp with the teacher's progress, but a teacher that is not trained.
    """

    def __init__(
        self,
        distiller: Distiller,
        *,
        num_classes: int,
        ramp: Ramp | None = None,
        **options: Any,
    ) -> None:
        super().__init__(distiller, num_classes=num_classes, **options)
        self.ramp = Ramp() if ramp is None else ramp
        if self.ramp.by == "teacher" and not distiller.progressive:
            raise ValueError("ramp by 'teacher' needs a progressive teacher")
        self.teacher_val_metrics = validation_metrics(num_classes, "teacher_val_")
        self._teacher_accuracy: float | None = None
        self._aligned = distiller.taps
        if distiller.teacher is not None and not distiller.taps:
            self._aligned = shared_layers(distiller.student, distiller.teacher)
        self._is_settled = False

    @property
    def distiller(self) -> Distiller:
        """The loss, which holds both nets."""
        assert isinstance(self.model, Distiller)
        return self.model

    @property
    def plain_model(self) -> nn.Module:
        """The student."""
        return self.distiller.student

    @property
    def step_key(self) -> Hashable:
        """Whether the teacher has to run.

        None until the taps have been checked and the kernels have taken their scale.
        """
        if not self._is_settled:
            kernels = (m for m in self.distiller.modules() if isinstance(m, OutputKernel))
            are_initialised = all(kernel.initialised for kernel in kernels)
            self._is_settled = self.distiller.can_hold_taps and are_initialised
        return (self.distiller.needs_teacher,) if self._is_settled else None

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """A `with` block in which both nets and the loss can be compiled as a whole."""
        return self.distiller.hold_taps()

    def on_train_epoch_start(self) -> None:
        """Sets the strength of the terms, and lets the distiller begin its epoch."""
        super().on_train_epoch_start()
        self.distiller.start_epoch(self.current_epoch, self._num_epochs())
        self._set_strength(self.current_epoch)

    def on_train_epoch_resume(self) -> None:
        """Sets the strength again, and lets the distiller go on with its epoch."""
        super().on_train_epoch_resume()
        self.distiller.resume_epoch(self.current_epoch, self._num_epochs())
        self._set_strength(self.current_epoch)

    def _num_epochs(self) -> int:
        """Epochs of the run; -1 where the trainer does not say, as it has it, too."""
        return epochs_of(self.trainer) or -1

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets the strength where it grows from batch to batch."""
        if self.ramp.by == "epochs":
            done = batch_idx / self.trainer.num_training_batches
            self._set_strength(self.current_epoch + done)

    def _set_strength(self, epoch: float) -> None:
        """Fills it in in place, where a compiled or recorded step reads it."""
        strength = self.ramp.strength(epoch, self._teacher_accuracy, 1 / self.num_classes)
        self.distiller.strength.fill_(strength)

    def loss_and_sums(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the student's and the teacher's loss, and what is logged of both nets."""
        output = self.distiller(images, labels)
        sums = self.batch_sums("train_", output.loss, output.student_logits, labels)
        sums |= {f"train_{name}": value * len(labels) for name, value in output.parts.items()}
        if output.teacher_loss is None or output.teacher_logits is None:
            return output.loss, sums
        sums |= self.batch_sums(
            "teacher_train_", output.teacher_loss, output.teacher_logits, labels
        )
        return output.loss + output.teacher_loss, sums

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm of the teacher's gradients, and that of all others, each on its own."""
        if gradient_clip_val is None or gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        teacher = self.distiller.teacher
        of_teacher = set() if teacher is None else set(teacher.parameters())
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        for is_of_teacher in (True, False):
            part = [p for p in trained if (p in of_teacher) is is_of_teacher]
            torch.nn.utils.clip_grad_norm_(part, gradient_clip_val)

    def on_train_epoch_end(self) -> None:
        """Keeps the teacher's training accuracy, for the ramp."""
        if self.distiller.progressive:
            accuracy = self.trainer.callback_metrics["teacher_train_accuracy"]
            self._teacher_accuracy = float(accuracy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the ramp needs to go on."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher_accuracy"] = self._teacher_accuracy

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up what `on_save_checkpoint` left."""
        super().on_load_checkpoint(checkpoint)
        self._teacher_accuracy = checkpoint.get("teacher_accuracy")
        # By the first step of the run, which goes on as it would have without the interruption.
        self.distiller.was_checked = True

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds a batch to the validation metrics of both nets."""
        super().validation_step(batch, batch_idx)
        teacher = self.distiller.teacher
        if teacher is None or not (self.distiller.progressive or self.distiller.needs_teacher):
            return
        images, labels = batch
        logits = teacher(images)
        # A fixed teacher of features may know other classes.
        if logits.shape[1] == self.num_classes:
            self.log_validation(self.teacher_val_metrics, "teacher_val_", logits, labels)
        if batch_idx == 0 and self._aligned and self._all_have(len(images)):
            some = images[:NUM_ALIGNED]
            alignment = layer_alignment(self.plain_model, teacher, self._aligned, some)
            values = {f"alignment/{name}": value for name, value in alignment.items()}
            self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def _all_have(self, num_images: int) -> bool:
        """Whether the batch of every process is large enough; what one logs, all have to log."""
        strategy = self.trainer.strategy
        return strategy.reduce_boolean_decision(num_images >= MIN_SAMPLES, all=True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Both nets with weight decay, the loss's own parameters without."""
        nets = [net for net in (self.distiller.student, self.distiller.teacher) if net is not None]
        of_nets = [parameter for net in nets for parameter in net.parameters()]
        groups: list[dict[str, Any]] = [{"params": [p for p in of_nets if p.requires_grad]}]
        own = self.distiller.own_parameters()
        if own:
            groups.append({"params": own, "weight_decay": 0.0})
        return groups

    def on_validation_epoch_end(self) -> None:
        """Logs the last batch's strength and the kernel scales, `sigma/<layer>/<side>`."""
        self.log("distill_strength", self.distiller.strength, sync_dist=True)
        scales: dict[str, Tensor] = getattr(self.distiller, "sigmas", dict)()
        self.log_dict({f"sigma/{name}": value for name, value in scales.items()}, sync_dist=True)

    def _schedule_factor(self, length: RunLength | None) -> Callable[[int], float]:
        """Step -> factor of `lr`: the schedule, once in each cycle."""
        cycles = self.distiller.cycles
        if cycles == 1:
            return super()._schedule_factor(length)
        if length is None or length.steps_per_epoch is None or length.epochs is None:
            raise ValueError(
                f"cycles = {cycles} need the number of epochs: give the trainer max_epochs or "
                "max_steps, and data of known length"
            )
        starts = cycle_starts(length.epochs, cycles)
        begins = [start * length.steps_per_epoch for start in starts]
        ends = [*begins[1:], length.steps]
        factors = [
            super(Distillation, self)._schedule_factor(
                dataclasses.replace(length, steps=end - begin)
            )
            for begin, end in zip(begins, ends, strict=True)
        ]

        def factor(step: int) -> float:
            cycle = max(index for index, begin in enumerate(begins) if begin <= step)
            return factors[cycle](step - begins[cycle])

        return factor
