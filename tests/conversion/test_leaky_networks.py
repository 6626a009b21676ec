"""The leaky burst neuron against two plain neurons, and against loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional as sj_functional
from torch import nn

from sj_burst import BurstIFNode, load, report, save, set_backend, simulate, synops

SLOPES = st.sampled_from([-0.5, 0.01, 0.2, 1.0, 2.0])


def by_loop(z_seq, theta, gamma, v, slope):
    """Outputs, counts and membrane potential of one neuron, step by step."""

    def sent(count):
        return theta * count if count >= 0 else slope * theta * count

    total, outputs, numbers = 0, [], []
    for z in z_seq:
        v = v + z
        n = max(-gamma, min(gamma, math.floor(v / theta)))
        v, total = v - theta * n, total + n
        outputs.append(sent(total) - sent(total - n))
        numbers.append(n)
    return outputs, numbers, v


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=12), st.integers(1, 5), SLOPES, st.booleans())
def test_equals_the_loop_and_conserves_charge(currents, gamma, slope, half):
    theta, z_seq = 0.5, [c / 8 for c in currents]  # exact in binary
    exact = torch.tensor(theta, dtype=torch.float64)  # as is the slope then
    node = BurstIFNode(exact, gamma, theta / 2 * half, negative_slope=slope, step_mode="m")
    with torch.no_grad():
        node.count_spikes = True
        y_seq = node(torch.tensor(z_seq, dtype=torch.float64).view(-1, 1, 1)).flatten()
    outputs, numbers, v = by_loop(z_seq, theta, gamma, theta / 2 * half, slope)
    assert y_seq.tolist() == pytest.approx(outputs, abs=1e-12)
    assert node.v.item() == v
    assert sum(z_seq) == pytest.approx(theta * sum(numbers) + v - theta / 2 * half, abs=1e-12)
    assert node.spike_counts.per_step.tolist() == [abs(n) for n in numbers]


@torch.no_grad()
def test_converges_to_the_two_neurons_it_stands_for():
    torch.manual_seed(0)
    mean, slope = torch.randn(1, 4, 50), 0.2
    for steps in (8, 64, 512):
        z_seq = mean + 0.3 * torch.randn(steps, 4, 50)
        z_seq += mean - z_seq.mean(0)
        leaky = BurstIFNode(0.25, 16, 0.125, negative_slope=slope, step_mode="m")
        up, down = (BurstIFNode(0.25, 16, 0.125, signed=True, step_mode="m") for _ in range(2))
        pair = up(z_seq).mean(0) - slope * down(-z_seq).mean(0)
        wanted = nn.functional.leaky_relu(mean[0], slope)
        for rate in (leaky(z_seq).mean(0), pair):
            assert (rate - wanted).abs().max() <= 1.01 * (0.25 + 4 * 0.3) / steps


@pytest.mark.parametrize("backend", ["torch", "numba"])
@torch.no_grad()
def test_steps_chunks_and_backends_give_the_same(backend):
    if backend == "numba":
        pytest.importorskip("numba")
    torch.manual_seed(0)
    z_seq = torch.randn(12, 3, 5, 4, 4)
    slope, theta = torch.tensor([0.1, 0.25, 0.01, 1.0, 0.3]), torch.rand(5) + 0.1

    def fresh(mode):
        node = BurstIFNode(theta, 3, theta / 3, negative_slope=slope, step_mode=mode)
        set_backend(node, backend if mode == "m" else "torch")
        return node

    state = BurstIFNode(torch.rand(5) + 0.1, 3, torch.rand(5) / 10, negative_slope=slope).state_dict()
    single, whole, parts = fresh("s"), fresh("m"), fresh("m")
    for node in (single, whole, parts):
        node.v_init = state["v_init"]
    steps = torch.stack([single(z) for z in z_seq])
    assert torch.equal(whole(z_seq), steps)
    assert torch.equal(torch.cat([parts(z) for z in z_seq.split((1, 7, 4))]), steps)
    assert torch.equal(whole.v, single.v) and torch.equal(whole.sent, single.sent)


def darknet():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.LeakyReLU(0.1)),
        *(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 8, 1), nn.RReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.PReLU()),
    ).eval()


@pytest.mark.parametrize("calibration", ["none", "advanced"])
def test_leaky_networks_convert(convert, tmp_path, calibration):
    net, x = darknet(), torch.randn(32, 3, 8, 8)
    snn = convert(net, [x], calibration=calibration, threshold="max", max_spikes=16)
    assert all(node.negative_slope is not None for node in snn.neurons().values())
    with torch.no_grad():
        limit = 0.01 if calibration == "none" else 0.05
        assert (snn.run(x, 128).mean(0) - net(x)).norm() < limit * net(x).norm()
        save(snn, tmp_path / "snn.pt")
        assert torch.equal(load(tmp_path / "snn.pt", darknet()).run(x, 3), snn.run(x, 3))
    found, counted = report(snn, net, [x], 4), synops(snn, [x], 4)
    result = simulate(snn, [x], 4, progress=False)
    for layer in found.layers:
        if layer.rate is not None:
            neurons = snn_size(snn, x, layer.name)
            assert layer.rate * neurons * 4 == pytest.approx(
                result.spikes[layer.name].sum().item(), rel=1e-4
            )
    assert counted.synops == pytest.approx(found.operations.synops)
    # Every spike of the third layer of neurons reaches, averaged over the map, the linear layer.
    third = list(result.spikes)[2]
    assert counted.layers["10"].synops == pytest.approx(4 * result.spikes[third].sum().item(), rel=1e-4)


def snn_size(snn, x, name):
    """Neurons of a layer per sample."""
    sizes = []
    handle = snn.neurons()[name].register_forward_hook(lambda _, __, y: sizes.append(y[0].numel()))
    with torch.no_grad():
        snn.run(x[:1], 2)
    handle.remove()
    return sizes[0]


def test_functions_and_slopes(convert):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.slope = nn.Linear(3, 6), nn.Parameter(torch.linspace(-0.2, 0.6, 6))

        def forward(self, x):
            x = nn.functional.leaky_relu(self.first(x), 0.3)
            x = nn.functional.rrelu(x - 0.5, 0.1, 0.3, self.training)
            return nn.functional.prelu(nn.functional.leaky_relu(x - 0.2, 0.0) - 0.1, self.slope)

    net, x = Functional().eval(), torch.randn(64, 3)
    snn = convert(net, [x], calibration="none", threshold="max", max_spikes=16)
    leaky = [node.negative_slope is not None for node in snn.neurons().values()]
    assert leaky == [True, True, False, True]
    with torch.no_grad():
        assert (snn.run(x, 256).mean(0) - net(x)).norm() < 0.05 * net(x).norm()
    with pytest.raises(ValueError, match=r"spike_calibration.* use .signed."):
        convert(net, [x], inactivated_spikes="spike_calibration", allowance=1)


def test_gradients_pass(convert):
    net, x = darknet(), torch.randn(4, 3, 8, 8)
    snn = convert(net, [x], calibration="none", max_spikes=2)
    snn.run(x, 3).sum().backward()
    gradient = snn.graph.get_submodule("0").weight.grad
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    sj_functional.reset_net(snn)


def test_a_slope_has_to_be_finite():
    with pytest.raises(ValueError, match="negative_slope must be finite, got nan"):
        BurstIFNode(negative_slope=math.nan)
