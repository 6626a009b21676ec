"""Γ by layer against all combinations, with losses summed over single activations."""

import itertools
import math

import pytest
import torch

from sj_burst.rules.burst_allocation import Choice, allocate_bursts, choose
from sj_burst.rules.statistics import ActivationStatistics
from sj_burst.rules.threshold import fit_threshold
from sj_burst.rules.transfer import Transfer

STEPS, SAMPLES = 2, 30


def seen(channels, positions, channel_wise=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(SAMPLES, channels, positions, generator=generator)
    statistics = ActivationStatistics(channel_wise)
    statistics.update(z)
    return z, statistics


def loss(z, statistics, weight, gamma, rule):
    """Per sample, one activation after the other."""
    transfer = Transfer(STEPS, gamma, 0.5)
    theta = fit_threshold(statistics, rule, transfer).expand(z.shape[1]).tolist()
    total = 0.0
    for c, g in enumerate(weight.expand(z.shape[1]).tolist()):
        for a in z[:, c].flatten().clamp_min(0).tolist():
            count = min(math.floor(a * STEPS / theta[c] + 0.5), gamma * STEPS)
            total += g / 2 * (theta[c] * count / STEPS - a) ** 2 if a > 0 else 0.0
    return total / SAMPLES


@pytest.mark.parametrize("channel_wise", [True, False])
@pytest.mark.parametrize("rule", ["mse", "99.9%"])
@pytest.mark.parametrize("importance", [1.0, 30.0])
def test_no_combination_of_that_mean_loses_much_less(channel_wise, rule, importance):
    shapes, mean = {"wide": (3, 20), "narrow": (2, 4)}, 3
    layers = {name: seen(*shape, channel_wise, i) for i, (name, shape) in enumerate(shapes.items())}
    weight = {"wide": torch.tensor([1.0, 2.0, 0.5]), "narrow": importance * torch.tensor([3.0, 1.0])}
    if not channel_wise:
        weight = {name: one.mean().view(1) for name, one in weight.items()}
    neurons = {name: math.prod(shape) for name, shape in shapes.items()}
    statistics = {name: one for name, (_, one) in layers.items()}
    found = allocate_bursts(statistics, weight, neurons, Transfer(STEPS, mean, 0.5), rule)

    def spent(chosen):
        return sum(neurons[name] * gamma for name, gamma in chosen.items())

    most = mean * sum(neurons.values())
    assert spent(found) <= most
    losses = {
        name: {gamma: loss(*layers[name], weight[name], gamma, rule) for gamma in range(1, 25)}
        for name in shapes
    }
    total = {
        pair: losses["wide"][pair[0]] + losses["narrow"][pair[1]]
        for pair in itertools.product(range(1, 25), repeat=2)
    }
    within = [pair for pair in total if spent(dict(zip(shapes, pair, strict=True))) <= most]
    chosen = total[found["wide"], found["narrow"]]
    # Γ are tried in steps, and the histogram knows activations to a two-thousandth of their range.
    assert chosen <= 1.1 * min(total[pair] for pair in within)
    assert chosen <= total[mean, mean] * (1 + 1e-6)


def test_the_layer_that_matters_gets_the_longest_bursts():
    _, one = seen(2, 10)
    statistics = {str(i): one for i in range(3)}
    weight = {str(i): torch.full((2,), 10.0**i) for i in range(3)}
    found = allocate_bursts(
        statistics, weight, dict.fromkeys(statistics, 20), Transfer(2, 6, 0.5), "mse"
    )
    assert found["0"] < found["1"] < found["2"] and sum(found.values()) <= 18


def test_alike_layers_share_evenly():
    _, one = seen(2, 10)
    names = ["a", "b", "c"]
    weight = dict.fromkeys(names, torch.ones(2))
    found = allocate_bursts(
        dict.fromkeys(names, one), weight, {"a": 20, "b": 20, "c": 20}, Transfer(2, 7, 0.5), "mse"
    )
    assert found == dict.fromkeys(names, 7)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_choice_loses_less_for_no_more(seed):
    generator = torch.Generator().manual_seed(seed)
    tables = {
        name: [Choice(k + 1, *torch.rand(2, generator=generator).tolist()) for k in range(4)]
        for name in "abcd"
    }
    every = list(itertools.product(*tables.values()))
    for most in (max(0.3, min(sum(row.cost for row in one) for one in every)), 1.5, 2.5, 10.0):
        found = choose(tables, most)
        rows = [tables[name][gamma - 1] for name, gamma in found.items()]
        assert sum(row.cost for row in rows) <= most * (1 + 1e-6)
        best = min(sum(r.loss for r in one) for one in every if sum(r.cost for r in one) <= most)
        assert sum(row.loss for row in rows) == pytest.approx(best)


def test_many_layers_are_chosen_from_within_the_cost():
    table = [Choice(k, k + 0.1 * k**0.5, 1 / k**2) for k in range(1, 30)]
    tables = {str(i): [row._replace(loss=row.loss * (i + 1)) for row in table] for i in range(60)}
    found = choose(tables, 300.0)
    assert sum(tables[name][gamma - 1].cost for name, gamma in found.items()) <= 300 * (1 + 1e-6)
    assert found["0"] < found["59"]


def test_a_cost_that_one_combination_meets_is_met():
    tables = {
        "a": [Choice(4, 10000.0, 2.0), Choice(8, 10001.0, 1.0)],
        "b": [Choice(4, 10003.0, 2.0)],
    }
    assert choose(tables, 20003.0) == {"a": 4, "b": 4}
    assert choose({"a": [Choice(2, 0.0, 1.0)]}, 0.0) == {"a": 2}
    with pytest.raises(ValueError, match="no choice of Γ by layer costs at most 2e"):
        choose(tables, 20000.0)
    with pytest.raises(ValueError, match="or losses are NaN"):
        choose({"a": [Choice(2, 0.0, math.nan)]}, 1.0)


def test_the_cheapest_is_kept_for_the_layers_to_come(monkeypatch):
    monkeypatch.setattr("sj_burst.rules.burst_allocation._KEPT", 2)
    table = [Choice(k, 1000 + k, 1 / k) for k in range(1, 9)]  # all of them in one sliver
    assert choose(dict.fromkeys("abc", table), 3003.0) == dict.fromkeys("abc", 1)


@pytest.mark.parametrize("mean", [63, 120, 200])
def test_a_large_mean_is_allocated_too(mean):
    wide, narrow = ActivationStatistics(), ActivationStatistics()
    for one in (wide, narrow):
        one.update(torch.linspace(0, 1, 2000).unsqueeze(1))
    weight = {"wide": torch.tensor([1.0]), "narrow": torch.tensor([100.0])}
    sizes = {"wide": 900, "narrow": 100}
    both = {"wide": wide, "narrow": narrow}
    found = allocate_bursts(both, weight, sizes, Transfer(1, mean, 0.5), "mse")
    assert found["wide"] < mean < found["narrow"]
