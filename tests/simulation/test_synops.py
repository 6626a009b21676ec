import json

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import ann2snn, functional, neuron
from torch import nn

from sj_burst import simulate
from sj_burst.simulation.spikes import count_spikes
from sj_burst.simulation.synops import synops
from tests.networks import resnet, vgg


def spike_trains(snn, x, steps):
    """n(t) of every neuron ``[T, N, ...]``, one step at a time."""
    trains = {name: [] for name in snn.neurons()}
    handles = []
    for name, node in snn.neurons().items():

        def hook(node, _, y, name=name):
            theta = (
                node.threshold.view(-1, *[1] * (y.dim() - 2)) if node.threshold.dim() else node.threshold
            )
            trains[name].append((y / theta).round().abs())

        handles.append(node.register_forward_hook(hook))
    functional.reset_net(snn)
    with torch.no_grad():
        for _ in range(steps):
            snn(x)
    functional.reset_net(snn)
    for handle in handles:
        handle.remove()
    return {name: torch.stack(train) for name, train in trains.items()}


def conv_fanout(conv, i, j, size):
    """Weights that meet input position (i, j) of one channel, by trying all of them."""
    k, s, p, d = conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.dilation[0]
    outputs = (size + 2 * p - d * (k - 1) - 1) // s + 1
    hits = 0
    for oi in range(outputs):
        for oj in range(outputs):
            for ki in range(k):
                for kj in range(k):
                    hits += (oi * s - p + ki * d, oj * s - p + kj * d) == (i, j)
    return hits * conv.out_channels // conv.groups


def transposed_fanout(conv, i, j, size):
    k, s, p = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    outputs = (size - 1) * s - 2 * p + k + conv.output_padding[0]
    hits = 0
    for ki in range(k):
        for kj in range(k):
            hits += 0 <= i * s - p + ki < outputs and 0 <= j * s - p + kj < outputs
    return hits * conv.out_channels // conv.groups


def events_of(n, accounting):
    """How many events a burst is, one by one."""
    ones = {"unary": int, "binary": lambda k: bin(int(k)).count("1"), "graded": bool}[accounting]
    return torch.tensor([float(ones(k)) for k in n.flatten().tolist()]).view_as(n)


def brute_force(train, conv, fanout):
    """Python loops over every neuron's spikes."""
    counts = train.sum((0, 1))
    size = counts.shape[-1]
    table = [[fanout(conv, i, j, size) for j in range(size)] for i in range(size)]
    total = 0.0
    for c in range(len(counts)):
        for i in range(size):
            for j in range(size):
                total += counts[c, i, j].item() * table[i][j]
    return total / train.shape[1]


@pytest.mark.parametrize("channel_wise", [True, False])
def test_synops_of_a_network_of_spikingjelly(channel_wise):
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(96, 3)),
    )
    x, steps = torch.randn(6, 2, 7, 7), 5
    recipe = ann2snn.RateCodingRecipe([(x, x)], mode="99%", channel_wise=channel_wise)
    snn = ann2snn.Converter(recipe).convert(net)
    counts = {}
    for name, node in snn.named_modules():
        if isinstance(node, neuron.IFNode):
            node.register_forward_hook(lambda _, __, y, name=name: counts.setdefault(name, []).append(y))
    with torch.no_grad():
        for _ in range(steps):
            snn(x)
    functional.reset_net(snn)
    first, second = (torch.stack(train) for train in counts.values())
    counted = synops(snn, [x], steps)
    wanted = {"2": brute_force(first, net[2], conv_fanout), "5": 3 * second.sum().item() / 6}
    assert {k: v.synops for k, v in counted.layers.items() if k != "0"} == pytest.approx(wanted)
    assert counted.layers["0"].macs == counted.layers["0"].ann_macs


