import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional
from torch import nn

from sj_burst.modules.pooling import GatedPool, LIPool, spiking_pool

WINDOWED = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
ADAPTIVE = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}


@st.composite
def geometries(draw):
    """A max-pooling module of torch and an input size it accepts."""
    dims = draw(st.integers(1, 3))
    size = draw(st.lists(st.integers(6, 9), min_size=dims, max_size=dims))
    if draw(st.booleans()):
        return ADAPTIVE[dims](draw(st.integers(1, 4))), size
    kernel = draw(st.integers(1, 3))
    options = {
        "stride": draw(st.sampled_from([None, 1, 2, 3])),
        "padding": draw(st.integers(0, kernel // 2)),
        "dilation": draw(st.integers(1, 2)),
        "ceil_mode": draw(st.booleans()),
    }
    return WINDOWED[dims](kernel, **options), size


@given(geometries(), st.integers(1, 5), st.integers(0, 2**16))
def test_totals_are_the_pooled_totals_at_every_step(geometry, steps, seed):
    pool, size = geometry
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers: sums are exact, and ties are common.
    x = torch.randint(-1, 4, (steps, 2, 2, *size), generator=generator).double()
    out = LIPool(pool, step_mode="m")(x)
    for t in range(steps):
        assert torch.equal(out[: t + 1].sum(0), pool(x[: t + 1].sum(0)))


@given(st.integers(1, 6), st.integers(0, 2**16))
def test_equals_the_published_recursion(steps, seed):
    """q += x; out = max q; q -= out in each window, for windows that do not overlap."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 4, (steps, 1, 1, 4, 4), generator=generator).double()
    out = LIPool(nn.MaxPool2d(2), step_mode="m")(x)
    for i in range(2):
        for j in range(2):
            q = torch.zeros(2, 2, dtype=torch.float64)
            for t in range(steps):
                q = q + x[t, 0, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                winner = q.max()
                q = q - winner
                assert out[t, 0, 0, i, j] == winner


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**16))
def test_output_of_spikes_is_bounded_by_one_burst(steps, gamma, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, gamma + 1, (steps, 1, 2, 7, 7), generator=generator).float()
    out = LIPool(nn.MaxPool2d(3, 2, 1), step_mode="m")(x)
    assert out.min() >= 0
    assert out.max() <= gamma


@pytest.mark.parametrize("rule", ["lateral_inhibition", "gated"])
def test_step_modes_and_chunks_agree(rule):
    x = torch.rand(7, 2, 3, 9, 9, dtype=torch.float64)
    pool = spiking_pool(nn.MaxPool2d(3, 2, 1), rule)
    pool.step_mode = "m"
    whole = pool(x)
    functional.reset_net(pool)
    chunks = torch.cat([pool(x[:3]), pool(x[3:4]), pool(x[4:])])
    functional.reset_net(pool)
    pool.step_mode = "s"
    steps = torch.stack([pool(step) for step in x])
    assert torch.equal(whole, chunks)
    assert torch.equal(whole, steps)


def test_plain_maximum_never_converges_but_lateral_inhibition_does():
    rates = torch.rand(4, 8, 8, 8)
    x = torch.stack([(rates * (t + 1)).floor() - (rates * t).floor() for t in range(256)])
    x = x[torch.randperm(256)]
    wanted = nn.MaxPool2d(2)(x.mean(0))
    errors = {}
    for rule in ("lateral_inhibition", "spike"):
        pool = spiking_pool(nn.MaxPool2d(2), rule)
        functional.reset_net(pool)
        out = torch.stack([pool(step) for step in x]).mean(0)
        errors[rule] = ((out - wanted).norm() / wanted.norm()).item()
    assert errors["lateral_inhibition"] < 1e-5
    assert errors["spike"] > 0.05


@given(geometries(), st.integers(1, 4), st.integers(0, 2**16))
def test_gated_pool_passes_the_winner(geometry, steps, seed):
    """Of every window: at each step the input whose total is largest, by torch's own indices."""
    pool, size = geometry
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 4, (steps, 2, 2, *size), generator=generator).double()
    out = GatedPool(pool, step_mode="m")(x)
    pool.return_indices = True
    for t in range(steps):
        winners = pool(x[: t + 1].sum(0))[1]
        for image, channel in itertools.product(range(2), range(2)):
            values = x[t, image, channel].flatten()
            wanted = [values[i].item() for i in winners[image, channel].flatten()]
            assert out[t, image, channel].flatten().tolist() == wanted


def test_gated_pool_by_hand():
    x = torch.randint(0, 3, (6, 2, 3, 4, 4)).float()
    out = GatedPool(nn.MaxPool2d(2), step_mode="m")(x)
    total = torch.zeros_like(x[0])
    for t in range(6):
        total += x[t]
        for n in range(2):
            for c in range(3):
                window = total[n, c, :2, :2].flatten()
                assert out[t, n, c, 0, 0] == x[t, n, c, :2, :2].flatten()[window.argmax()]


def test_gated_pool_leaves_the_module_alone():
    pool, x = nn.MaxPool2d(2), torch.rand(2, 1, 4, 4)
    GatedPool(pool)
    assert pool(x).shape == (2, 1, 2, 2)


@pytest.mark.parametrize("rule", ["lateral_inhibition", "gated", "average"])
def test_a_class_derived_from_torchs(rule):
    class Halve(nn.MaxPool1d):
        """Its name tells nothing."""

    x = torch.rand(2, 3, 8)
    wanted = spiking_pool(nn.MaxPool1d(2), rule)(x)
    assert torch.equal(spiking_pool(Halve(2), rule)(x), wanted)


def test_average_keeps_the_geometry():
    pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    x = torch.rand(1, 2, 8, 8)
    assert spiking_pool(pool, "average")(x).shape == pool(x).shape
    assert torch.allclose(spiking_pool(pool, "average")(torch.ones(1, 2, 8, 8)), torch.tensor(1.0))
    with pytest.raises(ValueError, match="dilation"):
        spiking_pool(nn.MaxPool2d(2, dilation=2), "average")


def test_gradient_flows_to_the_winner():
    x = torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]]], requires_grad=True)
    out = LIPool(nn.MaxPool1d(2), step_mode="m")(x)
    assert out.flatten().tolist() == [2.0, 2.0]
    out[-1].sum().backward()
    # out(2) = max(4, 2) − max(1, 2)
    assert x.grad.flatten().tolist() == [1.0, -1.0, 1.0, 0.0]


def test_unknown_rule_and_wrong_module():
    with pytest.raises(ValueError, match="max_pool must be one of"):
        spiking_pool(nn.MaxPool2d(2), "median")
    for rule in ("lateral_inhibition", "gated", "average"):
        with pytest.raises(TypeError, match="got AvgPool2d"):
            spiking_pool(nn.AvgPool2d(2), rule)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("kind", [LIPool, GatedPool])
def test_half_precision_totals_do_not_stop_growing(kind, step_mode):
    """256 + 1 is 256 in bfloat16."""
    pool, x = kind(nn.MaxPool1d(2), step_mode=step_mode), torch.ones(400, 1, 1, 2, dtype=torch.bfloat16)
    x[..., 1] = 0.5
    with torch.no_grad():
        out = pool(x) if step_mode == "m" else torch.stack([pool(step) for step in x])
    assert out.dtype == torch.bfloat16 and out.float().sum() == 400


@pytest.mark.parametrize("spiking", [LIPool, GatedPool])
def test_pooling_that_returns_indices_is_refused(spiking):
    with pytest.raises(ValueError, match="return_indices"):
        spiking(nn.MaxPool2d(2, return_indices=True))
