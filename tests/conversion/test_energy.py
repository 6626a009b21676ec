"""Thresholds that keep a network within its budget of energy."""

import pytest
import torch
from torch import nn

from sj_burst import BurstRecipe, load, save, synops
from sj_burst.conversion.energy import ThresholdBudget, spike_costs
from sj_burst.simulation.fan_out import fan_out
from sj_burst.utils.inputs import Inputs
from tests.networks import resnet, vgg

X = torch.rand(96, 2, 8, 8, generator=torch.Generator().manual_seed(0))
RULE = {"threshold": "rate_distortion", "time_steps": 2, "max_spikes": 8}


class Wide(nn.Module):
    """Most of its operations are spikes'."""

    def __init__(self, activation):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(nn.Conv2d(2, 8, 3, padding=1), activation(), nn.Conv2d(8, 16, 3, padding=1), activation()),
            *(nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1), activation(), nn.Flatten()),
            nn.Linear(256, 4),
        )

    def forward(self, x):
        return self.layers(x)


def share(snn, x=X, steps=2):
    found = synops(snn, [x], steps)
    return found.energy / found.ann_energy


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.LeakyReLU])
@pytest.mark.parametrize("options", [{}, {"channel_wise": False}, {"calibration": "none"}])
def test_what_is_spent_is_the_budget(convert, activation, options):
    ann = Wide(activation)
    for budget in (0.2, 0.14):
        snn = convert(ann, [X], energy_budget=budget, **RULE, **options)
        assert 0.8 * budget < share(snn) < 1.1 * budget


def test_more_than_is_needed_is_not_spent(convert):
    ann = Wide(nn.ReLU)
    plenty = convert(ann, [X], energy_budget=50.0, **RULE)
    assert share(plenty) < 5


def test_a_network_of_residuals(convert):
    x = torch.rand(64, 3, 16, 16)
    snn = convert(resnet(), [x], energy_budget=0.5, **RULE)
    assert share(snn, x) == pytest.approx(0.5, rel=0.1)


def test_less_than_the_first_layer_costs_is_refused(convert):
    with pytest.raises(ValueError, match=r"energy_budget=0.01: .* cost 0\.\d+ of the ANN's energy"):
        convert(Wide(nn.ReLU), [X], energy_budget=0.01, **RULE)


def test_less_is_lost_than_by_equal_levels_for_as_much(convert):
    """Where some channels hardly matter, and cost as much."""
    ann, options = Wide(nn.ReLU), {"calibration": "none", "time_steps": 1, "max_spikes": 8}
    with torch.no_grad():
        ann.layers[5].weight[:, 8:] *= 0.05
        wanted = ann(X)
        equal = convert(ann, [X], **options | {"max_spikes": 3})
        budget = share(equal, steps=1)
        snn = convert(ann, [X], **options, threshold="rate_distortion", energy_budget=budget)
        equal_error, error = ((net.run(X, 1)[0] - wanted).square().mean() for net in (equal, snn))
    assert share(snn, steps=1) <= 1.03 * budget
    assert error < 0.7 * equal_error


def test_costs_count_what_pooling_passes_on(convert):
    """With θ = 1 and a spike for every unit, neurons and the pooling behind them cost what they say."""
    snn = convert(vgg(), [X], calibration="none")
    x = Inputs(X[:1])
    fans = fan_out(snn, x).spikes
    size = {name: torch.rand_like(fan) for name, fan in fans.items()}
    found = spike_costs(snn.graph, x, fans, size)
    for name, pool in {"2": "3", "6": "7"}.items():  # all spikes go to pooling only
        assert found[name].tolist() == pytest.approx((fans[pool] * size[pool]).sum((0, 2, 3)).tolist())


def test_options(convert, tmp_path):
    for options in ({"energy_budget": 0.2}, {"threshold": "rate_distortion"}):
        with pytest.raises(ValueError, match="set both"):
            convert(vgg(), [X], **options)
    with pytest.raises(TypeError, match="share of the ANN's energy"):
        convert(vgg(), [X], energy_budget="small", **RULE)
    with pytest.raises(ValueError, match="must be positive"):
        convert(vgg(), [X], energy_budget=0.0, **RULE)
    snn = convert(Wide(nn.ReLU6), [X], energy_budget=0.2, **RULE)
    save(snn, tmp_path / "net.pt")
    loaded = load(tmp_path / "net.pt", Wide(nn.ReLU6))
    assert loaded.options.energy_budget == 0.2
    with torch.no_grad():
        assert torch.equal(loaded.run(X, 2), snn.run(X, 2))


