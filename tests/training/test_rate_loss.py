import math

import pytest
import torch

from sj_burst.training.rate_loss import rate_inference_loss


def plain_loss(teacher, student, rates, lam):
    """The loss in plain Python."""
    agreement = 0.0
    for t, s in zip(teacher, student, strict=True):
        dot = sum(a * b for a, b in zip(t, s, strict=True))
        agreement += dot / math.sqrt(sum(a * a for a in t) * sum(b * b for b in s)) / len(teacher)
    last = [[max(v, 0.0) / max(*row, 1e-5) for v in row] for row in student]
    omegas = []
    for layer in [*rates, last]:
        values = [v for row in layer for v in row]
        omegas.append(sum(values) / (sum(v * v for v in values) + 1e-5))
    return 1 - agreement + lam * sum(omegas) / len(omegas)


def test_the_loss_against_plain_python():
    teacher, student = torch.randn(2, 4, 3, dtype=torch.float64)
    rates = [torch.rand(4, 5, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)]
    expected = plain_loss(teacher.tolist(), student.tolist(), [r.tolist() for r in rates], 0.3)
    assert rate_inference_loss(student, teacher, rates, 0.3).item() == pytest.approx(expected)


def test_gradients_of_the_loss_against_finite_differences():
    teacher = torch.randn(4, 3, dtype=torch.float64)
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rates = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o, r: rate_inference_loss(o, teacher, [r]), (student, rates))
