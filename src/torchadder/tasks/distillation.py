"""Distillation as a task: a teacher and a student of the same shape in one training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torchadder.distill import PKKD
from torchadder.tasks.classification import Classification, accuracies


class Distillation(Classification):
    """PKKD (arXiv 2009.13044): an adder student learns from labels and from its CNN twin.

    Both nets see the batch once. The student's loss treats the teacher as a constant and the
    teacher's loss does not know the student, so the two graphs are disjoint and one backward pass
    of their sum gives each net its own gradient. One optimizer updates both, and the scales and
    linear maps of the loss, whose weights do not decay.

    Logs what `Classification` logs for the student, the same for the teacher with the prefix
    `teacher_`, the parts of the student's loss as `train_<part>`, and the kernel scales.

    Args:
        student: The net to be kept.
        teacher: A net with the same layer names.
        num_classes: Number of classes.
        alpha: Weight of the soft-label term.
        beta: Weight of the kernel-space feature term.
        temperature: Temperature of the soft labels.
        taps: Layers whose outputs are compared; None: every adder layer of the student.
        kernel: Compare in kernel space.
        linear_map: Align the two sides by a 1x1 convolution.
        progressive: Train the teacher too; otherwise it stays as it is.
        **options: Optimizer and schedule, as of `Classification`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        num_classes: int,
        alpha: float = 5.0,
        beta: float = 5.0,
        temperature: float = 1.0,
        taps: Sequence[str] | None = None,
        kernel: bool = True,
        linear_map: bool = True,
        progressive: bool = True,
        **options: Any,
    ) -> None:
        pkkd = PKKD(
            student,
            teacher,
            alpha=alpha,
            beta=beta,
            temperature=temperature,
            taps=taps,
            kernel=kernel,
            linear_map=linear_map,
            progressive=progressive,
        )
        super().__init__(pkkd, num_classes=num_classes, **options)
        self.teacher_train_metrics = accuracies(num_classes, "teacher_train_")
        self.teacher_val_metrics = accuracies(num_classes, "teacher_val_")

    @property
    def pkkd(self) -> PKKD:
        """The loss, which holds both nets."""
        assert isinstance(self.model, PKKD)
        return self.model

    @property
    def plain_model(self) -> nn.Module:
        """The student."""
        return self.pkkd.student

    def objective(self, images: Tensor, labels: Tensor) -> Tensor:
        """The sum of the student's and the teacher's loss, without logging: a scalar."""
        output = self.pkkd(images, labels)
        return output.loss if output.teacher_loss is None else output.loss + output.teacher_loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The sum of the student's and the teacher's loss, logged: a scalar."""
        images, labels = batch
        output = self.pkkd(images, labels)
        self.log_step(self.train_metrics, "train_", output.loss, output.student_logits, labels)
        parts = {f"train_{name}": value for name, value in output.parts.items()}
        self.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(labels))
        if output.teacher_loss is None or output.teacher_logits is None:
            return output.loss
        self.log_step(
            self.teacher_train_metrics,
            "teacher_train_",
            output.teacher_loss,
            output.teacher_logits,
            labels,
        )
        return output.loss + output.teacher_loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds a batch to the validation metrics of both nets."""
        super().validation_step(batch, batch_idx)
        images, labels = batch
        logits = self.pkkd.teacher(images)
        loss = F.cross_entropy(logits, labels)
        self.log_step(self.teacher_val_metrics, "teacher_val_", loss, logits, labels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Both nets with weight decay, the loss's own parameters without."""
        nets = [*self.pkkd.student.parameters(), *self.pkkd.teacher.parameters()]
        groups: list[dict[str, Any]] = [{"params": [p for p in nets if p.requires_grad]}]
        own = self.pkkd.own_parameters()
        if own:
            groups.append({"params": own, "weight_decay": 0.0})
        return groups

    def on_validation_epoch_end(self) -> None:
        """Logs the kernel scales as `sigma/<layer>/student` and `sigma/<layer>/teacher`."""
        self.log_dict({f"sigma/{name}": value for name, value in self.pkkd.sigmas().items()})
