"""Soft labels: the cross-entropy between two nets' predictions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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

    Example:
        >>> soft_cross_entropy(torch.zeros(1, 4), torch.zeros(1, 4))
        tensor(1.3863)
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher must put out logits of the same shape, got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    targets = F.softmax(teacher_logits.detach().to(dtype) / temperature, dim=1)
    loss = F.cross_entropy(student_logits.to(dtype) / temperature, targets)
    return loss * temperature**2
