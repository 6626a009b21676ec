import pytest
import torch
from torch import nn

import sj_burst
from sj_burst import convert, recommend, synops
from sj_burst.analysis import recommend as recommend_module
from sj_burst.analysis.recommend import BUDGETS, SETTINGS, Recommendation, Trial
from tests.networks import vgg

X = torch.rand(60, 2, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(1))
FAST = {"calibration": "none", "progress": False}


@pytest.fixture
def conversions(monkeypatch):
    """What is converted: images, T and Γ, and the network."""
    seen = []

    def spy(ann, loader, options, **others):
        snn = convert(ann, loader, options, **others)
        seen.append((torch.cat([x for (x,) in loader]), (options.time_steps, options.max_spikes), snn))
        return snn

    monkeypatch.setattr(recommend_module, "convert", spy)
    return seen


@torch.no_grad()
def undecided(net):
    """The same network with outputs around zero, so that images differ in their class."""
    out = net(X)
    net[-1].bias -= out.mean([d for d in range(out.dim()) if d != 1])
    return net


@torch.no_grad()
def slow_drop(ann, snn, x, y, steps):
    """Points of accuracy lost, one sample and one step at a time."""
    lost = 0
    for image, label in zip(x.split(1), y, strict=True):
        out = sum(snn(image) for _ in range(steps))
        for node in snn.temporal_modules():
            node.reset()
        lost += int(ann(image).argmax() == label) - int(out.argmax() == label)
    return 100 * lost / len(x)


def tried(found):
    return [(trial.time_steps, trial.max_spikes) for trial in found.trials]


@pytest.mark.parametrize("limit", [2, 5, 8, 32, 1000])
def test_settings_are_tried_in_order_within_the_budget(monkeypatch, conversions, limit):
    """No setting keeps the accuracy, so that all are tried."""
    ann = vgg()
    monkeypatch.setattr(recommend_module, "simulate", lambda *_, **__: Wrong)
    found = recommend(ann, [(X, ann(X).argmax(1))], 0.0, limit, **FAST)
    expected = [(t, g) for t, g in SETTINGS if t <= limit]
    assert tried(found) == [setting for _, setting, _ in conversions] == expected
    assert not found.met and found.chosen.drop == 100
    assert "no setting stays within max_drop" in str(found)
    assert ("or max_time_steps" in str(found)) is (limit < 32)


class Wrong:
    """A simulation in which every answer is wrong."""

    accuracy, total_spikes, operations = torch.zeros(1), torch.zeros(1), None


def drops(monkeypatch, *values):
    """Let the settings lose these points, one after the other."""
    left = iter(values)

    def simulated(snn, data, *_, **__):
        result = Wrong()
        result.accuracy = torch.tensor([1 - next(left) / 100], dtype=torch.float64)
        return result

    monkeypatch.setattr(recommend_module, "simulate", simulated)


def test_the_search_stops_at_the_first_within_the_drop(monkeypatch):
    ann = vgg()
    drops(monkeypatch, 9.0, 4.0, 2.0, 0.0)
    found = recommend(ann, [X], 2.0, **FAST)
    assert tried(found) == list(SETTINGS[:3]) and found.met
    assert [trial.drop for trial in found.trials] == [9.0, 4.0, 2.0]
    assert found.chosen is found.trials[2]
    assert (found.options.time_steps, found.options.max_spikes) == SETTINGS[2]
    assert [row.endswith("<- recommended") for row in str(found).split("\n")[1:]] == [False, False, True]


def test_the_smallest_drop_is_chosen_where_none_is_within(monkeypatch):
    drops(monkeypatch, 9.0, 4.0, 7.0)
    found = recommend(vgg(), [X], 2.0, 3, **FAST)  # T = 2 only: three settings
    settings = [(t, g) for t, g in SETTINGS if t <= 3]
    assert tried(found) == settings and not found.met
    assert found.chosen is found.trials[1]
    assert (found.options.time_steps, found.options.max_spikes) == settings[1]


