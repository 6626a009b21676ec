"""Thresholds by rate and distortion against sums over single activations, and against all choices."""

import itertools
import math

import pytest
import torch

from sj_burst.rules.rate_distortion import Candidates, allocate, candidates
from sj_burst.rules.statistics import ActivationStatistics
from sj_burst.rules.transfer import Transfer


def observed(z, **options):
    statistics = ActivationStatistics(**options)
    statistics.update(z)
    return statistics


@pytest.mark.parametrize("upper", [math.inf, 1.5])
@pytest.mark.parametrize(("steps", "gamma", "fraction"), [(4, 2, 0.5), (1, 15, 0.0), (3, 1, 0.5)])
def test_rows_are_what_single_neurons_send_and_lose(steps, gamma, fraction, upper):
    samples, positions = 40, 5
    z = torch.randn(samples, 3, positions, generator=torch.Generator().manual_seed(0))
    given = torch.tensor([0.22, 0.32, 0.42])
    weight, fan_out = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([5.0, 7.0, 9.0]).double()
    found = candidates(
        observed(z, upper=upper), Transfer(steps, gamma, fraction), given, samples, weight, fan_out
    )
    assert torch.equal(found.threshold[0], given.double())
    assert set(found.max_spikes) == (
        {gamma} if upper == math.inf else {15: {15, 7, 3, 1}, 2: {2, 1}, 1: {1}}[gamma]
    )
    for k in (0, 1, len(found.threshold) // 2, len(found.threshold) - 1):
        for c in range(3):
            theta, most = found.threshold[k, c].item(), found.max_spikes[k]
            cost = loss = 0.0
            for a in z[:, c].flatten().clamp(0, upper).tolist():
                count = min(
                    max(math.floor((a * steps + fraction * theta) / theta + 1e-9), 0), most * steps
                )
                cost += fan_out[c].item() * count / samples
                if a > 0:
                    loss += weight[c].item() / 2 * (theta * count / steps - a) ** 2 / samples
            # The histogram knows activations to a two-thousandth of their range.
            assert found.cost[k, c].item() == pytest.approx(cost, rel=0.03, abs=0.3)
            assert found.loss[k, c].item() == pytest.approx(loss, rel=0.03, abs=0.01)


def test_bounded_activations_keep_their_bound():
    statistics = observed(torch.rand(50, 4) * 8, upper=6.0)
    one = torch.ones(4).double()
    found = candidates(statistics, Transfer(2, 3), torch.full((4,), 2.0), 50, one, one)
    for row, most in zip(found.threshold, found.max_spikes, strict=True):
        assert (row * most <= 6.0 + 1e-9).all()
    chosen, _ = allocate({"0": found}, 0.3 * found.cost[0].sum().item())
    theta, most = chosen["0"]
    assert most == 1 and (theta > 2).any()


def table(seed, rows, channels, kinds=1):
    generator = torch.Generator().manual_seed(seed)
    cost, loss = (torch.rand(rows, channels, generator=generator).double() for _ in range(2))
    return Candidates(cost.clone(), [k % kinds + 1 for k in range(rows)], cost, loss)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_loses_less_for_no_more(seed):
    layers = {"a": table(seed, 4, 2), "b": table(seed + 100, 4, 3, kinds=2)}
    for budget in (0.5, 1.5, 2.5, 10.0):
        chosen, spent = allocate(layers, budget)
        least = sum(layer.cost.amin(0).sum().item() for layer in layers.values())
        assert spent <= max(budget, least) + 1e-9 or budget < least
        picks = {
            name: [
                (layers[name].threshold[:, c] == theta[c]).nonzero().item() for c in range(len(theta))
            ]
            for name, (theta, _) in chosen.items()
        }
        assert len({k % 2 for k in picks["b"]}) == 1  # one Γ for the layer
        loss = sum(layers[n].loss[k, c].item() for n, ks in picks.items() for c, k in enumerate(ks))
        for first, second, *others in itertools.product(range(4), repeat=5):
            if len({k % 2 for k in others}) > 1:
                continue
            choice = [("a", 0, first), ("a", 1, second), *(("b", c, k) for c, k in enumerate(others))]
            cost = sum(layers[n].cost[k, c].item() for n, c, k in choice)
            other = sum(layers[n].loss[k, c].item() for n, c, k in choice)
            assert cost > spent - 1e-9 or other >= loss - 1e-9


def test_less_loss_than_equal_levels_for_as_much():
    """Equal levels: every channel's largest activation takes as many."""
    torch.manual_seed(0)
    statistics = observed(torch.randn(2000, 6) * torch.rand(6))
    weight, fan_out = torch.logspace(0, 3, 6).double(), torch.logspace(2, 0, 6).double()
    given = statistics.maximum / 6
    layer = candidates(statistics, Transfer(4, 4, 0.5), given, 2000, weight, fan_out)
    chosen, spent = allocate({"0": layer}, layer.cost[0].sum().item())
    assert spent <= layer.cost[0].sum()
    picks = (layer.threshold == chosen["0"][0]).double().argmax(0, keepdim=True)
    assert layer.loss.gather(0, picks).sum() < 0.8 * layer.loss[0].sum()


def test_fine_levels_follow_the_cube_root():
    """δ ∝ (F Σa / g n)^(1/3): eight times the fan-out, or an eighth of the weight, doubles it."""
    z = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 3)
    weight, fan_out = torch.tensor([1.0, 1.0, 0.125]).double(), torch.tensor([1.0, 8.0, 1.0]).double()
    layer = candidates(observed(z), Transfer(1, 400, 0.5), torch.ones(3), 20_000, weight, fan_out)
    theta, _ = allocate({"0": layer}, 150.0)[0]["0"]
    assert theta[0] < 0.1  # fine
    assert (theta / theta[0]).tolist() == pytest.approx([1.0, 2.0, 2.0], rel=0.15)