@pytest.mark.parametrize("signed", ["signed", "allow"])
@pytest.mark.parametrize("channel_wise", [True, False])
def test_synops_equal_a_brute_force_count(convert, signed, channel_wise):
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(6, 4, 3, padding=2, dilation=2), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 3)),
    )
    x = torch.randn(6, 2, 7, 7)
    snn = convert(
        net, [x], max_spikes=3, inactivated_spikes=signed, channel_wise=channel_wise, time_steps=5
    )
    counted = synops(snn, [x[:4], x[4:]], 5)
    trains = spike_trains(snn, x, 5)
    for source, layer, fanout in (
        ("1", "2", conv_fanout),
        ("3", "4", conv_fanout),
        ("5", "6", transposed_fanout),
    ):
        found = counted.layers[layer]
        for accounting, value in (
            ("unary", found.synops),
            ("binary", found.binary_synops),
            ("graded", found.graded_synops),
        ):
            expected = brute_force(events_of(trains[source], accounting), net[int(layer)], fanout)
            assert expected > 0
            assert value == pytest.approx(expected, rel=1e-9), accounting
        assert found.graded_synops < found.binary_synops < found.synops
        assert counted.layers[layer].macs == 0
    assert counted.layers["9"].synops == pytest.approx(trains["7"].sum().item() / 6 * 3)
    first = sum(conv_fanout(net[0], i, j, 7) for i in range(7) for j in range(7)) * 2
    assert counted.layers["0"].macs == counted.layers["0"].ann_macs == first
    assert counted.layers["9"].ann_macs == 128 * 3
    macs = 4.6 * counted.macs
    assert counted.energies["unary"] == counted.energy == pytest.approx(0.9 * counted.synops + macs)
    assert counted.energies["binary"] == pytest.approx(0.9 * counted.binary_synops + macs)
    assert counted.energies["graded"] == pytest.approx(4.6 * counted.graded_synops + macs)
    simulated = simulate(snn, [x], 5, progress=False).operations
    assert simulated.energies == pytest.approx(counted.energies)


class Mixed(nn.Module):
    """Sums, concatenation, slicing, functional calls, a weighted layer after a weighted one."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(8, 5)
        self.last = nn.Linear(5, 2)
        self.weight = nn.Parameter(torch.randn(2, 5))

    def forward(self, x):
        a = F.relu(self.first(x))
        b = F.relu(self.second(a))
        c = self.third(torch.cat([a - b, b * 2.0], 1))
        left, right = torch.chunk(a, 2, 1)
        return self.last(c) + F.linear(F.relu(c), self.weight) + left * 0.5 + right


def test_operators_between_neurons_and_weights(convert):
    x = torch.randn(10, 3)
    snn = convert(Mixed(), [x], max_spikes=2)
    counted = synops(snn, [x], 6)
    a, b, c = (train.sum().item() / 10 for train in spike_trains(snn, x, 6).values())
    layers = counted.layers
    assert layers["second"].synops == pytest.approx(a * 4)
    assert layers["third"].synops == pytest.approx((a + 2 * b) * 5)
    assert (layers["last"].synops, layers["last"].macs) == (0, 6 * 10)  # reads currents
    assert layers["linear"].synops == pytest.approx(c * 2)
    assert counted.ann_macs == 12 + 16 + 40 + 10 + 10
    assert counted.energy == pytest.approx(0.9 * counted.synops + 4.6 * (12 + 60))


@pytest.mark.parametrize("rule", ["lateral_inhibition", "spike", "gated"])
def test_max_pooling_passes_what_it_emits(convert, rule):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.MaxPool1d(2), nn.Linear(2, 5))
    x = torch.randn(8, 6, 3)
    snn = convert(net, [x], max_spikes=2, max_pool=rule, channel_wise=False, inactivated_spikes="allow")
    counted = synops(snn, [x], 5)
    theta = snn.neurons()["1"].threshold
    emitted = []
    snn.graph.get_submodule("2").register_forward_hook(
        lambda _, __, y: emitted.append((y / theta).round().abs())
    )
    with torch.no_grad():
        for _ in range(5):
            snn(x)
    found = counted.layers["3"]
    for accounting, value in (
        ("unary", found.synops),
        ("binary", found.binary_synops),
        ("graded", found.graded_synops),
    ):
        total = events_of(torch.stack(emitted), accounting).sum().item() / 8
        assert total > 0
        assert value == pytest.approx(total * 5, rel=1e-4), accounting


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool1d(3, 2, 1, ceil_mode=True),
        nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(3),
        nn.AvgPool2d((1, 3), (1, 2), (0, 1)),
    ],
)
def test_average_pooling_counts_a_spike_in_every_window(convert, pool):
    net = nn.Sequential(nn.Linear(7, 7), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(8, 4, 7)
    with torch.no_grad():
        net(x)
    snn = convert(net, [x], max_spikes=2)
    train = spike_trains(snn, x, 4)["1"].sum((0, 1)) / 8
    expected = 0.0
    for position in range(7):
        one = torch.zeros(1, 4, 7)
        one[..., position] = 1
        windows = (pool(one)[0, 0] > 0).sum().item()
        expected += train[:, position].sum().item() * windows * 2
    assert synops(snn, [x], 4).layers["4"].synops == pytest.approx(expected)


def test_spiking_inputs_cost_additions(convert):
    x = torch.randn(8, 3)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    snn = convert(net, [x], coding="rate")
    counted = synops(snn, [x], 8)
    theta = snn.graph.encoder.threshold.item()
    spikes, u = 0, torch.zeros_like(x)
    for _ in range(8):
        u = u + x
        n = (u / theta).trunc().clamp(-1, 1)
        spikes, u = spikes + n.abs().sum().item(), u - theta * n
    assert counted.macs == 0
    assert counted.layers["0"].synops == pytest.approx(spikes / 8 * 4)


@pytest.mark.parametrize("make, shape", [(resnet, (3, 8, 8)), (vgg, (2, 8, 8))])
def test_whole_networks(convert, make, shape):
    x = torch.randn(6, *shape)
    snn = convert(make(), [x])
    snn.step_mode = "m"
    counted = synops(snn, [x], 4)
    assert snn.step_mode == "m" and all(node.v is None for node in snn.neurons().values())
    assert counted.synops > 0 and 0 < counted.macs < counted.ann_macs
    assert json.loads(json.dumps(counted.to_dict()))["energy"] == pytest.approx(counted.energy)
    assert "µJ" in str(counted)
    # Every spike of the last neuron layer reaches the classifier.
    snn.step_mode = "s"
    spikes = simulate(snn, [(x, torch.zeros(6, dtype=torch.long))], 4, progress=False).spikes
    if make is resnet:
        last = list(spikes)[-1]
        assert counted.layers["linear"].synops == pytest.approx(10 * spikes[last].sum().item(), rel=1e-3)


def test_bad_arguments(convert):
    x = torch.randn(4, 3)
    snn = convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), [x])
    with pytest.raises(ValueError, match="time_steps must be an integer"):
        synops(snn, [x], 0)
    with pytest.raises(ValueError, match="empty"):
        synops(snn, [], 4)
    with pytest.raises(TypeError, match="converted networks only"):
        synops(nn.Linear(3, 2), [x], 4)
    with pytest.raises(TypeError, match="no neuron"):
        synops(torch.fx.symbolic_trace(nn.Linear(3, 2)), [x], 4)


class Scaled(nn.Module):
    """Max-pooling of what is not multiples of the neurons' thresholds themselves."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.c, self.kind = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 2), kind
        self.bn = nn.BatchNorm2d(4)
        nn.init.uniform_(self.bn.weight, 0.2, 4.0)

    def forward(self, x):
        y = F.relu(self.a(x))
        if self.kind == "norm":
            y = self.bn(y)
        elif self.kind == "factor":
            y = y * 4
        return self.c(F.max_pool2d(F.avg_pool2d(y, 2) if self.kind == "average" else y, 2))


