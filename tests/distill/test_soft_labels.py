import math

import pytest
import torch
from torch.nn import functional as F

from torchadder.distill import soft_cross_entropy


def test_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): the cross-entropy is log 2.
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    student = torch.zeros(1, 2)
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(math.log(2))
    # The other way round: -(log(3/4) + log(1/4)) / 2.
    expected = -(math.log(0.75) + math.log(0.25)) / 2
    assert soft_cross_entropy(teacher, student).item() == pytest.approx(expected)


def test_temperature_by_hand():
    # T = 2 turns logits (2 log 3, 0) into (3/4, 1/4), and the loss counts T^2 = 4 times.
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    loss = soft_cross_entropy(torch.zeros(1, 2), teacher, temperature=2)
    assert loss.item() == pytest.approx(4 * math.log(2))


def test_gradient_is_that_of_the_kl_divergence():
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(soft_cross_entropy(student, teacher, 3.0), student)
    divergence = F.kl_div(
        F.log_softmax(student / 3, 1), F.softmax(teacher.detach() / 3, 1), reduction="batchmean"
    )
    (expected,) = torch.autograd.grad(9 * divergence, student)
    torch.testing.assert_close(got, expected)


def test_teacher_gets_no_gradient():
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    soft_cross_entropy(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits_are_finite(size):
    student = (torch.randn(4, 3) * size).requires_grad_()
    loss = soft_cross_entropy(student, torch.randn(4, 3) * size)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_half_precision():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    got = soft_cross_entropy(student.bfloat16(), teacher.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got, soft_cross_entropy(student.bfloat16().float(), teacher.bfloat16().float())
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4))
    for temperature in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="temperature must be a positive number"):
            soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), temperature)
