"""Networks of LeakyReLU, PReLU and RReLU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_burst import BurstIFNode, convert, load, report, save, simulate, standardize
from sj_burst.rules.statistics import ActivationStatistics
from sj_burst.rules.threshold import fit_threshold
from sj_burst.rules.transfer import Transfer
from tests.networks import randomize_batch_norm

X = torch.rand(16, 2, 8, 8)


def network(first: nn.Module, second: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), first, nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), second),
        *(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 5)),
    )
    return randomize_batch_norm(net).eval()


def prelu(weights: list[float]) -> nn.PReLU:
    module = nn.PReLU(len(weights))
    module.weight.data = torch.tensor(weights)
    return module


KINDS = {
    "leaky": lambda: network(nn.LeakyReLU(0.01), nn.LeakyReLU(0.3, inplace=True)),
    "prelu": lambda: network(nn.PReLU(), prelu([0.1, 0.25, 0.5, 1.0, 1.5, 0.0, -0.25, -1.0])),
    "rrelu": lambda: network(nn.RReLU(), nn.RReLU(0.1, 0.2, inplace=True)),
}


class DarknetBlock(nn.Module):
    """1×1 then 3×3 convolutions with LeakyReLU, and a shortcut around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels // 2)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = F.leaky_relu(self.bn1(self.conv1(x)), 0.1, inplace=True)
        return x + F.leaky_relu(self.bn2(self.conv2(y)), 0.1)


def darknet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.LeakyReLU(0.1), DarknetBlock(6), DarknetBlock(6)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    return randomize_batch_norm(net).eval()


KINDS["darknet"] = darknet


@torch.no_grad()
def error(snn, ann, time_steps: int) -> float:
    wanted = ann(X)
    return ((snn.run(X, time_steps).mean(0) - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inactivated", ["signed", "allow"])
def test_converges_to_the_ann(kind, inactivated):
    ann = KINDS[kind]()
    options = {"threshold": "max", "calibration": "none", "inactivated_spikes": inactivated}
    snn = convert(ann, [X], max_spikes=4, progress=False, **options)
    assert all(node.signed and node.negative_slope is not None for node in snn.neurons().values())
    errors = [error(snn, ann, time_steps) for time_steps in (4, 32, 256, 2048)]
    assert errors[1] < errors[0] and errors[3] < 2e-3, errors
    options["threshold"] = "mse"
    fine = convert(ann, [X], max_spikes=10_000, time_steps=1, progress=False, **options)
    assert error(fine, ann, 1) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_default_options_keep_the_answer(kind):
    ann = KINDS[kind]()
    snn = convert(ann, [X], time_steps=16, progress=False)
    assert error(snn, ann, 16) < 0.1


@pytest.mark.parametrize("potential", ["zero", "ann", "data", "shift"])
@pytest.mark.parametrize("channel_wise", [True, False])
def test_other_options(potential, channel_wise):
    ann = KINDS["prelu"]()
    options = {"threshold": "99.9%", "potential": potential, "channel_wise": channel_wise}
    snn = convert(ann, [X], time_steps=32, calibration="light", progress=False, **options)
    assert error(snn, ann, 32) < 0.1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_comes_back_from_a_file(kind, tmp_path):
    ann = KINDS[kind]()
    snn = convert(ann, [X], progress=False)
    save(snn, tmp_path / "snn.pt")
    again = load(tmp_path / "snn.pt", ann)
    assert torch.equal(snn.run(X, 5), again.run(X, 5))
    for name, node in again.neurons().items():
        assert torch.equal(node.negative_slope, snn.neurons()[name].negative_slope)


def test_spike_calibration_is_refused():
    with pytest.raises(ValueError, match=r"inactivated_spikes='spike_calibration'.*'signed'"):
        convert(
            KINDS["leaky"](),
            [X],
            inactivated_spikes="spike_calibration",
            allowance=1,
            progress=False,
        )


def test_all_spikes_are_counted():
    """By differences of the totals; outputs weigh θ or a·θ a spike."""
    ann = KINDS["leaky"]()
    snn = convert(ann, [X], max_spikes=2, progress=False)
    expected = dict.fromkeys(snn.neurons(), 0.0)
    with torch.no_grad(), snn.present(X) as shown:
        before = {name: 0.0 for name in expected}
        for _ in range(6):
            shown.run(1)
            for name, node in snn.neurons().items():
                expected[name] += (node.sent - before[name]).abs().sum().item() / len(X)
                before[name] = node.sent.clone()
    result = simulate(snn, [X], 6, progress=False)
    for name, spikes in result.spikes.items():
        assert spikes.sum().item() == pytest.approx(expected[name]), name


def test_report_has_every_layer():
    ann = darknet()
    snn = convert(ann, [X], progress=False)
    found = report(snn, ann, [X])
    assert {layer.name for layer in found.layers} == set(snn.neurons())
    for layer in found.layers:
        assert sum(layer.parts.values()) == pytest.approx(layer.error, rel=1e-3, abs=1e-6)
        assert layer.parts["inactivated"] == 0  # nothing is inactive below zero


class Functions(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.conv = function, nn.Conv2d(2, 3, 3)
        self.weight = nn.Parameter(torch.tensor([0.1, 0.2, -0.3]))

    def forward(self, x):
        return self.function(self.conv(x), self.weight)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x, w: F.leaky_relu(x), nn.LeakyReLU),
        (lambda x, w: F.leaky_relu(x, 0.2, inplace=True), nn.LeakyReLU),
        (lambda x, w: F.leaky_relu(input=x, negative_slope=1.5), nn.LeakyReLU),
        (lambda x, w: F.leaky_relu_(x, 0.2), nn.LeakyReLU),
        (lambda x, w: F.leaky_relu(x, 0.0), nn.ReLU),
        (lambda x, w: F.prelu(x, w), nn.PReLU),
        (lambda x, w: torch.prelu(x, w[:1]), nn.PReLU),
        (lambda x, w: x.prelu(w), nn.PReLU),
        (lambda x, w: F.rrelu(x), nn.LeakyReLU),
        (lambda x, w: F.rrelu(x, 0.1, 0.5, training=False), nn.LeakyReLU),
        (lambda x, w: torch.rrelu(x, 0.1, 0.5), nn.LeakyReLU),
        (lambda x, w: torch.rrelu_(x, 0.1, 0.5), nn.LeakyReLU),
    ],
)
def test_calls_become_modules(function, kind):
    gm = standardize(Functions(function), X)  # compares the values
    modules = [gm.get_submodule(str(n.target)) for n in gm.graph.nodes if n.op == "call_module"]
    assert [type(module) for module in modules] == [nn.Conv2d, kind]


