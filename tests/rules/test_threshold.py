import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_burst.rules.potential import ann_potential
from sj_burst.rules.statistics import ActivationStatistics
from sj_burst.rules.threshold import (
    fit_threshold,
    gaussian_fixed_point,
    mse_threshold,
    parse_percentile,
    percentile_threshold,
)
from sj_burst.rules.transfer import Transfer


def statistics_of(*batches, channel_wise=True, upper=math.inf):
    statistics = ActivationStatistics(channel_wise, upper)
    for batch in batches:
        statistics.update(batch)
    return statistics


def transfer_slow(a, theta, T, gamma, v0):
    """A neuron with constant input, step by step."""
    v, total = v0, 0.0
    for _ in range(T):
        v += a
        n = min(max(math.floor(v / theta), 0), gamma)
        v -= n * theta
        total += n * theta
    return total / T


@given(st.integers(0, 200), st.integers(1, 8), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.5]))
def test_transfer_is_what_the_neuron_does(k, T, gamma, fraction):
    a, theta = k / 64, 0.5
    expected = transfer_slow(a, theta, T, gamma, theta * fraction)
    got = Transfer(T, gamma, fraction)(torch.tensor(a).double(), torch.tensor(theta).double())
    assert got.item() == pytest.approx(expected)


def test_maximum_is_running_not_averaged():
    batches = [torch.tensor([[1.0]]), torch.tensor([[10.0]])]
    assert fit_threshold(statistics_of(*batches), "max", Transfer(8)).item() == 10.0


@given(st.floats(0.1, 99.99), st.integers(0, 2**16), st.booleans())
def test_percentile_within_its_tolerance(percent, seed, channel_wise):
    rng = np.random.default_rng(seed)
    # Later batches reach further, so that ranges have to widen.
    batches = [rng.normal(0, scale, (50, 3, 4)).astype(np.float32) for scale in (0.1, 1.0, 30.0)]
    statistics = statistics_of(*map(torch.from_numpy, batches), channel_wise=channel_wise)
    a = np.maximum(np.concatenate(batches), 0)
    got = percentile_threshold(statistics, percent).numpy()
    for c in range(3 if channel_wise else 1):
        values = a[:, c] if channel_wise else a
        if np.percentile(values, percent, method="lower") == 0:
            values = values[values > 0]
        low, high = (
            np.percentile(values, percent, method="lower"),
            np.percentile(values, percent, method="higher"),
        )
        tolerance = 2 * values.max() / ActivationStatistics.BINS
        assert low - tolerance <= got[c] <= high + tolerance


@pytest.mark.parametrize(("gamma", "T", "fraction"), [(1, 4, 0.5), (4, 2, 0.0), (2, 8, 0.5)])
def test_mse_is_as_good_as_brute_force(gamma, T, fraction):
    torch.manual_seed(1)
    z = torch.randn(4000, 3) * torch.tensor([1.0, 0.1, 5.0])
    theta = mse_threshold(statistics_of(z), Transfer(T, gamma, fraction))
    a = z.relu().double().numpy()

    def error(c, value):
        count = np.clip(np.floor((a[:, c] * T + fraction * value) / value), 0, gamma * T)
        return ((value / T * count - a[:, c]) ** 2).sum()

    for c in range(3):
        best = min(error(c, v) for v in np.linspace(0.005, 1, 2000) * a[:, c].max() / gamma)
        assert error(c, theta[c].item()) <= 1.02 * best


def plain_search(statistics, T, gamma, fraction):
    """The same grids, every bin for every candidate; the least errors and their thresholds."""
    found = []
    for c in range(len(statistics.maximum)):
        a, weight = statistics.centres[c].double().numpy(), statistics.histogram[c].numpy()
        largest = statistics.maximum[c].item() / gamma

        def error(part, a=a, weight=weight, largest=largest):
            theta = part * largest
            count = np.clip(np.floor((a * T + fraction * theta) / theta), 0, gamma * T)
            return (weight * (theta / T * count - a) ** 2).sum()

        coarse = min((k / 100 for k in range(1, 101)), key=error)
        fine = [min(max(coarse + k / 1000, 1e-3), 1.0) for k in range(-10, 11)]
        found.append((largest * min(fine, key=error), error))
    return found


@pytest.mark.parametrize(
    ("T", "gamma", "fraction"),
    [(4, 1, 0.5), (3, 4, 0.0), (1, 1, 0.5), (8, 15, 0.5), (64, 8, 0.25), (64, 9, 0.5)],
)
def test_mse_finds_what_a_plain_search_finds(T, gamma, fraction):
    """With few levels from the tails of the histogram, with many (the last) from its bins."""
    z = torch.randn(3000, 5) * torch.tensor([1.0, 0.1, 5.0, 1e-3, 1e3]) - torch.tensor([0, 0.2, 1, 0, 0])
    statistics = statistics_of(z)
    theta = mse_threshold(statistics, Transfer(T, gamma, fraction)).tolist()
    expected = plain_search(statistics, T, gamma, fraction)
    same = [
        got == pytest.approx(wanted, rel=1e-5) for got, (wanted, _) in zip(theta, expected, strict=True)
    ]
    assert sum(same) >= 4  # of equally good ones any may be found
    for c, (wanted, error) in enumerate(expected):
        largest = statistics.maximum[c].item() / gamma
        assert error(theta[c] / largest) == pytest.approx(error(wanted / largest), rel=1e-3)