@pytest.mark.parametrize("labels", [True, False])
def test_drops_are_those_of_images_that_did_not_calibrate(conversions, labels):
    ann = undecided(vgg())
    with torch.no_grad():  # half of the ANN's answers are right
        answers = ann(X).argmax(1)
        y = torch.where(torch.arange(60) % 4 < 2, answers, Y) if labels else answers
    data = [(X[:25], y[:25]), (X[25:], y[25:])] if labels else [X[:25], X[25:]]
    found = recommend(ann, data, 0.0, 4, images=50, **FAST)
    assert len(found.trials) > 1
    for trial, (calibrated, _, snn) in zip(found.trials, conversions, strict=True):
        assert torch.equal(calibrated, X[:25])
        expected = slow_drop(ann, snn, X[25:50], y[25:50], trial.time_steps)
        assert trial.drop == pytest.approx(expected, abs=1e-3)
    assert found.met is (found.trials[-1].drop <= 0)
    assert found.chosen.drop == min(trial.drop for trial in found.trials)


def test_images_beyond_the_number_asked_for_stay_unread(conversions):
    reads = []

    class Loader:
        def __iter__(self):
            for x in X.split(10):
                reads.append(len(x))
                yield x

    recommend(vgg(), Loader(), 100, images=25, **FAST)
    assert sum(reads) == 30
    assert torch.equal(conversions[0][0], X[:12])


def test_options_pass_through_and_bad_ones_are_refused():
    found = recommend(vgg(), [(X, torch.zeros(60, dtype=torch.long))], 100, coding="rate", **FAST)
    assert found.options.coding == "rate" and found.options.calibration == "none"
    with pytest.raises(ValueError, match="max_spikes"):
        recommend(vgg(), [X], max_spikes=2)
    with pytest.raises(ValueError, match="max_drop"):
        recommend(vgg(), [X], max_drop=-1)
    with pytest.raises(ValueError, match="max_time_steps"):
        recommend(vgg(), [X], max_time_steps=1)
    with pytest.raises(ValueError, match="images must be an integer ≥ 2, got -5"):
        recommend(vgg(), [X], images=-5)
    for target in (torch.rand(60), torch.zeros(60, 5, dtype=torch.long), [0] * 60):
        with pytest.raises(ValueError, match=r"class labels \[60\]"):
            recommend(vgg(), [(X, target)], progress=False)
    with pytest.raises(ValueError, match="labels from 5 to 5, and the network has 5 classes"):
        recommend(vgg(), [(X, torch.full((60,), 5))], progress=False)
    with pytest.raises(ValueError, match="no label of a class"):
        recommend(vgg(), [(X, torch.full((60,), -100))], progress=False)
    with pytest.raises(ValueError, match="at least two"):
        recommend(vgg(), [X[:1]])


def test_pixels_count_as_parts_of_a_sample():
    net = undecided(nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)))
    found = recommend(net, [X], 100, 2, **FAST)
    assert 0 < found.chosen.drop < 100
    assert found.chosen.drop % (100 / 30) != pytest.approx(0, abs=1e-3)  # not whole images


def test_a_drop_at_the_limit_is_within_it():
    """0.9 in single precision is less than 0.9."""
    ann, x = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2)), torch.rand(200, 3)
    y = ann(x).argmax(1)
    y[100:110] = 1 - y[100:110]
    found = recommend(ann, [(x, y)], max_drop=0, progress=False)
    assert found.met and found.chosen.drop == 0


def test_only_classifiers():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match="classifiers"):
        recommend(net, [torch.rand(8, 3)], progress=False)


def fake(monkeypatch, drop_of):
    """Conversions that tell their options, and lose what ``drop_of`` says."""

    class Result:
        total_spikes = torch.tensor([1.0])
        operations = None

        def __init__(self, drop):
            self.accuracy = torch.tensor([1 - drop / 100])

    monkeypatch.setattr(recommend_module, "convert", lambda ann, loader, options, **_: options)
    monkeypatch.setattr(recommend_module, "_least_budget", lambda *_: lambda _: 0.01)
    monkeypatch.setattr(recommend_module, "simulate", lambda options, *_, **__: Result(drop_of(options)))