def test_random_slopes_are_refused():
    with pytest.raises(ValueError, match="rrelu with training=True is random"):
        convert(Functions(lambda x, w: F.rrelu(x, training=True)), [X], progress=False)


def test_statistics_weigh_negative_values_by_their_share_in_the_output():
    z = torch.tensor([[1.0], [-4.0], [0.0], [-2.0]])
    statistics = ActivationStatistics(negative_slope=torch.tensor(0.5))
    statistics.update(z)
    assert statistics.maximum.item() == 4.0
    assert statistics.histogram.sum().item() == 1.0 + 2 * 0.25
    assert (statistics.histogram * statistics.centres).sum().item() == pytest.approx(2.5, rel=1e-3)
    assert not statistics.dead.any()
    zero = ActivationStatistics(negative_slope=torch.tensor([0.0]))
    zero.update(z)
    relu = ActivationStatistics()
    relu.update(z)
    assert torch.equal(zero.histogram, relu.histogram) and torch.equal(zero.maximum, relu.maximum)


@pytest.mark.parametrize(("gamma", "theta"), [(1, 4.0), (2, 2.0), (8, 1.0)])
def test_max_threshold_fits_both_sides(gamma, theta):
    statistics = ActivationStatistics(negative_slope=0.01)
    for z in (1.0, -4.0, -2.0):
        statistics.update(torch.tensor([[z]]))
    assert fit_threshold(statistics, "max", Transfer(8, gamma)).item() == theta


@pytest.mark.parametrize("slope", [0.05, 0.3, -1.0])
def test_mse_threshold_is_that_of_the_neuron(slope):
    """The neuron itself is run over a fine grid of thresholds."""
    torch.manual_seed(0)
    z = torch.randn(4000, 1) - 0.5
    statistics = ActivationStatistics(negative_slope=torch.tensor(slope))
    statistics.update(z)
    theta = fit_threshold(statistics, "mse", Transfer(4, 1, 0.5))

    def loss(theta: float) -> float:
        node = BurstIFNode(theta, 1, theta / 2, step_mode="m", negative_slope=slope)
        with torch.no_grad():
            rate = node(z.expand(4, *z.shape)).mean(0)
        return (rate - F.leaky_relu(z, slope)).square().mean().item()

    best = min(loss(t) for t in torch.linspace(0.05, 4.0, 200).tolist())
    assert loss(theta.item()) <= 1.02 * best
