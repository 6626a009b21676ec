import copy
import json
import math

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

from sj_burst import Options, expect_spikes, load, plot, report, save, simulate, synops
from sj_burst.analysis.advice import OutputError, advise
from sj_burst.analysis.layer_report import PARTS, LayerReport
from tests.networks import resnet, vgg

X = torch.randn(24, 2, 8, 8, generator=torch.Generator().manual_seed(0))
PUBLISHED = {
    "max_spikes": 1,
    "threshold": "max",
    "channel_wise": False,
    "potential": "zero",
    "max_pool": "spike",
    "inactivated_spikes": "allow",
}


def linear_net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def conv1d_net():
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.ReLU6(), nn.MaxPool1d(2), nn.Conv1d(6, 4, 3), nn.ReLU(), nn.Flatten()
    )


NETWORKS = {
    "vgg": (vgg, (2, 8, 8)),
    "resnet": (resnet, (3, 8, 8)),
    "linear": (linear_net, (6,)),
    "conv1d": (conv1d_net, (2, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_spikes": 1, "channel_wise": False, "inactivated_spikes": "allow", "potential": "zero"},
        {"max_spikes": math.inf, "threshold": "50%", "max_pool": "spike"},
        {"max_spikes": 2, "threshold": "50%", "max_pool": "average", "calibration": "light"},
        {"max_pool": "gated", "coding": "rate", "max_spikes": 1},
    ],
)
def test_parts_add_up(convert, name, options):
    make, shape = NETWORKS[name]
    ann, x = make(), torch.randn(20, *shape)
    if name == "conv1d" and options.get("max_spikes") == math.inf:
        options = options | {"max_spikes": {"1": 4, "*": math.inf}}  # a ReLU6 needs a finite Γ
    snn = convert(ann, [x], **{"calibration": "none"} | options)
    found = report(snn, ann, [x[:12], x[12:]], 4)
    assert found.samples == 20 and found.time_steps == 4
    assert {layer.name for layer in found.layers} >= set(snn.neurons())
    for layer in found.layers:
        assert tuple(layer.parts) == PARTS
        assert sum(layer.parts.values()) == pytest.approx(layer.error, rel=1e-4, abs=1e-9)
    json.dumps(found.to_dict(), allow_nan=False)
    assert str(found)


@torch.no_grad()
def slow_layer(snn, ann, x, steps, name, before):
    """Currents and outputs of one neuron layer, one step at a time; a from the plain ANN."""
    z, y = [], []
    node = snn.neurons()[name]

    def keep(_, inputs, out):
        z.append(inputs[0])
        y.append(out)

    handle = node.register_forward_hook(keep)
    functional.reset_net(snn)
    for _ in range(steps):
        snn(x)
    handle.remove()
    functional.reset_net(snn)
    a = before(x).relu()
    return torch.stack(z).double().mean(0), torch.stack(y).double(), a.double()


@pytest.mark.parametrize("calibration", ["none", "light"])
def test_values_equal_a_slow_count(convert, calibration):
    """Neuron by neuron, in Python, for the second neuron layer of a VGG."""
    ann, steps, gamma = vgg(), 5, 2
    snn = convert(
        ann,
        [X],
        threshold="90%",
        max_spikes=gamma,
        potential="half",
        inactivated_spikes="allow",
        calibration=calibration,
        channel_wise=True,
    )
    snn.neurons()["6"].v_init.mul_(4)  # 2θ: fires without any current, which is no SIN
    layer = next(row for row in report(snn, ann, [X[:10], X[10:]], steps).layers if row.name == "6")
    z, y, a = slow_layer(snn, ann, X, steps, "6", ann[:6])
    theta = snn.neurons()["6"].threshold.double().tolist()
    shift = snn.neurons()["6"].shift
    parts = dict.fromkeys(PARTS, 0.0)
    spikes = clipped = active = wrong = inactive = 0
    fired, alive = set(), set()
    for n, c, i, j in torch.cartesian_prod(*(torch.arange(k) for k in a.shape)).tolist():
        current = z[n, c, i, j].item() + (0.0 if shift is None else shift[c].item())
        wanted, limit = a[n, c, i, j].item(), gamma * theta[c]
        counts = [round(v / theta[c]) for v in y[:, n, c, i, j].tolist()]
        rate = theta[c] * sum(counts) / steps
        error, arriving = rate - wanted, max(current, 0.0)
        terms = {
            "propagated": arriving - wanted,
            "clipping": min(arriving, limit) - arriving,
        }
        rest = rate - min(arriving, limit)
        quiet = current <= 0 and current * steps + 2 * theta[c] < theta[c]
        terms["inactivated" if quiet else "residual"] = rest
        for part, term in terms.items():
            parts[part] += error * term
        spikes += sum(counts)
        active, inactive = active + (wanted > 0), inactive + (wanted <= 0)
        clipped += wanted > limit
        wrong += wanted <= 0 and sum(counts) > 0
        fired |= {c} if any(counts) else set()
        alive |= {c} if wanted > 0 else set()
    scale = a.square().sum().item()
    for part in PARTS:
        assert layer.parts[part] == pytest.approx(parts[part] / scale, rel=1e-3, abs=1e-6), part
    assert layer.parts["inactivated"] > 0 and layer.clipped > 0.02
    assert layer.rate == pytest.approx(spikes / steps / a.numel(), rel=1e-5)
    assert layer.clipped == pytest.approx(clipped / active)
    assert layer.inactivated == pytest.approx(wrong / inactive)
    assert (layer.silent, layer.dead) == (len(alive - fired), 8 - len(alive))
    assert layer.threshold == pytest.approx((min(theta), sum(theta) / 8, max(theta)))


@torch.no_grad()
def test_pooling_part_is_that_of_the_pooling(convert):
    ann = vgg()
    snn = convert(ann, [X], calibration="none", **PUBLISHED)
    layer = next(row for row in report(snn, ann, [X], 6).layers if row.name == "3")
    inputs, outputs = [], []

    def keep(_, x, y):
        inputs.append(x[0])
        outputs.append(y)

    snn.graph.get_submodule("3").register_forward_hook(keep)
    for _ in range(6):
        snn(X)
    wanted = ann[:4](X)
    rate = torch.stack(outputs).mean(0)
    own = rate - nn.functional.max_pool2d(torch.stack(inputs).mean(0), 2)
    expected = ((rate - wanted) * own).sum() / wanted.square().sum()
    assert layer.parts["pooling"] == pytest.approx(expected.item(), rel=1e-3)
    assert layer.threshold is None and layer.rate is None


@pytest.mark.parametrize(
    "defect, part, option, value",
    [
        ({"threshold": "50%", "max_spikes": 1}, "clipping", "threshold", "mse"),
        ({"potential": "zero", "max_spikes": 1}, "residual", "potential", "half"),
        ({"threshold": "max", "max_spikes": 1}, "residual", "threshold", "mse"),
        ({"channel_wise": False, "max_spikes": 1}, "residual", "channel_wise", True),
        ({"max_spikes": 1, "time_steps": 4}, "residual", "max_spikes", 4),
        ({"max_spikes": {"2": 1, "*": 3}, "time_steps": 2}, "residual", "max_spikes", {"2": 4, "*": 3}),
        ({"max_pool": "spike"}, "pooling", "max_pool", "lateral_inhibition"),
        ({"max_pool": "average"}, "pooling", "max_pool", "lateral_inhibition"),
        (
            {"max_spikes": 1, "time_steps": 4, "calibration": "none"},
            *("propagated", "calibration", "advanced"),
        ),
        ({"coding": "poisson", "time_steps": 4}, "propagated", "coding", "direct"),
    ],
)
def test_each_defect_gets_its_advice(convert, defect, part, option, value):
    ann = vgg()
    snn = convert(ann, [X], **defect)
    advice = report(snn, ann, [X]).advice
    assert (part, option, value) in [(a.part, a.option, a.value) for a in advice], [
        str(a) for a in advice
    ]
    assert all(getattr(snn.options, a.option) != a.value for a in advice)  # nothing that is set already
    assert len({a.option for a in advice}) == len(advice)


def test_spikes_of_inactive_neurons_get_their_advice(convert):
    ann, x = resnet(blocks=2), torch.randn(24, 3, 8, 8)
    for rule, expected in (("allow", True), ("signed", False)):
        snn = convert(ann, [x], max_spikes=1, inactivated_spikes=rule)
        advice = report(snn, ann, [x]).advice
        found = ("inactivated", "inactivated_spikes", "signed")
        assert (found in [(a.part, a.option, a.value) for a in advice]) is expected


def test_levels_and_unevenness_add_up(convert):
    ann, x = linear_net(), torch.randn(64, 6)
    steps, gamma = 4, 1
    snn = convert(ann, [x], max_spikes=gamma, calibration="light", time_steps=steps)
    found = report(snn, ann, [x], steps)
    with torch.no_grad():
        h, a, rates = x, x, []
        for i in (0, 2):  # slowly
            node, layer = snn.graph.get_submodule(str(i + 1)), snn.graph.get_submodule(str(i))
            z, a = layer(h) + node.shift, ann[i](a).relu()
            counts = torch.floor((steps * z + node.v_init) / node.threshold).clamp(0, gamma * steps)
            h = counts * node.threshold / steps
            rates.append((h, a))
        levels, wanted = snn.graph.get_submodule("4")(h), ann[4](a)
        out = snn.run(x, steps).mean(0)
    error = (out - wanted).square().sum()
    share = ((out - wanted) * (levels - wanted)).sum() / error
    assert math.isclose(found.output_levels, share.item(), rel_tol=1e-3)
    assert f"{100 * share:.0f} % are of levels" in str(found)
    for layer in found.layers:
        assert math.isclose(layer.levels + layer.unevenness, layer.error, abs_tol=1e-9)
    # The first layer sees a constant current, which is even.
    quantised, a = rates[0]
    expected = ((quantised - a).square().sum() / a.square().sum()).item()
    assert math.isclose(found.layers[0].levels, expected, rel_tol=1e-3)
    assert abs(found.layers[0].unevenness) < 1e-5
    assert found.layers[1].unevenness > 1e-4


@pytest.mark.parametrize(
    ("share", "calibration", "wanted"),
    [
        (0.9, "light", ("levels", "calibration", "advanced")),
        (0.9, "advanced", ("levels", "burst_allocation", "sensitivity")),
        (0.2, "light", ("unevenness", "calibration", "advanced")),
        (0.2, "advanced", ("unevenness", "max_spikes", 8)),
    ],
)
def test_the_output_gets_advice_by_what_it_lost(share, calibration, wanted):
    layers = [
        LayerReport("a", "BurstIFNode", max_spikes=2, parts=dict.fromkeys(PARTS, 0.0), levels=0.1),
        LayerReport("b", "BurstIFNode", max_spikes=2, parts=dict.fromkeys(PARTS, 0.0), levels=0.05),
        LayerReport("pool", "LIPool", parts=dict.fromkeys(PARTS, 0.0), levels=0.2),
    ]
    options = Options(max_spikes=2, calibration=calibration)
    (found,) = advise(layers, options, 4, OutputError(0.05, share))
    assert (found.part, found.option, found.value) == wanted
    assert found.layer == "a"
    assert not advise(layers, options, 4, OutputError(0.001, share))


def test_a_layer_without_spikes_of_its_own_needs_no_more_of_them():
    parts = dict.fromkeys(PARTS, 0.0) | {"residual": 0.5}
    found = advise([LayerReport("pool", "LIPool", parts=parts)], Options(), 1, OutputError(0.0, 0.0))
    assert "max_spikes" not in [given.option for given in found]
    layers = [LayerReport("a", "BurstIFNode", max_spikes=4, parts=dict.fromkeys(PARTS, 0.0), levels=0.1)]
    (given,) = advise(layers, Options(), 4, OutputError(0.05, 0.9))
    assert given.option == "max_spikes"  # one layer has nothing to share


def test_where_bursts_are_allocated_more_levels_are_a_larger_mean():
    layers = [
        LayerReport("a", "BurstIFNode", max_spikes=20, parts=dict.fromkeys(PARTS, 0.0), levels=0.1)
    ]
    options = Options(max_spikes=3, burst_allocation="sensitivity")
    (found,) = advise(layers, options, 4, OutputError(0.05, 0.9))
    assert (found.option, found.value) == ("max_spikes", 12)


def test_advice_can_be_followed(convert):
    ann, options, errors = vgg(), dict(PUBLISHED, time_steps=4), []
    for _ in range(12):
        found = report(convert(ann, [X], **options), ann, [X])
        errors.append(found.output_error)
        if not found.advice:
            break
        options[found.advice[0].option] = found.advice[0].value
    assert not found.advice
    assert errors[-1] < 0.1 * errors[0]
    assert "advice: none" in str(found)


def test_a_pooling_of_the_input_is_measured_over_all_steps(convert):
    """What comes before the first neuron runs once, whatever T is."""
    ann = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten()).eval()
    snn = convert(ann, [X], calibration="none")
    for steps in (2, 30):
        pool, neurons = report(snn, ann, [X], steps).layers
        assert pool.name == "0" and pool.error == pytest.approx(0, abs=1e-9)
        assert neurons.parts["propagated"] == pytest.approx(0, abs=1e-9)


