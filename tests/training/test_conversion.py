"""Networks with trained bounds, through the recipe."""

import math

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

from sj_burst import BurstRecipe, inactivated_share, load, save
from sj_burst.analysis.layers import layer_rates
from sj_burst.modules.bounded import BoundedActivation
from sj_burst.modules.neuron import neurons
from sj_burst.options import Options
from sj_burst.training.qcfs import QCFS
from sj_burst.training.rate_norm import RateNorm, replace_relu
from tests.networks import resnet
from tests.training.networks import X, qcfs_vgg, rate_norm_vgg

NETWORKS = [rate_norm_vgg, qcfs_vgg]


def bounds(ann):
    return {n: m.bound.item() for n, m in ann.named_modules() if isinstance(m, BoundedActivation)}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("max_spikes", [1, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channel_wise": False, "inactivated_spikes": "allow", "potential": "zero"},
        {"potential": "ann", "calibration": "light"},
        {"potential": "data", "calibration": "advanced"},
    ],
)
def test_the_threshold_is_the_bound_over_the_burst(convert, network, max_spikes, options):
    ann = network()
    snn = convert(ann, [X], threshold="trained", max_spikes=max_spikes, **options)
    for name, bound in bounds(ann).items():
        theta = snn.neurons()[f"{name}"].threshold
        assert torch.allclose(theta, torch.tensor(bound / max_spikes))


@torch.no_grad()
@pytest.mark.parametrize("max_spikes", [1, 4])
def test_it_converges_to_the_clipped_network(convert, max_spikes):
    ann = rate_norm_vgg()
    assert not torch.allclose(ann(X), rate_free(ann)(X), rtol=1e-2)  # the clips matter
    snn = convert(ann, [X], threshold="trained", max_spikes=max_spikes, calibration="none")
    out = snn.run(X, 512).mean(0)
    assert (out - ann(X)).norm() < 0.01 * ann(X).norm()


def rate_free(ann):
    net = nn.Sequential(*ann)
    for name in bounds(ann):
        net[int(name)] = nn.ReLU()
    return net


@torch.no_grad()
@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("network", ["vgg", "resnet"])
def test_one_step_of_bursts_is_exactly_qcfs(convert, levels, network):
    x = torch.randn(6, 3, 8, 8).double() if network == "resnet" else X.double()
    ann = qcfs_vgg(levels)
    if network == "resnet":
        ann = replace_relu(resnet(), lambda: QCFS(levels, bound=2.0), example=x[:2].float())
    ann = ann.double()
    snn = convert(ann, [x], threshold="trained", potential="half", max_spikes=levels, calibration="none")
    assert torch.allclose(snn.run(x, 1)[0], ann(x))


@pytest.mark.parametrize("network", NETWORKS)
def test_other_rules_stay_below_the_bound(convert, network):
    ann = network()
    free = convert(rate_free(ann), [X], threshold="max", max_spikes=2, calibration="none")
    snn = convert(ann, [X], threshold="max", max_spikes=2, calibration="none")
    first = next(iter(bounds(ann)))
    expected = free.neurons()[first].threshold.clamp(max=bounds(ann)[first] / 2)
    assert torch.allclose(snn.neurons()[first].threshold, expected)
    for name, bound in bounds(ann).items():
        assert (snn.neurons()[name].threshold <= bound / 2 + 1e-6).all()


class Counting(list):
    batches_read = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.batches_read += 1
            yield batch


def test_nothing_is_observed(convert):
    loader = Counting([X] * 5)
    convert(rate_norm_vgg(), loader, threshold="trained", calibration="none")
    assert loader.batches_read == 1  # the example


@torch.no_grad()
@pytest.mark.parametrize("network", NETWORKS)
def test_the_rest_of_the_package_takes_such_networks(convert, network, tmp_path):
    ann = network()
    state = {k: v.clone() for k, v in ann.state_dict().items()}
    snn = convert(ann, [X], threshold="trained", max_spikes=2)
    assert all(torch.equal(v, state[k]) for k, v in ann.state_dict().items())
    save(snn, tmp_path / "snn.pt")
    again = load(tmp_path / "snn.pt", network())
    expected = snn.run(X, 3)
    functional.reset_net(snn)
    assert torch.equal(expected, again.run(X, 3))
    assert list(inactivated_share(snn, ann, [X], 4)) == list(bounds(ann))
    for rate, activation in next(layer_rates(snn, ann, [X], 64)).values():
        if network is rate_norm_vgg:
            assert (rate - activation).norm() < 0.1 * activation.norm()


def test_a_shared_module_becomes_a_neuron_for_each_call(convert):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = nn.Linear(3, 4), nn.Linear(4, 2), QCFS(bound=0.5)

        def forward(self, x):
            return self.act(self.b(self.act(self.a(x))))

    snn = convert(Twice(), [torch.rand(8, 3)], threshold="trained", max_spikes=1)
    assert len(neurons(snn)) == 2
    assert all(torch.allclose(n.threshold, torch.tensor(0.5)) for n in neurons(snn).values())


def test_plain_relus_and_useless_bounds_are_refused(convert):
    net = nn.Sequential(nn.Linear(3, 4), QCFS(), nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(ValueError, match=r"'3'.*upper bound"):
        convert(net, [torch.rand(4, 3)], threshold="trained")
    net[1] = RateNorm()
    net[1].maximum.fill_(math.inf)
    with pytest.raises(ValueError, match="bound is inf"):
        convert(net, [torch.rand(4, 3)], threshold="mse")


def test_the_preset(convert):
    recipe = BurstRecipe([X], Options.preset("rnl"))
    assert recipe.options.threshold == "trained"


def test_calibration_aims_at_the_staircase(convert):
    """What QCFS computes, not the clipped ReLU that stands in for it in the graph."""
    ann = nn.Sequential(nn.Linear(4, 6), QCFS(levels=1, bound=1.5), nn.Linear(6, 2))
    x = torch.rand(256, 4)
    snn = convert(ann, [x], threshold="trained", time_steps=16, calibration="light")
    rate, activation = next(layer_rates(snn, ann, [x], 16))["1"]
    clipped = ann[0](x).clamp(0, 1.5)
    wrong = (clipped - activation).mean(0).abs().mean()
    assert (rate - activation).mean(0).abs().mean() < 0.3 * wrong
