"""The price on spikes: what it counts, and that a network keeps to its budget."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_burst import synops
from sj_burst.graph.quantised import quantised
from sj_burst.modules.encoding import CompensatedRateEncoder, PoissonEncoder, RateEncoder
from sj_burst.modules.rate import RateNeuron
from sj_burst.training import distil
from sj_burst.training.energy import EnergyPenalty
from sj_burst.utils.inference import forward_hooks
from sj_burst.utils.inputs import Inputs
from tests.networks import vgg

ENCODED = (CompensatedRateEncoder, PoissonEncoder, RateEncoder)
X = torch.rand(48, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def averaged():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)),
    )


@pytest.mark.parametrize("make", [vgg, averaged])
def test_it_counts_what_synops_counts(convert, make):
    """In one step a count is a number of spikes."""
    snn = convert(make(), [X], time_steps=1, max_spikes=7)
    rates = quantised(snn.graph, 1)
    penalty = EnergyPenalty(snn, rates, Inputs(X[:1]), 2.0, 1, 300)
    rates(X)
    price = penalty.price
    value = penalty().item()
    spent = penalty.spent * penalty.allowed
    assert value == pytest.approx(price * penalty.spent**6)
    found = synops(snn, [X], 1)
    assert spent == pytest.approx(found.synops, rel=1e-4)
    within = penalty.allowed / 0.97 * 0.9 + 4.6 * found.macs
    assert within == pytest.approx(2.0 * found.ann_energy)
    assert (penalty.price > price) == (spent > penalty.allowed)


@pytest.mark.parametrize("coding", ["rate", "compensated", "poisson"])
def test_it_counts_the_spikes_of_encoders(convert, coding):
    snn = convert(averaged(), [X], time_steps=4, max_spikes=7, coding=coding)
    found = [(n, m) for n, m in snn.graph.named_modules() if isinstance(m, ENCODED)]
    (name, encoder), sent = found[0], []
    with torch.no_grad(), forward_hooks({name: encoder}, lambda *given: sent.append(given[-1])):
        snn.run(X, 4)
    sent = sent[-1].view(4, 48, 2, 8, 8)
    rates = quantised(snn.graph, 4)
    rates.get_submodule(name).register_forward_hook(lambda *_: sent.mean(0))  # as distillation does
    penalty = EnergyPenalty(snn, rates, Inputs(X[:1]), 4.0, 4, 300)
    rates(X)
    penalty()
    of_neurons = sum(
        (module.count.abs().mean(0) * penalty._fans[name]).sum().item()
        for name, module in rates.named_modules()
        if isinstance(module, RateNeuron)
    )
    # By hand: 3×3 with a border of zeros, to 8 channels.
    numbers = (sent / encoder.threshold).sum(0).abs()
    met = F.conv2d(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3), padding=1)
    wanted = (numbers * met * 8).sum().item() / 48
    assert penalty.spent * penalty.allowed - of_neurons == pytest.approx(wanted, rel=1e-3)


def test_gradients_reach_what_is_before_the_spikes(convert):
    snn = convert(averaged(), [X], time_steps=1, max_spikes=7)
    rates = quantised(snn.graph, 1)
    penalty = EnergyPenalty(snn, rates, Inputs(X[:1]), 1.0, 1, 300)
    rates(X)
    penalty().backward()
    assert rates.get_submodule("0").weight.grad.abs().sum() > 0
    assert rates.get_submodule("6").weight.grad is None  # its spikes are not counted


def test_a_distilled_network_keeps_to_its_budget(convert):
    ann = averaged()
    snn = convert(ann, [X], time_steps=1, max_spikes=15)
    before = synops(snn, [X], 1)
    budget = 0.8 * before.energy / before.ann_energy
    fitted = distil(snn, ann, X.split(8), epochs=25, energy_budget=budget, loss="mse", progress=False)
    found = synops(fitted, [X], 1)
    assert found.energy / found.ann_energy < 1.02 * budget


def test_with_an_encoder_too(convert):
    ann = averaged()
    snn = convert(ann, [X], time_steps=4, max_spikes=7, coding="rate")
    before = synops(snn, [X], 4)
    budget = 0.85 * before.energy / before.ann_energy
    fitted = distil(snn, ann, X.split(8), epochs=25, energy_budget=budget, loss="mse", progress=False)
    found = synops(fitted, [X], 4)
    assert found.energy / found.ann_energy < 1.04 * budget


def test_bad_budgets(convert):
    ann = averaged()
    snn = convert(ann, [X], calibration="none")
    with pytest.raises(ValueError, match=r"energy_budget=0.01: .* allow more"):
        distil(snn, ann, [X], energy_budget=0.01, progress=False)
    with pytest.raises(ValueError, match="energy_budget"):
        distil(snn, ann, [X], energy_budget=-1.0, progress=False)
