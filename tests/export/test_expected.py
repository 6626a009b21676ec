"""The currents of expected spikes: a network that sends only the others, written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_burst import BurstIFNode
from sj_burst.export import expected_currents, to_integers, to_neurobench, to_sinabs, unit_thresholds
from sj_burst.modules.pooling import LIPool
from sj_burst.simulation.values import values_of
from sj_burst.simulation.walk import pool_units
from sj_burst.utils.inputs import Inputs
from tests.networks import resnet, vgg

X = torch.rand(12, 2, 9, 9, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(5, 6, 3, padding=1, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24, 3)),
    )
    nn.init.constant_(net[0].bias, 1.0)
    nn.init.constant_(net[3].bias, 0.5)
    return net


@torch.no_grad()
@pytest.mark.parametrize("unit", [False, True])
def test_neurons_that_send_the_rest_fire_alike(convert, unit):
    """Only n − r is multiplied by weights; the rest is a constant beside the bias."""
    snn = convert(network(), [X], time_steps=3, max_spikes=5, expected_spikes="median")
    snn = unit_thresholds(snn) if unit else snn
    extra, nodes, modules = expected_currents(snn), snn.neurons(), dict(snn.graph.named_modules())
    assert sorted(extra) == ["4", "output"] and all(node.expected is not None for node in nodes.values())
    wanted = snn.run(X, 3)
    memory = {}

    def neuron(name, z):
        node = nodes[name]
        theta, r = (t.view(-1, 1, 1) for t in (node.threshold, node.expected))
        v, sent = memory.setdefault(name, (node.v_init.view(-1, 1, 1).expand_as(z), torch.zeros_like(z)))
        m = v + z + (0 if node.shift is None else node.shift.view(-1, 1, 1))
        n = torch.maximum((m / theta).floor().clamp(-5, 5), -sent)
        memory[name] = m - theta * n, sent + n
        return theta * (n - r)

    first, second, last = modules["0"], modules["3"], modules["6"]
    pooled = modules["2"] if "2" in modules else nn.AvgPool2d(2)
    for t in range(3):
        sent = pooled(neuron("1", F.conv2d(X, first.weight, first.bias, padding=1)))
        z = F.conv2d(sent, second.weight, second.bias, padding=1, stride=2) + extra["4"]
        sent = neuron("4", z).flatten(1)
        out = F.linear(sent, last.weight, last.bias) + extra["output"]
        assert torch.allclose(out, wanted[t], atol=1e-4), t
    means = extra["4"].mean((-1, -2), keepdim=True)
    assert (extra["4"] - means).abs().max() > 1e-3  # borders differ


class Branches(nn.Module):
    """A shortcut without weights, a maximum of two branches, concatenation, and a last ReLU."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        for layer, bias in ((self.a, 1.0), (self.b, 0.8), (self.c, 0.5), (self.d, 0.5)):
            nn.init.constant_(layer.bias, bias)

    def forward(self, x):
        a, b = self.a(x).relu(), self.b(x).relu()
        c = (self.c(a) + a).relu()
        d = torch.maximum(a, b)
        return self.d(torch.cat([self.pool(c), self.pool(d)], 1)).relu().mean((2, 3))


def busy_resnet():
    net = resnet()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.0, 1.5)
    return net


@torch.no_grad()
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("channel_wise", [True, False])
@pytest.mark.parametrize(("make", "channels"), [(busy_resnet, 3), (vgg, 2), (Branches, 2)])
def test_a_chip_that_sends_the_rest_answers_alike(convert, make, channels, channel_wise, unit):
    """Everything that sends leaves out what is expected, everything that reads adds its constant."""
    torch.manual_seed(0)
    net, x = make(), torch.rand(8, channels, 8, 8)
    options = {"time_steps": 2, "max_spikes": 5, "channel_wise": channel_wise}
    snn = convert(net, [x], expected_spikes="median", **options).double()
    snn = unit_thresholds(snn) if unit else snn
    x, extra = x.double(), expected_currents(snn)
    wanted, units = snn.run(x, 3), pool_units(snn.graph, values_of(snn, Inputs(x[:1])))
    sends = [m for m in snn.graph.modules() if isinstance(m, (BurstIFNode, LIPool))]
    assert len(extra) > 1 and any(module.expected is not None for module in sends)

    def leave_out(name, module):
        unit = units.get(name, getattr(module, "threshold", None))

        def hook(_, __, y):
            if module.expected is None or unit is None:
                return y
            shape = (-1, *[1] * (y.dim() - 2))
            return y - module.expected.view(shape if module.expected.dim() else ()) * unit.view(
                shape if unit.dim() == 1 else unit.shape
            )

        return hook

    for name, module in snn.graph.named_modules():
        if isinstance(module, (BurstIFNode, LIPool)):
            module.register_forward_hook(leave_out(name, module))
            if name in extra:
                module.register_forward_pre_hook(lambda _, given, c=extra[name]: (given[0] + c,))
    sent = snn.run(x, 3) + extra.get("output", 0)
    assert torch.allclose(sent, wanted, atol=1e-9)


def test_there_are_none_without_expected_spikes(convert):
    assert expected_currents(convert(network(), [X])) == {}


def test_who_cannot_tell_refuses(convert):
    snn = convert(network(), [X], expected_spikes="median", weight_bits=8)
    with pytest.raises(ValueError, match="real weights"):
        expected_currents(to_integers(snn))
    with pytest.raises(ValueError, match="expected_spikes='none'"):
        to_neurobench(snn)
    with pytest.raises(ValueError, match="expected spikes"):
        to_sinabs(snn)
    with pytest.raises(TypeError, match="expected_currents wants"):
        expected_currents(network())
