"""The currents of expected spikes: a network that sends only the others, written out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_burst.export import expected_currents, to_integers, to_neurobench, to_sinabs, unit_thresholds
from tests.networks import resnet

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
    assert sorted(extra) == ["3", "6"] and all(node.expected is not None for node in nodes.values())
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
        z = F.conv2d(sent, second.weight, second.bias, padding=1, stride=2) + extra["3"]
        sent = neuron("4", z).flatten(1)
        out = F.linear(sent, last.weight, last.bias) + extra["6"]
        assert torch.allclose(out, wanted[t], atol=1e-4), t
    assert any(
        (current - current.mean((-1, -2), keepdim=True)).abs().max() > 1e-3 for current in [extra["3"]]
    )  # borders differ


def test_sums_and_poolings(convert):
    """On a residual network: currents with all spikes are those of the others and the constant."""
    x = torch.rand(8, 3, 12, 12)
    net = resnet()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.0, 1.5)
    snn = convert(net, [x], time_steps=2, expected_spikes="median").double()
    extra, x = expected_currents(snn), x.double()
    seen = {}
    name = max(extra, key=lambda key: extra[key].numel())
    layer, node = snn.graph.get_submodule(name), None
    layer.register_forward_hook(lambda _, given, out: seen.update(given=given[0], out=out))
    with torch.no_grad():
        snn.run(x, 1)
        reader = next(n for n in snn.graph.graph.nodes if n.target == name)
        node = snn.graph.get_submodule(str(reader.all_input_nodes[0].target))
        rest = seen["given"] - (node.threshold * node.expected).view(-1, 1, 1)
        again = F.conv2d(rest, layer.weight, layer.bias, layer.stride, layer.padding) + extra[name]
    assert torch.allclose(again, seen["out"], atol=1e-9)


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