@pytest.mark.parametrize("kind", ["plain", "norm", "factor", "average"])
def test_pooling_passes_whole_spikes_whatever_they_weigh(convert, kind):
    x = torch.randn(6, 2, 14, 14)
    snn = convert(Scaled(kind).eval(), [x], calibration="none", max_spikes=4)
    unit = {}
    for pool in snn.graph.modules():
        if type(pool).__name__ == "LIPool":
            pool.register_forward_hook(lambda m, _, y: unit.setdefault("y", []).append(y))
    counted = synops(snn, [x], 6)
    found = counted.layers["c"]
    assert found.graded_synops <= found.binary_synops <= found.synops
    theta = snn.neurons()[next(iter(snn.neurons()))].threshold.view(-1, 1, 1)
    bn = snn.graph.get_submodule("bn") if kind == "norm" else None
    factor = {"plain": 1.0, "factor": 4.0, "average": 0.25, "norm": None}[kind]
    if bn is not None:
        factor = (bn.weight / (bn.running_var + bn.eps).sqrt()).abs().view(-1, 1, 1)
    y = torch.cat([part for part in unit["y"] if len(part) > 1])
    n = (y / (theta * factor)).abs()
    fans = torch.zeros(n.shape[2:])
    for i in range(fans.shape[0]):
        for j in range(fans.shape[1]):
            one = torch.zeros(1, 1, *fans.shape)
            one[..., i, j] = 1
            fans[i, j] = F.conv2d(one, torch.ones(1, 1, 2, 2)).sum() * 3
    for accounting, value in (
        ("unary", found.synops),
        ("binary", found.binary_synops),
        ("graded", found.graded_synops),
    ):
        expected = (events_of((n).round(), accounting) * fans).sum().item() / 6
        assert value == pytest.approx(expected, rel=1e-3), accounting


class Combined(nn.Module):
    """Two branches of spikes, put together by a function, and a layer behind them."""

    def __init__(self, combine):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 6), nn.Linear(3, 6)
        self.last, self.combine = nn.Linear(6, 2), combine

    def forward(self, x):
        return self.last(self.combine(self.first(x).relu(), self.second(x).relu()))


