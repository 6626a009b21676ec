"""The option ``burst_allocation``: Γ by layer, on whole networks."""

import math

import pytest
import torch
from torch import fx, nn

from sj_burst import Options, load, save
from sj_burst.conversion.adafire import measure_bursts
from tests.networks import resnet, vgg

X = torch.rand(48, 2, 8, 8, generator=torch.Generator().manual_seed(0))


class Bottleneck(nn.Module):
    """A layer of few neurons that many depend on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(nn.Flatten(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 4), nn.ReLU()),
            *(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 5)),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.layers(x)


def gammas(snn):
    return {name.split(".")[-1]: node.max_spikes for name, node in snn.neurons().items()}


@pytest.mark.parametrize("options", [{}, {"channel_wise": False}, {"calibration": "none"}])
def test_few_neurons_that_matter_get_long_bursts_and_less_is_lost(convert, options):
    ann = Bottleneck().double()
    x = X.double()
    options |= {"time_steps": 1, "max_spikes": 4}
    even = convert(ann, [x], **options)
    snn = convert(ann, [x], burst_allocation="sensitivity", **options)
    found, sizes = gammas(snn), {"2": 256, "4": 4, "6": 256}
    assert found["4"] > 8 and sum(found[n] * sizes[n] for n in sizes) <= 4 * sum(sizes.values())
    with torch.no_grad():
        losses = [(net.run(x, 1)[0] - ann(x)).square().mean() for net in (even, snn)]
    assert losses[1] < 0.7 * losses[0]


def reference(snn, ann, mean):
    """Spikes and divergences for each Γ of each layer, neuron by neuron; the best sum of all."""
    answers = ann(X).double().softmax(1)
    tables = {}
    for name, node in snn.neurons().items():
        most, rows = node.max_spikes, []
        for gamma in range(1, most + 1):
            node.max_spikes = gamma
            sent = []
            handle = node.register_forward_hook(lambda m, i, y, s=sent: s.append(y / m.threshold))
            p = snn.run(X, 2).mean(0).double().softmax(1)
            handle.remove()
            kl = ((p * (p / answers).log()).sum() + (answers * (answers / p).log()).sum()) / 2
            rows.append((sum(y.abs().round().sum().item() for y in sent), kl.item()))
        node.max_spikes = most
        tables[name] = rows
    budget = sum(rows[mean - 1][0] for rows in tables.values())
    return tables, budget


@torch.no_grad()
def test_adafire_spends_the_spikes_of_one_gamma_where_the_answer_changes_least(convert):
    ann = Bottleneck()
    with torch.no_grad():
        ann.layers[7].weight *= 20
    snn = convert(ann, [X], time_steps=2, max_spikes=6, calibration="none", inactivated_spikes="allow")
    found = measure_bursts(snn, fx.symbolic_trace(ann), [X[:20], X[20:]], 3, progress=False)
    tables, budget = reference(snn, ann, 3)
    rows = [tables[name][gamma - 1] for name, gamma in found.items()]
    assert sum(spikes for spikes, _ in rows) <= budget * (1 + 1e-9)
    names = list(tables)
    best = min(
        (
            sum(row[1] for row in picked)
            for picked in _combinations([tables[name] for name in names])
            if sum(row[0] for row in picked) <= budget
        ),
    )
    reached = sum(divergence for _, divergence in rows)
    assert reached == pytest.approx(best)
    assert set(gammas(snn).values()) == {6}  # as it was


def _combinations(tables):
    if not tables:
        yield []
        return
    for rest in _combinations(tables[1:]):
        for row in tables[0]:
            yield [row, *rest]


@pytest.mark.parametrize("allocation", ["sensitivity", "adafire"])
@pytest.mark.parametrize("make", [vgg, resnet])
def test_networks_convert_save_and_load(convert, tmp_path, allocation, make):
    x = X if make is vgg else torch.rand(32, 3, 16, 16)
    snn = convert(make(), [x], time_steps=2, burst_allocation=allocation)
    assert all(1 <= gamma <= 127 and gamma == int(gamma) for gamma in gammas(snn).values())
    save(snn, tmp_path / "net.pt")
    loaded = load(tmp_path / "net.pt", make())
    assert gammas(loaded) == gammas(snn) and loaded.options.burst_allocation == allocation
    with torch.no_grad():
        assert torch.equal(loaded.run(x, 2), snn.run(x, 2))


def test_it_composes(convert):
    ann = Bottleneck()
    for options in (
        {"threshold": "rate_distortion", "energy_budget": 1.2},
        {"threshold": "gaussian", "potential": "ann"},
        {"weight_bits": 8},
        {"coding": "rate"},
    ):
        snn = convert(ann, [X], time_steps=2, burst_allocation="sensitivity", **options)
        assert gammas(snn)["4"] > gammas(snn)["2"]


def test_bounds_that_training_has_fitted(convert):
    ann = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU6(), nn.Conv2d(8, 2, 1), nn.ReLU6(), nn.Flatten())
    snn = convert(ann, [X], threshold="trained", burst_allocation="sensitivity", calibration="none")
    for node in snn.neurons().values():
        assert torch.allclose(node.threshold * node.max_spikes, torch.tensor(6.0))


def test_the_preset_is_what_is_published():
    options = Options.preset("adafire")
    assert options.burst_allocation == "adafire" and options.calibration == "light"
    assert options.threshold == "mse" and options.inactivated_spikes == "allow"


@pytest.mark.parametrize("max_spikes", [1, math.inf, {"*": 4}])
def test_one_finite_gamma_above_one_is_wanted(max_spikes):
    with pytest.raises(ValueError, match=r"burst_allocation='sensitivity' finds Γ .* above 1, got"):
        Options(max_spikes=max_spikes, threshold="99%", burst_allocation="sensitivity")
    with pytest.raises(ValueError, match="burst_allocation must be one of"):
        Options(burst_allocation="equal")


@pytest.mark.parametrize("allocation", ["sensitivity", "adafire"])
def test_layers_that_are_silent_keep_the_mean(convert, allocation):
    ann = Bottleneck()
    with torch.no_grad():
        ann.layers[1].bias -= 100.0
    snn = convert(ann, [X], time_steps=2, max_spikes=3, burst_allocation=allocation)
    assert gammas(snn)["2"] == 3


def test_whole_numbers_among_the_answers_are_left_out(convert):
    class Two(Bottleneck):
        def forward(self, x):
            y = self.layers(x)
            return y, y.argmax(1)

    snn = convert(Two(), [X], time_steps=2, burst_allocation="adafire")
    assert len(gammas(snn)) == 3


def test_no_more_images_are_used_than_were_asked_for(convert, monkeypatch):
    seen = []

    def spy(snn, ann, images, *others):
        seen.extend(images)
        return measure_bursts(snn, ann, images, *others)

    monkeypatch.setattr("sj_burst.conversion.recipe.measure_bursts", spy)
    convert(vgg(), [X], time_steps=2, burst_allocation="adafire", calibration_images=5)
    assert sum(map(len, seen)) == 5


def test_outputs_without_gradients(convert):
    class Detached(Bottleneck):
        def forward(self, x):
            return self.layers(x).detach()

    with pytest.raises(ValueError, match="burst_allocation='sensitivity' take gradients, and"):
        convert(Detached(), [X], time_steps=2, burst_allocation="sensitivity")


def test_the_network_says_that_it_is_a_mean(convert):
    assert "Γ=4 on average" in repr(convert(vgg(), [X], burst_allocation="sensitivity"))
