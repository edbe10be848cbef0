"""Soft labels: the cross-entropy between two nets' predictions, and distillation by it alone."""

from __future__ import annotations

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


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """Cross-entropy of the student's predictions against the teacher's, averaged over the batch.

    `L = -T^2 / N * sum_{n,k} softmax(t_n / T)_k log softmax(s_n / T)_k`. The factor T^2 keeps the
    gradient's size when T changes (Hinton et al., arXiv 1503.02531). PKKD (arXiv 2009.13044) uses
    this cross-entropy, which is the KL divergence plus the teacher's entropy: same gradient.

    Args:
        student_logits: s, shape (N, K).
        teacher_logits: t, shape (N, K), taken as a constant.
        temperature: T > 0.

    Returns:
        Scalar, float32 for half precision logits.

    Raises:
        ValueError: different shapes, or a temperature that is not positive.

    Examples:
        >>> soft_cross_entropy(torch.zeros(1, 4), torch.zeros(1, 4))
        tensor(1.3863)
    """
    check_logits(student_logits, teacher_logits)
    check_temperature(temperature)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    targets = F.softmax(teacher_logits.detach().to(dtype) / temperature, dim=1)
    loss = F.cross_entropy(student_logits.to(dtype) / temperature, targets)
    return loss * temperature**2


class KD(Distiller):
    """Soft labels: `L = L_CE + alpha * L_KD`.

    `L_KD` is `soft_cross_entropy` (Hinton et al., arXiv 1503.02531, section 2). With a progressive
    teacher this is PKKD's `L_blend` (arXiv 2009.13044), that is PKKD without its features. Nothing
    but the numbers of classes has to agree.

    Args:
        student: the net that learns, images to logits (N, K).
        teacher: the net it learns from, likewise; of any shape.
        alpha: weight of the soft labels.
        temperature: temperature of the soft labels.
        progressive: whether the teacher is trained, too.

    Raises:
        ValueError: a weight or temperature out of range, nets that share parameters.

    Examples:
        >>> import torchadder as ta
        >>> kd = KD(ta.models.lenet5_bn(conv="adder"), ta.models.lenet5_bn(conv="conv"))
        >>> sorted(kd(torch.randn(8, 1, 28, 28), torch.arange(8)).parts)
        ['ce', 'kd']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        alpha: float = 5.0,
        temperature: float = 1.0,
        progressive: bool = False,
    ) -> None:
        check_weights(alpha=alpha)
        check_temperature(temperature)
        super().__init__(student, teacher, progressive=progressive)
        self.alpha = alpha
        self.temperature = temperature

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher's outputs."""
        return self.alpha > 0

    def distillation_terms(
        self, student: NetOutput, teacher: NetOutput
    ) -> dict[str, tuple[float, Tensor]]:
        """Return the soft-label term."""
        if not self.alpha:
            return {}
        soft = soft_cross_entropy(student.logits, teacher.logits, self.temperature)
        return {"kd": (self.alpha, soft)}
