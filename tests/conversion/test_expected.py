"""Expected spikes: medians, what is counted without them, and that the answers stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based.functional import reset_net
from torch import nn

import sj_burst
from sj_burst import BurstIFNode, expect_spikes, report, simulate, synops
from sj_burst.export import to_integers, unit_thresholds
from sj_burst.graph.quantised import quantised
from sj_burst.modules.pooling import LIPool
from sj_burst.rules.rate_distortion import spikes_and_errors
from sj_burst.rules.statistics import ActivationStatistics
from sj_burst.rules.transfer import Transfer
from sj_burst.simulation.spikes import count_spikes
from sj_burst.training.energy import EnergyPenalty
from sj_burst.utils.inputs import Inputs
from tests.networks import randomize_batch_norm, resnet, vgg
from tests.simulation.test_synops import brute_force, conv_fanout, events_of

X = torch.rand(48, 2, 8, 8, generator=torch.Generator().manual_seed(0))
PHOTOS = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
MEDIAN = {"expected_spikes": "median"}


def busy(net):
    """The same with larger biases, so that most neurons fire."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.0, 1.5)
    return net


def outputs(snn, x, steps):
    """What neurons and poolings emit ``[T, N, ...]``, one step at a time."""
    found = {n: [] for n, m in snn.graph.named_modules() if isinstance(m, (BurstIFNode, LIPool))}
    hooks = [
        snn.graph.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name: found[name].append(y)
        )
        for name in found
    ]
    with torch.no_grad():
        reset_net(snn)
        for _ in range(steps):
            snn(x)
        reset_net(snn)
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(parts) for name, parts in found.items()}


