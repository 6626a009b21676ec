"""The spike counter against counts of single spikes, in float64."""

import pytest
import torch
from spikingjelly.activation_based import ann2snn, functional, neuron
from torch import nn

from sj_burst import BurstIFNode, report, set_backend, simulate, synops
from sj_burst.backends.dispatch import is_installed
from sj_burst.simulation.spikes import SpikeCounter, count_spikes
from tests.networks import vgg

X = torch.rand(24, 2, 8, 8, generator=torch.Generator().manual_seed(0))
BITS = torch.tensor([bin(n).count("1") for n in range(64)]).double()
BACKENDS = [b for b in ("torch", "numba") if is_installed(b)]


class Reference:
    """Spikes of every neuron, counted one by one as their outputs come."""

    def __init__(self, snn, samples):
        self.samples, self.per_step, self.per_neuron = samples, {}, {}
        for name, node in snn.neurons().items():
            self.per_step[name], self.per_neuron[name] = [], 0
            node.register_forward_hook(lambda node, _, y, name=name: self.add(name, node, y))

    def add(self, name, node, y):
        if node.time_fold.batch == 1:  # one sample shows the shapes
            return
        y = y.double().unflatten(0, node.time_fold)
        theta = node.threshold.double().view(-1, *[1] * (y.dim() - 3))
        n = (y / theta).round().abs()
        self.per_step[name] += [step.sum().item() for step in n]
        events = torch.stack([n, BITS[n.long()], (n > 0).double()])
        self.per_neuron[name] = self.per_neuron[name] + events.sum((1, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"channel_wise": False, "inactivated_spikes": "allow"}])
def test_counts_are_exact_in_every_precision(convert, dtype, backend, options):
    x = X.repeat(20, 1, 1, 1)  # so many spikes that half precision cannot hold their sum
    snn = convert(vgg(), [x[:24]], calibration="none", threshold="60%", max_spikes=5, **options).to(
        dtype
    )
    set_backend(snn, backend)
    reference = Reference(snn, len(x))
    result = simulate(snn, [x.to(dtype)], 4, chunk=4, progress=False)
    for name, spikes in result.spikes.items():
        steps = torch.tensor(reference.per_step[name]).view(-1, 4).sum(0)
        assert steps.min() > 10_000
        assert torch.equal(spikes, (steps / len(x)).float()), name
    assert result.total_spikes.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_by_neuron(convert, backend):
    snn = convert(vgg(), [X], calibration="none")
    set_backend(snn, backend)
    reference = Reference(snn, len(X))
    with count_spikes(snn) as counter:
        snn.run(X[:10], 3)
        snn.run(X[10:], 5)
    for name, count in reference.per_neuron.items():
        assert torch.equal(counter.per_neuron[name], count), name
    assert not any(node.count_spikes for node in snn.neurons().values())
    assert all(node.spike_counts is None for node in snn.neurons().values())


@pytest.mark.skipif("numba" not in BACKENDS, reason="needs numba")
@pytest.mark.parametrize("use", [simulate, synops, report])
def test_what_the_backend_counts_is_taken_over(convert, monkeypatch, use):
    """No neuron's output is read a second time."""
    ann = vgg()
    snn = convert(ann, [X], calibration="none", max_pool="spike")
    set_backend(snn, "numba")
    read, count = [], SpikeCounter._count

    def spy(self, name, module, y):
        read.append(module)
        return count(self, name, module, y)

    monkeypatch.setattr(SpikeCounter, "_count", spy)
    arguments = {simulate: ([X], 4), synops: ([X], 4), report: (ann, [X], 4)}[use]
    use(snn, *arguments, **({"progress": False} if use is simulate else {}))
    assert read and not any(isinstance(module, BurstIFNode) for module in read)


def test_inputs_of_several_sizes(convert):
    ann = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1))
    snn = convert(ann.append(nn.Flatten()), [X], calibration="none")
    batches = [X, torch.rand(6, 2, 12, 12)]
    result = simulate(snn, batches, 4, progress=False)
    alone = [simulate(snn, [x], 4, progress=False) for x in batches]
    expected = sum(len(x) * r.total_spikes for x, r in zip(batches, alone, strict=True)) / 30
    assert torch.allclose(result.total_spikes, expected)
    assert result.operations is None and alone[1].operations is not None
    with pytest.raises(ValueError, match="count each size by itself"):
        synops(snn, batches, 4)


def test_keyword_arguments_of_networks_of_others():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.IFNode(v_reset=None)

        def forward(self, x):
            return self.node(x=x)

    spikes = simulate(Net(), [torch.full((2, 3), 0.5)], 4, progress=False).spikes["node"]
    assert spikes.tolist() == [0, 3, 0, 3]


@torch.no_grad()
def test_spikes_of_spikingjelly_by_neuron():
    snn = ann2snn.Converter(ann2snn.RateCodingRecipe([(X, X)], mode="max")).convert(vgg())
    expected = {}
    for name, node in snn.named_modules():
        if isinstance(node, neuron.BaseNode):

            def add(_, __, y, name=name):
                expected[name] = expected.get(name, 0) + y.sum(0, keepdim=True).double()

            node.register_forward_hook(add)
    with count_spikes(snn) as counter:
        for _ in range(3):
            snn(X)
    functional.reset_net(snn)
    assert expected and all(
        torch.equal(counter.per_neuron[name], n.expand(3, *n.shape[1:])) for name, n in expected.items()
    )
