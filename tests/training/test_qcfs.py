import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_burst.training.qcfs import QCFS


@given(
    st.integers(1, 8),
    st.floats(0.1, 10),
    st.lists(st.floats(-20, 20), min_size=1, max_size=8),
)
def test_the_formula(levels, bound, values):
    layer = QCFS(levels, bound).double()
    bound = layer.bound.item()
    for x, got in zip(values, layer(torch.tensor(values, dtype=torch.float64)).tolist(), strict=True):
        level = x * levels / bound + 0.5
        if abs(level - round(level)) > 1e-9:  # on an edge either side is right
            assert got == pytest.approx(bound * min(max(math.floor(level) / levels, 0), 1), abs=1e-12)


def unfloored(x, s, rounding, levels):
    """The activation without its floor; ``rounding`` is what the floor took."""
    bound = s.exp()
    return bound * ((x / bound).clamp(0, 1) * levels + 0.5 + rounding) / levels


@pytest.mark.parametrize("levels", [1, 4])
def test_gradients_against_finite_differences_without_the_floor(levels):
    layer = QCFS(levels, bound=1.7).double()
    x = torch.linspace(-1.03, 3.01, 37, dtype=torch.float64, requires_grad=True)
    a = layer(x)
    weight = torch.randn_like(a)
    gx, gs = torch.autograd.grad((a * weight).sum(), (x, layer.log_bound))
    s = layer.log_bound.detach()
    level = (x.detach() / s.exp()).clamp(0, 1) * levels + 0.5
    rounding = level.floor() - level

    def value(x, s):
        return (unfloored(x, s, rounding, levels) * weight).sum()

    step = 1e-6
    assert torch.allclose(value(x.detach(), s), (a * weight).sum())
    numeric = (value(x.detach(), s + step) - value(x.detach(), s - step)) / (2 * step)
    assert gs.item() == pytest.approx(numeric.item(), rel=1e-6)
    for i in range(len(x)):
        shift = torch.zeros_like(x)
        shift[i] = step
        numeric = (value(x.detach() + shift, s) - value(x.detach() - shift, s)) / (2 * step)
        assert gx[i].item() == pytest.approx(numeric.item(), abs=1e-6)
    # The formula of the docstring, for λ itself.
    inside = (x > 0) & (x < s.exp())
    documented = ((a - x * inside) / s.exp() * weight).sum() * s.exp()
    assert gs.item() == pytest.approx(documented.item())


def test_the_bound_stays_positive_under_training():
    layer = QCFS(levels=2, bound=1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.full((10,), 5.0)).sum().backward()
        optimizer.step()
    assert 0 < layer.bound < 1


@pytest.mark.parametrize("options", [{"levels": 0}, {"levels": 2.5}, {"bound": 0}, {"bound": math.inf}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        QCFS(**options)