def numbers(snn, x, steps):
    """n(t) of every layer of neurons ``[T, N, ...]``."""
    found, nodes = outputs(snn, x, steps), snn.neurons()
    return {
        name: (found[name] / node.threshold.view(-1, *[1] * (found[name].dim() - 3))).round()
        for name, node in nodes.items()
    }


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("make", "x"), [(vgg, X), (resnet, PHOTOS)])
def test_medians_are_those_of_every_channel(convert, make, x, steps):
    net = busy(make())
    snn = convert(net, [x], time_steps=steps, **MEDIAN)
    plain = convert(net, [x], time_steps=steps)
    some = 0
    for name, n in numbers(snn, x, steps).items():
        each = n.movedim(2, 0).flatten(1).sort(1).values
        median = each[:, (each.shape[1] - 1) // 2]
        expected = snn.neurons()[name].expected
        assert torch.equal(torch.zeros(len(median)) if expected is None else expected, median), name
        some += (median > 0).sum().item()
    assert some > 5
    assert all(node.expected is None for node in plain.neurons().values())
    assert torch.equal(snn.run(x, 5), plain.run(x, 5))


def test_medians_of_pooling(convert):
    snn = convert(busy(vgg()), [X], time_steps=2, **MEDIAN)
    y = outputs(snn, X, 2)["3"]
    theta = snn.neurons()["2"].threshold.view(-1, 1, 1)
    each = (y / theta).round().movedim(2, 0).flatten(1).sort(1).values
    expected = snn.graph.get_submodule("3").expected
    assert torch.equal(expected, each[:, (each.shape[1] - 1) // 2]) and expected.any()


def test_one_for_the_layer(convert):
    snn = convert(busy(vgg()), [X], channel_wise=False, time_steps=2, **MEDIAN)
    found = numbers(snn, X, 2)
    for name, node in snn.neurons().items():
        each = found[name].flatten().sort().values
        median = each[(len(each) - 1) // 2]
        assert node.expected.shape == () if median else node.expected is None
    assert any(node.expected is not None for node in snn.neurons().values())


def test_there_are_none_without_the_need(convert):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    nn.init.constant_(net[0].bias, 2.0)
    nn.init.constant_(net[2].bias, -9.0)
    snn = convert(net, [torch.rand(16, 4)], **MEDIAN)
    assert all(node.expected is None for node in snn.neurons().values())


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("channel_wise", [True, False])
def test_operations_are_those_of_what_is_sent(convert, steps, channel_wise):
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(6, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
    )
    nn.init.constant_(net[0].bias, 1.0)
    nn.init.constant_(net[2].bias, 1.0)
    x = torch.rand(6, 2, 7, 7)
    options = {"max_spikes": 7, "time_steps": steps, "channel_wise": channel_wise}
    snn = convert(net, [x], **options, **MEDIAN)
    counted = synops(snn, [x[:4], x[4:]], steps)
    result = simulate(snn, [x], steps, progress=False)
    assert result.operations.energies == pytest.approx(counted.energies)
    train = numbers(snn, x, steps)
    for name, layer in (("1", "2"), ("3", "4")):
        expected = snn.neurons()[name].expected
        assert expected is not None
        sent = (train[name] - (expected.view(-1, 1, 1) if expected.dim() else expected)).abs()
        found, reads = counted.layers[layer], snn.graph.get_submodule(layer)
        for accounting, operations in (
            ("unary", found.synops),
            ("binary", found.binary_synops),
            ("graded", found.graded_synops),
        ):
            wanted = brute_force(events_of(sent, accounting), reads, conv_fanout)
            assert operations == pytest.approx(wanted), accounting
        assert torch.allclose(result.spikes[name].double(), sent.double().sum((1, 2, 3, 4)) / len(x))
        assert name not in result.net_spikes
    assert counted.synops < synops(convert(net, [x], **options), [x], steps).synops


def test_pooling_sends_what_is_not_expected(convert):
    snn = convert(busy(vgg()), [X], time_steps=1, max_spikes=15, **MEDIAN)
    y, pool = outputs(snn, X, 1)["3"], snn.graph.get_submodule("3")
    n = (y / snn.neurons()["2"].threshold.view(-1, 1, 1)).round()
    sent = (n - pool.expected.view(-1, 1, 1)).abs()
    wanted = brute_force(sent, snn.graph.get_submodule("4"), conv_fanout)
    assert synops(snn, [X], 1).layers["4"].synops == pytest.approx(wanted)


def test_a_report_counts_what_is_sent(convert):
    snn = convert(busy(vgg()), [X], time_steps=2, **MEDIAN)
    ann = busy(vgg())
    found = {layer.name: layer for layer in report(snn, ann, [X], 2).layers}
    counted = simulate(snn, [X], 2, progress=False).spikes["2"].mean().item()
    assert found["2"].rate == pytest.approx(counted / (6 * 8 * 8), rel=1e-5)
    assert found["2"].churn is None


def test_a_channel_that_fires_as_expected_is_not_silent(convert):
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.zeros_(net[0].weight)
    nn.init.constant_(net[0].bias, 2.0)
    snn = convert(net, [torch.rand(8, 2)], time_steps=2, **MEDIAN)
    layer = report(snn, net, [torch.rand(8, 2)], 2).layers[0]
    assert (layer.rate, layer.silent) == (0.0, 0)


def test_a_budget_buys_finer_thresholds(convert):
    net = busy(resnet())
    options = {"time_steps": 1, "max_spikes": 15, "threshold": "rate_distortion", "energy_budget": 0.22}
    errors = {}
    for expected in ("none", "median"):
        snn = convert(net, [PHOTOS], expected_spikes=expected, **options)
        result = simulate(snn, [PHOTOS], 1, reference=net, progress=False)
        errors[expected] = result.error[-1].item()
        assert result.operations.energy / result.operations.ann_energy < 0.22 * 1.04
    assert errors["median"] < 0.5 * errors["none"], errors


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4), st.sampled_from([1, 2, 5, 15, 700]), st.integers(0, 2**16), st.floats(-1.0, 1.0)
)
def test_the_price_of_thresholds_knows_what_is_expected(steps, gamma, seed, mean):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(60, 3, generator=generator) + mean
    statistics = ActivationStatistics()
    statistics.update(z)
    theta = torch.rand(3, generator=generator).double() * 0.3 + (0.02 if gamma > 100 else 0.2)
    ((spikes, _),) = spikes_and_errors(statistics, Transfer(steps, gamma, 0.5), [theta], expected=True)
    for c in range(3):
        a = z[:, c].double().clamp_min(0)
        total = ((a * steps / theta[c] + 0.5).floor()).clamp(0, gamma * steps)
        least = min((total - r * steps).abs().sum().item() for r in range(min(gamma, 400) + 1))
        # Activations are known to a two-thousandth of their range: some are counted a spike too few.
        assert spikes[c].item() == pytest.approx(least, rel=0.05, abs=4 * steps)


@pytest.mark.parametrize("steps", [1, 4])
def test_networks_that_are_made_of_it_send_the_same(convert, steps):
    snn = convert(busy(vgg()), [X], time_steps=steps, weight_bits=8, max_spikes=5, **MEDIAN)
    counted = synops(snn, [X], steps)
    assert any(isinstance(m, LIPool) and m.expected is not None for m in snn.graph.modules())
    for made in (unit_thresholds(snn), to_integers(snn)):
        found = synops(made, [X], steps)
        assert found.synops == pytest.approx(counted.synops, rel=2e-3)
        result = simulate(made, [X], steps, progress=False)
        assert result.operations.synops == pytest.approx(found.synops)


def test_files_hold_them(convert, tmp_path):
    net = busy(vgg())
    snn = convert(net, [X], time_steps=2, **MEDIAN)
    sj_burst.save(snn, tmp_path / "snn.pt")
    again = sj_burst.load(tmp_path / "snn.pt", vgg(1))
    assert again.options == snn.options
    for name, module in snn.graph.named_modules():
        if isinstance(module, (BurstIFNode, LIPool)):
            expected = again.graph.get_submodule(name).expected
            assert (expected is None) == (module.expected is None)
            assert expected is None or torch.equal(expected, module.expected)
    assert synops(again, [X], 2) == synops(snn, [X], 2)


@pytest.mark.parametrize(("value", "match"), [(0.5, "whole numbers"), (None, "for 3 channels")])
def test_wrong_ones_in_a_file_are_told_of(convert, tmp_path, value, match):
    snn = convert(busy(vgg()), [X], time_steps=2, **MEDIAN)
    node = next(node for node in snn.neurons().values() if node.expected is not None)
    node.expected = torch.ones(3) if value is None else node.expected + value
    sj_burst.save(snn, tmp_path / "snn.pt")
    with pytest.raises(ValueError, match=match):
        sj_burst.load(tmp_path / "snn.pt", vgg())


def test_the_price_of_distillation_leaves_them_out(convert):
    snn = convert(busy(vgg()), [X], time_steps=1, max_spikes=7, **MEDIAN)
    rates = quantised(snn.graph, 1)
    penalty = EnergyPenalty(snn, rates, Inputs(X[:1]), 2.0, 1, 300)
    rates(X)
    penalty()
    assert penalty.spent * penalty.allowed == pytest.approx(synops(snn, [X], 1).synops, rel=1e-4)


def test_other_sizes_run(convert):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    nn.init.constant_(net[0].bias, 1.0)
    snn = convert(net, [X], time_steps=2, **MEDIAN)
    larger = torch.rand(4, 2, 12, 12)
    assert simulate(snn, [larger], 2, progress=False).operations.synops > 0
    expect_spikes(snn, [larger], 2)
    assert snn.neurons()["1"].expected.shape == (6,)


def test_expected_spikes_want_neurons_that_take_back(convert):
    with pytest.raises(ValueError, match=r"expected_spikes='median'.*'allow'"):
        sj_burst.Options(expected_spikes="median", inactivated_spikes="allow")
    with pytest.raises(ValueError, match="expected_spikes must be one of"):
        sj_burst.Options(expected_spikes="mean")


def test_a_neuron_checks_them():
    for wrong in (-1.0, float("nan"), float("inf"), 1e9):
        with pytest.raises(ValueError, match="whole numbers"):
            BurstIFNode(1.0, 4, expected=wrong)
    with pytest.raises(ValueError, match="one for each channel"):
        BurstIFNode(1.0, 4, expected=torch.ones(2, 3))
    with pytest.raises(ValueError, match="whole numbers"):
        BurstIFNode(1.0, 4, expected=0.5)
    with pytest.raises(ValueError, match="never below zero"):
        BurstIFNode(1.0, 4, expected=1.0, negative_slope=0.1)
    node = BurstIFNode(torch.ones(3), 4, expected=torch.ones(3))
    with pytest.raises(ValueError, match="expected spikes"):
        BurstIFNode(1.0, 4, expected=torch.ones(3))(torch.ones(2, 5))
    assert node(torch.full((1, 3), 2.5)).tolist() == [[2.0, 2.0, 2.0]]


def test_counts_in_int8_do_not_overflow(convert):
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.init.constant_(net[0].bias, 5.0)
    x = torch.rand(64, 2)
    snn = convert(net, [x], time_steps=2, max_spikes=127, weight_bits=8, **MEDIAN)
    assert snn.neurons()["1"].expected.max() > 64
    frames = torch.stack(
        [torch.rand(8, 2), -1000 * torch.rand(8, 2) - 500]
    )  # sends all, then takes it back
    wanted, found = (
        simulate(net, [frames], 2, time_dim=0, progress=False).operations.synops
        for net in (snn, to_integers(snn))
    )
    assert found == pytest.approx(wanted, rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_steps_by_hand_are_counted(backend):
    r = torch.tensor([1.0, 2.0, 0.0])
    node = BurstIFNode(torch.tensor([0.5, 1.0, 0.7]), 4, signed=True, step_mode="m", expected=r)
    node.backend = backend
    z = torch.rand(5, 4, 3) * 4
    with count_spikes(nn.Sequential(node)) as counter:
        y = node(z)
    n = (y / node.threshold).round()
    assert torch.equal(counter.per_neuron["0"][0], (n - r).abs().double().sum((0, 1)))


@pytest.mark.parametrize("how", ["distil", "finetune"])
def test_training_expects_what_is_sent_in_the_end(convert, how):
    net = busy(vgg())
    snn = convert(net, [X], time_steps=2, max_spikes=4, **MEDIAN)
    if how == "distil":
        tuned = sj_burst.training.distil(snn, net, [X], epochs=5, lr=0.1, progress=False)
    else:
        labelled = [(X, torch.arange(48) % 5)]
        tuned = sj_burst.training.finetune(snn, labelled, 2, epochs=2, lr=0.05, progress=False)
    before = synops(tuned, [X], 2).synops
    expect_spikes(tuned, [X], 2)
    assert synops(tuned, [X], 2).synops == before
    for name, module in tuned.graph.named_modules():
        if isinstance(module, (BurstIFNode, LIPool)):
            module.expected = snn.graph.get_submodule(name).expected  # those of before
    assert synops(tuned, [X], 2).synops > before


def test_a_channel_whose_output_is_zero_is_silent(convert):
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.constant_(net[0].bias, 2.0)
    snn = convert(net, [torch.rand(8, 2)], time_steps=2, **MEDIAN)
    with torch.no_grad():
        snn.graph.get_submodule("0").bias -= 100
    assert report(snn, net, [torch.rand(8, 2)], 2).layers[0].silent == 3


def test_factors_of_unit_thresholds_are_no_spikes(convert):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(144, 3)),
    )
    snn = convert(randomize_batch_norm(net).eval(), [X], time_steps=3)
    assert synops(unit_thresholds(snn), [X], 3).synops == pytest.approx(
        synops(snn, [X], 3).synops, rel=1e-3
    )


def test_what_cannot_be_looked_at_is_told_of(convert):
    snn = convert(vgg(), [X], time_steps=2)
    for loader, options, message in (
        ([], {}, "loader is empty"),
        ([X], {"images": 0}, "images must be"),
        ([X], {"time_steps": 0}, "time_steps must be"),
        ([X[:, :1]], {}, "8, 8"),
        ([X * float("nan")], {}, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            expect_spikes(snn, loader, **options)
    with pytest.raises(TypeError, match="expect_spikes wants"):
        expect_spikes(vgg(), [X])