@pytest.mark.parametrize(
    ("mean", "std", "levels", "expected"),
    [(0.0, 1.0, 4, 2.135), (-0.5, 1.0, 8, 2.243), (0.3, 0.7, 16, 2.273)],
)
def test_gaussian_check_values(mean, std, levels, expected):
    theta = gaussian_fixed_point(torch.tensor(mean), torch.tensor(std), levels)
    assert theta.item() == pytest.approx(expected, abs=1e-3)


def test_gaussian_is_near_the_brute_force_optimum_on_gaussian_data():
    torch.manual_seed(0)
    z = 0.3 + 0.7 * torch.randn(20000, 1)
    T, gamma = 4, 2
    theta = fit_threshold(statistics_of(z), "gaussian", Transfer(T, gamma)).item()
    a = z.relu()

    def error(value):
        # Levels are rounded to nearest: the rule assumes it.
        count = torch.floor(a * T / value + 0.5).clamp(0, gamma * T)
        return (value / T * count - a).square().mean().item()

    best = min(error(v) for v in np.linspace(0.3, 3, 300) / gamma * 1.0)
    assert error(theta) <= 1.05 * best


def test_bounded_activations_bound_the_threshold():
    statistics = statistics_of(torch.tensor([[9.0], [3.0]]), upper=6.0)
    assert fit_threshold(statistics, "max", Transfer(8, 4)).item() == 1.5
    assert statistics.maximum.item() == 6.0


def test_dead_channels_get_a_finite_positive_threshold():
    statistics = statistics_of(torch.tensor([[1.0, -1.0, 3.0], [2.0, -2.0, 4.0]]))
    for rule in ("max", "99%", "mse", "gaussian"):
        theta = fit_threshold(statistics, rule, Transfer(8))
        assert theta[1] == theta[[0, 2]].median()  # as its neighbours
        assert theta[1] > 0
    nothing = statistics_of(torch.full((4, 2), -1.0))
    assert fit_threshold(nothing, "mse", Transfer(8)).tolist() == [1.0, 1.0]


def test_parse_percentile():
    assert parse_percentile("99.9%") == 99.9
    assert parse_percentile("0%") is None
    assert parse_percentile("101%") is None
    assert parse_percentile("max") is None


def test_ann_potential_balances_the_mean():
    torch.manual_seed(0)
    z = torch.randn(5000, 2) * torch.tensor([1.0, 3.0])
    statistics, transfer = statistics_of(z), Transfer(4, 2)
    theta = fit_threshold(statistics, "mse", transfer)
    v0 = ann_potential(statistics, transfer, theta)
    assert ((v0 >= 0) & (v0 < theta)).all()
    a = z.relu()
    mean = transfer(a, theta, v0).mean(0)
    assert torch.allclose(mean, a.mean(0), rtol=5e-3)


def test_a_bound_needs_a_finite_gamma():
    statistics = ActivationStatistics(upper=6.0)
    statistics.update(torch.rand(4, 3))
    with pytest.raises(ValueError, match="give it a finite one"):
        fit_threshold(statistics, "max", Transfer(8, math.inf))


@pytest.mark.parametrize("levels", [60, 480])
def test_gaussian_converges_with_many_levels(levels):
    """Its own equation holds: one more iteration changes nothing."""
    for mean in (-2.0, 0.0, 3.0):
        theta = gaussian_fixed_point(torch.tensor(mean), torch.tensor(1.0), levels)
        i = torch.arange(1, levels + 1, dtype=torch.float64)
        u = ((2 * i - 1) * theta / (2 * levels) - mean) / math.sqrt(2)
        denominator = 1 - ((2 * i - 1) / levels**2 * u.erf()).sum()
        factor = mean / theta * (1 - u.erf().mean()) / denominator
        factor += (-u.square()).exp().mean() / (theta * math.sqrt(math.pi / 2)) / denominator
        assert abs(factor - 1) < 1e-6


def test_a_percentile_among_the_zeros_is_that_of_the_others():
    statistics = ActivationStatistics()
    a = torch.zeros(4000, 2)
    a[:, 0], a[0, 1] = torch.linspace(0, 1, 4000), 0.5
    statistics.update(a)
    assert fit_threshold(statistics, "99.9%", Transfer(8)).tolist() == pytest.approx(
        [0.999, 0.5], rel=1e-3
    )
