import pytest
import torch
from torch import nn

from sj_burst import recommend
from tests.networks import vgg

X = torch.rand(60, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_first_setting_within_the_drop_is_chosen():
    ann = vgg()
    strict = recommend(ann, [X], max_drop=0.0, max_time_steps=8, progress=False)
    lax = recommend(ann, [X], max_drop=100.0, progress=False)
    assert lax.met and len(lax.trials) == 1
    assert lax.chosen.spikes <= strict.chosen.spikes
    assert strict.met == (strict.chosen.drop <= 0)
    assert strict.options.time_steps == strict.chosen.time_steps
    assert "recommended" in str(strict)


def test_options_pass_through_and_bad_ones_are_refused():
    found = recommend(
        vgg(), [(X, torch.zeros(60, dtype=torch.long))], 100, progress=False, coding="rate"
    )
    assert found.options.coding == "rate"
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
    with pytest.raises(ValueError, match="at least two"):
        recommend(vgg(), [X[:1]])


def test_pixels_count_as_parts_of_a_sample():
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    found = recommend(net, [X], 100, 2, progress=False)
    assert 0 <= found.chosen.drop <= 100


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