def test_frames_cost_the_first_layer_at_every_step(convert):
    frames = X.unsqueeze(1).repeat(1, 2, 1, 1, 1)
    snn = convert(Wide(nn.ReLU), [frames], time_dim=1, energy_budget=0.25, **RULE)
    found = synops(snn, [frames], 2, time_dim=1)
    assert found.energy / found.ann_energy == pytest.approx(0.25, rel=0.1)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(2, 8, 3), nn.Conv2d(2, 8, 3), nn.Conv2d(8, 16, 3)
        self.d = nn.Conv2d(16, 4, 3)

    def forward(self, x, z):
        y = torch.relu(self.a(x)) + torch.relu(self.b(z))
        return self.d(torch.relu(self.c(y))).mean((2, 3))


def test_two_inputs(convert):
    batch = ((X, X.flip(0)), torch.zeros(len(X)).long())
    snn = convert(Two(), [batch], energy_budget=0.6, **RULE)
    found = synops(snn, [batch], 2)
    assert found.energy / found.ann_energy == pytest.approx(0.6, rel=0.1)


class Headed(nn.Module):
    """Half of its multiplications follow the mean output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64))
        self.body.extend([nn.ReLU(), nn.Linear(64, 64)])
        self.head = nn.Linear(64, 64)

    def forward(self, x):
        return self.head(self.body(x).softmax(1))


def test_layers_of_the_read_out_are_paid_for(convert):
    ann = Headed()
    snn = convert(ann, [X], energy_budget=0.9, **RULE)
    assert share(snn) < 0.9 * 1.05
    fixed = (128 * 64 + 64 * 64) / (128 * 64 + 3 * 64 * 64)
    with pytest.raises(ValueError, match=f"cost {fixed:.3f} of the ANN's energy"):
        convert(ann, [X], energy_budget=0.5, **RULE)


def test_no_more_images_than_asked_for_are_looked_at(convert, monkeypatch):
    seen = []
    for name in ("_images", "_calibration_batches"):
        original = getattr(BurstRecipe, name)

        def spied(self, *given, original=original):
            seen.append(given[-1])  # how many
            return original(self, *given)

        monkeypatch.setattr(BurstRecipe, name, spied)
    convert(Wide(nn.ReLU), [X], energy_budget=0.5, calibration_images=8, **RULE)
    assert len(seen) > 3 and set(seen) == {8}


def test_what_cannot_be_met_is_told(convert):
    with pytest.warns(UserWarning, match="energy_budget=0.001: spikes cost .* more"):
        convert(Wide(nn.ReLU), [X], energy_budget=0.001, coding="rate", **RULE)


def test_a_network_that_is_sure_of_all_answers_still_spikes(convert):
    ann = Wide(nn.ReLU)
    with torch.no_grad():
        ann.layers[-1].bias[0] = 1e4
    snn = convert(ann, [X], energy_budget=0.2, **RULE)
    assert 0.15 < share(snn) < 0.22


@pytest.mark.parametrize(
    ("make", "expected"),
    # What pooling sends beyond the expected is not predicted.
    [(resnet, "none"), (resnet, "median"), (lambda: Wide(nn.ReLU), "none")],
)
def test_what_is_predicted_is_measured(convert, monkeypatch, make, expected):
    """Within 15 % before anything is corrected."""
    ann, ratios, correct = make(), [], ThresholdBudget.correct

    def watched(self, snn, batches, time_dim):
        aimed = self.target
        close = correct(self, snn, batches, time_dim)
        ratios.append(self.tried[-1].measured / aimed)
        return close

    monkeypatch.setattr(ThresholdBudget, "correct", watched)
    x = X if isinstance(ann, Wide) else torch.rand(64, 3, 12, 12)
    convert(ann, [x], energy_budget=0.3, expected_spikes=expected, **RULE)
    assert ratios[0] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("expected", ["none", "median"])
def test_budgets_of_sequences_are_those_of_their_frames(convert, expected):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(32, 5),
    ).eval()
    frames = (torch.rand(64, 4, 2, 10, 10) < 0.05).float() * 3
    options = {"threshold": "rate_distortion", "energy_budget": 2.0, "max_spikes": 15}
    snn = convert(
        net, [frames], time_dim=1, time_steps=4, expected_spikes=expected, calibration="light", **options
    )
    found = synops(snn, [frames], 4, time_dim=1)
    assert found.energy / found.ann_energy == pytest.approx(2.0, rel=0.1)