def test_the_least_budget_that_any_setting_allows(monkeypatch):
    def drop_of(options):
        needed = {1: 0.4, 2: 0.2, 4: 0.1}[options.time_steps]
        return 0.0 if options.energy_budget >= needed else 5.0

    fake(monkeypatch, drop_of)
    found = recommend(vgg(), [X], 1.0, 4, objective="energy", progress=False)
    budgets = [(trial.time_steps, trial.energy_budget) for trial in found.trials]
    ones = [(1, b) for b in BUDGETS if b <= 0.4]
    again = [(1, b) for b in BUDGETS if b < 0.4]  # with more levels, below what was found
    assert budgets == [*ones, *again, (2, 0.1), (2, 0.14), (2, 0.2), (4, 0.1)]
    assert {t.max_spikes for t in found.trials if t.time_steps == 1} == {15, 63}
    assert found.met and found.chosen is found.trials[-1]
    assert found.options.threshold == "rate_distortion" and found.options.energy_budget == 0.1
    assert str(found).count("recommended") == 1 and "budget" in str(found)


def test_the_fewest_time_steps(monkeypatch):
    fake(monkeypatch, lambda options: 0.0 if options.max_spikes * options.time_steps >= 30 else 5.0)
    found = recommend(vgg(), [X], 1.0, objective="time_steps", progress=False)
    assert (found.chosen.time_steps, found.chosen.max_spikes) == (2, 15)
    assert tried(found) == sorted(tried(found))


def test_energy_is_measured(convert):
    found = recommend(vgg(), [X], 100.0, 2, objective="energy", **FAST)
    first = next(b for b in BUDGETS if b > 0.539)  # what the first layer costs
    assert found.trials[0].energy_budget == first and found.trials[0].energy is not None
    snn = convert(vgg(), [X[:30]], found.options)
    operations = synops(snn, [X[30:]], found.options.time_steps)
    assert found.trials[0].energy == pytest.approx(operations.energy / operations.ann_energy)
    for options in ({"threshold": "max"}, {"energy_budget": 0.3}):
        with pytest.raises(ValueError, match="leave it out"):
            recommend(vgg(), [X], objective="energy", **options)
    with pytest.raises(ValueError, match="objective must be one of"):
        recommend(vgg(), [X], objective="joules")


def test_the_least_budget_is_that_of_the_options():
    """With a coded image the first layer reads spikes, and nothing costs as much whatever is spent."""
    ann = undecided(vgg())
    found = recommend(ann, [X], 100, objective="energy", images=40, coding="rate", **FAST)
    assert found.trials[0].energy_budget == BUDGETS[0]


def test_one_step_may_be_all(conversions):
    found = recommend(undecided(vgg()), [X], 0, 1, objective="energy", images=20, **FAST)
    assert {trial.time_steps for trial in found.trials} == {1}
    if not found.met:
        assert "raise max_drop or max_time_steps" in str(found)
    with pytest.raises(ValueError, match="max_time_steps"):
        recommend(undecided(vgg()), [X], 0, 1, images=20, **FAST)


def test_raising_the_steps_is_advised_where_there_are_more():
    trials = [Trial(4, 4, 3.0, 10.0, 0.5, 0.4)]
    given = Recommendation(sj_burst.Options(), trials, trials[0], met=False)
    assert "max_time_steps" not in str(given)
    given = Recommendation(sj_burst.Options(), [Trial(4, 4, 3.0, 10.0)], Trial(4, 4, 3.0, 10.0), False)
    assert "max_time_steps" in str(given)


def test_bursts_are_allocated_where_there_is_more_than_one_spike_a_step(monkeypatch, conversions):
    monkeypatch.setattr(recommend_module, "simulate", lambda *_, **__: Wrong)
    found = recommend(vgg(), [(X, Y)], 0.0, 16, burst_allocation="sensitivity", **FAST)
    assert {gamma for _, gamma in tried(found)} >= {1, 4}
    for _, (_, gamma), snn in conversions:
        allocation = "uniform" if gamma == 1 else "sensitivity"
        assert snn.options.burst_allocation == allocation


def test_images_are_of_one_size():
    ann = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with pytest.raises(ValueError, match=r"\[1, 8, 8\] and \[1, 6, 6\]; bring them to one"):
        recommend(ann, [torch.rand(8, 1, 8, 8), torch.rand(8, 1, 6, 6)], progress=False)