@pytest.mark.parametrize(
    ("combine", "like"),
    [
        (torch.subtract, torch.sub),
        (lambda a, b: a + torch.negative(b), torch.sub),
        (lambda a, b: a.subtract(b), torch.sub),
        (lambda a, b: torch.rsub(b, a), torch.sub),
        (lambda a, b: torch.sub(a, b, alpha=0.5), lambda a, b: a - 0.5 * b),
        (lambda a, b: torch.rsub(b, a, alpha=0.5), lambda a, b: a - 0.5 * b),
        (lambda a, b: torch.add(a, other=b), torch.add),
        (lambda a, b: torch.add(input=a, other=b), torch.add),
        (lambda a, b: a.clone().add_(b), torch.add),
        (lambda a, b: torch.multiply(a, 0.25) + b.div(4), lambda a, b: a * 0.25 + b / 4),
        (lambda a, b: torch.true_divide(a, 4) + b, lambda a, b: a / 4 + b),
    ],
)
def test_one_sum_costs_the_same_by_any_name(convert, combine, like):
    x = torch.rand(20, 3)
    found, wanted = (
        synops(convert(Combined(made), [x], calibration="none"), [x], 4) for made in (combine, like)
    )
    assert found.layers["last"] == wanted.layers["last"]
    assert found.synops > 0


@pytest.mark.parametrize(
    "factor", [lambda y: y.mul(0.25), lambda y: y.div(4), lambda y: y * 0.25], ids=["mul", "div", "*"]
)
def test_a_factor_before_pooling_makes_a_spike_weigh_less(convert, factor):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.last(F.max_pool2d(factor(self.conv(x).relu()), 2))

    x = torch.rand(8, 1, 6, 6)
    snn = convert(Net(), [x], calibration="none")
    per_pixel = []
    (pool,) = [m for n, m in snn.graph.named_modules() if n.startswith("max_pool2d") and "." not in n]
    (node,) = snn.neurons().values()
    handle = pool.register_forward_hook(lambda m, i, y: per_pixel.append(y.abs().detach()))
    with torch.no_grad():
        for _ in range(4):
            snn(x)
    functional.reset_net(snn)
    handle.remove()
    unit = 0.25 * node.threshold.view(-1, 1, 1)
    assert synops(snn, [x], 4).synops == pytest.approx(2 * sum((y / unit).sum() for y in per_pixel) / 8)


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_pooling_of_held_values_is_of_any_number_of_samples(convert, samples):
    """Before the first neuron there is one row a sample, whatever the steps."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
    )
    x = torch.rand(7, 1, 8, 8)
    snn = convert(ann, [x], calibration="none")
    shown = x[:samples]
    trains = spike_trains(snn, shown, 4)
    result = simulate(snn, [shown], 4, progress=False)
    assert result.spikes["2"].sum().item() * samples == pytest.approx(trains["2"].sum().item())
    assert result.operations.synops == synops(snn, [shown], 4).synops


def test_operations_of_samples_that_leave_early():
    """What reads varying currents runs as long as the sample stays."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    from sj_burst import convert

    snn = convert(ann, [torch.rand(32, 3)], calibration="none", progress=False)
    left = simulate(snn, [torch.rand(16, 3)], 8, early_exit=0.0, progress=False)
    assert left.average_steps == 1
    stayed = simulate(snn, [torch.rand(16, 3)], 8, progress=False)
    held = 3 * 8  # the first layer
    assert left.operations.macs - held == (stayed.operations.macs - held) / 8 == 2 * 8


def test_indices_and_factors_made_of_sizes(convert):
    """What depends on the size of the input, not on its numbers, is what it is."""

    class Sized(nn.Module):
        def __init__(self, moved):
            super().__init__()
            self.first, self.second, self.moved = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3), moved
            self.register_buffer("order", torch.arange(3, -1, -1).view(1, 4, 1, 1))
            self.register_buffer("factor", torch.arange(1.0, 9.0).view(1, 1, 1, 8) / 8)

        def forward(self, x):
            return self.second(self.moved(self, self.first(x).relu()))

    def reversed_channels(net, y):
        return y.gather(1, net.order.expand(y.size(0), -1, y.size(2), y.size(3)))

    def scaled(net, y):
        pooled = nn.functional.max_pool2d(y * net.factor.expand(y.size(0), -1, -1, -1), 2)
        return pooled.repeat(1, 1, 2, 2)

    x = torch.randn(8, 2, 10, 10)
    snn = convert(Sized(reversed_channels), [x], calibration="none")
    with torch.no_grad(), count_spikes(snn) as counter:
        snn.run(x, 4)
    spikes = next(iter(counter.per_neuron.values()))[:1].float().flip(1)
    ones = torch.ones(6, 4, 3, 3, dtype=torch.float64)
    wanted = nn.functional.conv2d(spikes.double(), ones).sum().item() / 8
    assert synops(snn, [x], 4).synops == pytest.approx(wanted)
    snn = convert(Sized(scaled), [x], calibration="none")
    assert synops(snn, [x], 4).layers["second"].synops > 0