class Regressor(nn.Module):
    """Returns ``[N]``."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x).squeeze(1)


@torch.no_grad()
def test_outputs_without_a_dimension(convert):
    ann, x = Regressor(), torch.rand(10, 6)
    snn = convert(ann, [x], calibration="none")
    wanted = ann(x)
    error = (snn.run(x, 6).mean(0) - wanted).norm() / wanted.norm()
    assert report(snn, ann, [x[:7], x[7:]], 6).output_error == pytest.approx(error.item(), rel=1e-4)


@torch.no_grad()
def test_half_precision_is_averaged_in_single_precision(convert):
    ann, x = vgg().bfloat16(), X.bfloat16()
    snn = convert(ann, [x], calibration="none")
    error = (snn.run(x, 100).float().mean(0) - ann(x).float()).norm() / ann(x).float().norm()
    assert report(snn, ann, [x], 100).output_error == pytest.approx(error.item(), rel=1e-3)


def test_nothing_of_the_networks_changes(convert):
    ann = vgg().train()
    snn = convert(ann, [X], calibration="none")
    snn.step_mode = "m"
    before = copy.deepcopy(snn.state_dict())
    found = report(snn, ann, [X], 4)
    assert snn.step_mode == "m" and ann.training
    assert all(torch.equal(before[key], value) for key, value in snn.state_dict().items())
    assert all(node.v is None for node in snn.neurons().values())
    assert not any(module._forward_hooks for module in [*snn.modules(), *ann.modules()])
    assert str(report(snn, ann, [X], 4)) == str(found)


def test_figures_agree_with_simulate_and_synops(convert):
    ann = vgg()
    snn = convert(ann, [X], max_spikes=2, calibration="none")
    steps = 30  # more than run at once
    found = report(snn, ann, [X[:9], X[9:]], steps)
    result = simulate(snn, [X], steps, reference=ann, progress=False)
    assert found.output_error == pytest.approx(result.error[-1].item(), rel=1e-4)
    for counted in (found.operations, result.operations):
        assert counted.synops == pytest.approx(synops(snn, [X], steps).synops, rel=1e-5)
    assert found.layers[0].parts["propagated"] == pytest.approx(0, abs=1e-5)  # sees the image
    neurons = {"2": 6 * 64, "6": 8 * 16}
    for layer in found.layers:
        if layer.name in neurons:
            spikes = result.spikes[layer.name].sum().item()
            assert layer.rate == pytest.approx(spikes / steps / neurons[layer.name], rel=1e-4)


def test_static_part_needs_no_data(convert):
    snn = convert(
        linear_net(), [torch.rand(8, 6)], max_spikes=math.inf, threshold="max", calibration="none"
    )
    found = report(snn)
    assert found.options is snn.options and found.time_steps is None
    assert [layer.max_spikes for layer in found.layers] == [math.inf, math.inf]
    assert found.layers[0].potential == pytest.approx(0.5) and found.layers[0].error is None
    assert found.to_dict()["layers"][0]["max_spikes"] == "inf"
    json.dumps(found.to_dict(), allow_nan=False)
    assert "advice" not in str(found) and "inf" in str(found)


def test_notes_name_batch_norm_and_channels_that_never_fired(convert, tmp_path):
    ann = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        *(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
    ).eval()
    with torch.no_grad():
        ann[0].bias[1] = -100.0
        ann[0].bias[2] = -0.5
    snn = convert(ann, [0.01 * X[:2]], calibration="none")
    save(snn, tmp_path / "snn.pt")
    for net in (snn, load(tmp_path / "snn.pt", ann)):
        text = str(report(net))
        assert "BatchNorm 2 could not be folded" in text
        count = int((ann[1](ann[0](0.01 * X[:2])).amax((0, 2, 3)) <= 0).sum())
        assert count >= 2 and f"1: {count} channel(s) never fired in calibration" in text
    layer = report(snn, ann, [X]).layers[0]
    assert layer.dead == 1 and layer.channels == 4


def test_channels_that_stay_silent_are_counted(convert):
    ann = linear_net()
    x = torch.rand(8, 6)
    snn = convert(ann, [x], calibration="none")
    snn.neurons()["1"].threshold.mul_(1e3)
    snn.neurons()["1"].v_init.zero_()
    found = report(snn, ann, [x])
    assert found.options is snn.options and found.time_steps == snn.options.time_steps
    layer = found.layers[0]
    assert layer.silent == layer.channels - layer.dead > 0
    assert any("never spiked here" in note for note in found.notes)


def test_a_layer_that_the_ann_leaves_silent(convert):
    ann = linear_net()
    with torch.no_grad():
        ann[0].bias.fill_(-100.0)
    x = torch.rand(8, 6)
    layer = report(convert(ann, [x], calibration="none"), ann, [x]).layers[0]
    assert (layer.error, layer.dead, layer.clipped) == (0.0, 8, 0.0)


def test_bad_arguments(convert):
    ann, x = linear_net(), torch.rand(8, 6)
    snn = convert(ann, [x], calibration="none")
    with pytest.raises(ValueError, match="empty"):
        report(snn, ann, [])
    with pytest.raises(ValueError, match="pass the network that snn was converted from"):
        report(snn, nn.Sequential(nn.Linear(6, 3), nn.Identity()), [x])
    wider = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), *ann[3:])
    with pytest.raises(ValueError, match=r"\[8, 8\] in snn and \[8, 9\] in ann; pass the network"):
        report(snn, wider, [x])
    for other in (nn.Sequential(*ann, nn.ReLU()), nn.Sequential(*ann[:-1], nn.Linear(8, 1))):
        with pytest.raises(ValueError, match="pass the network that snn was converted from"):
            report(snn, other, [x])
    with pytest.raises(ValueError, match="got only one"):
        report(snn, ann)
    with pytest.raises(ValueError, match="needs data"):
        report(snn, time_steps=4)
    with pytest.raises(ValueError, match="time_steps must be an integer"):
        report(snn, ann, [x], 0)
    with pytest.raises(TypeError, match="converted by BurstRecipe"):
        report(ann)
    with pytest.raises(TypeError, match="read only once"):
        report(snn, ann, iter([x]))
    bad = x.clone()
    bad[0, 0] = math.nan
    with pytest.raises(ValueError, match="loader yields NaN or infinite inputs"):
        report(snn, ann, [x, bad])
    broken = copy.deepcopy(ann)
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="ann has NaN or infinite values from layer '1' on"):
        report(snn, broken, [x])
    assert not any(module._forward_hooks for module in snn.modules())
    with torch.no_grad():
        snn.graph.get_submodule("2").weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="snn has NaN or infinite values from layer '3' on"):
        report(snn, ann, [x])


def test_advice_within_a_budget_is_a_larger_one(convert):
    ann = vgg()
    snn = convert(ann, [X], time_steps=1, threshold="rate_distortion", energy_budget=0.6)
    found = report(snn, ann, [X])
    assert found.advice and "threshold" not in {advice.option for advice in found.advice}
    for advice in found.advice:
        snn.options.changed(**{advice.option: advice.value})
    assert ("energy_budget", 0.84) in {(advice.option, advice.value) for advice in found.advice}


class PreActivation(nn.Module):
    """A block whose BatchNorm no neighbour takes up."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(256, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last((x + self.conv(self.norm(x).relu())).relu().flatten(1))


def test_training_mode_changes_nothing(convert):
    torch.manual_seed(0)
    ann = PreActivation().train()
    for _ in range(20):
        ann(X)
    snn = convert(ann.eval(), [X], calibration="none")
    expected = report(snn, ann, [X], 4).to_dict()
    before = copy.deepcopy(snn.state_dict())
    snn.train()
    assert report(snn, ann, [X], 4).to_dict() == expected
    plot.spike_raster(snn, X, next(iter(snn.neurons())), 4)
    expect_spikes(snn, [X])
    assert all(torch.equal(value, snn.state_dict()[name]) for name, value in before.items())


def test_negative_activations_are_no_dead_channels(convert):
    ann = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.5), nn.Linear(4, 2))
    nn.init.constant_(ann[0].bias, -5.0)
    x = torch.rand(32, 3)
    assert report(convert(ann, [x]), ann, [x]).layers[0].dead == 0
