import copy

import pytest
import torch
from torch import nn

from sj_burst.training.rate_measure import evaluate_rates
from sj_burst.training.rate_norm import RateNorm, lock_max, replace_relu
from sj_burst.training.scale_stage import train_threshold_scale
from sj_burst.training.weight_stage import train_rates
from tests.training.networks import labelled_loader, rate_norm_mlp


def test_stage_one_learns_and_leaves_the_model_alone():
    net = rate_norm_mlp()
    state = copy.deepcopy(net.state_dict())
    scalars = []

    class Writer:
        def add_scalar(self, *args):
            scalars.append(args)

    trained = train_rates(net, labelled_loader(), epochs=8, lr=0.1, writer=Writer(), progress=False)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not trained.training
    assert trained[2].scale_logit == net[2].scale_logit
    assert trained[2].maximum != net[2].maximum
    assert evaluate_rates(trained, labelled_loader())[0] > 0.8
    assert [s[2] for s in scalars] == list(range(1, 9))
    assert scalars[-1][1] < scalars[0][1]


def test_labels_of_no_class_do_not_count():
    x, y = next(iter(labelled_loader()))
    y[:2] = -100
    options = dict(epochs=2, lr=0.01, progress=False)
    with_batch = train_rates(rate_norm_mlp(), [(x, y)], **options)
    assert all(value.isfinite().all() for value in with_batch.state_dict().values())
    pixels = nn.Sequential(nn.Conv2d(2, 4, 1), RateNorm(), nn.Conv2d(4, 3, 1))
    x = torch.randn(4, 2, 6, 6)
    y = pixels(x).argmax(1)
    y[:, 0] = 255
    train_rates(pixels, [(x, y)], **options)


def test_a_batch_without_a_class_is_left_out_and_no_class_at_all_is_an_error():
    net = lock_max(nn.Sequential(nn.Linear(6, 8), RateNorm(), nn.Linear(8, 3)))
    x, y = next(iter(labelled_loader()))
    none, options = (x, torch.full_like(y, -100)), dict(epochs=2, lr=0.01, progress=False)
    for data in ([(x, y), none], [none, (x, y)]):
        got = train_rates(net, data, **options).state_dict()
        expected = train_rates(net, [(x, y)], **options).state_dict()
        assert all(torch.equal(v, got[k]) for k, v in expected.items())
    with pytest.raises(ValueError, match="no label that loader yields is of a class"):
        train_rates(net, [none, none], **options)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 8])
def test_the_learning_rate_falls_after_half_and_three_quarters(epochs, learning_rates):
    train_rates(rate_norm_mlp(), labelled_loader(32), epochs=epochs, lr=0.02, progress=False)
    passed = [sum(epoch >= share * epochs for share in (0.5, 0.75)) for epoch in range(epochs)]
    assert learning_rates == pytest.approx([0.02 * 0.1**n for n in passed for _ in range(2)])


def test_bad_arguments():
    net, data = rate_norm_mlp(), labelled_loader()
    with pytest.raises(ValueError, match="epochs"):
        train_rates(net, data, epochs=0)
    with pytest.raises(ValueError, match="lr"):
        train_rates(net, data, lr=0.0)
    with pytest.raises(ValueError, match="momentum must be a plain"):
        train_rates(net, data, momentum=2)
    with pytest.raises(TypeError, match="labels"):
        train_rates(net, [torch.rand(4, 6)], progress=False)
    with pytest.raises(TypeError, match="only once"):
        train_rates(net, iter([]), progress=False)
    with pytest.raises(ValueError, match="loader is empty"):
        train_rates(net, [], progress=False)
    x, y = next(iter(data))
    for labels, message in ((y[:, None], "do not fit the output"), (y + 3, "network has 3 classes")):
        with pytest.raises(ValueError, match=message):
            train_rates(net, [(x, labels)], progress=False)
    train_rates(net, [(x, y.int())], epochs=1, progress=False)


def test_a_nan_loss_is_an_error():
    # Finite inputs that overflow.
    net = rate_norm_mlp()
    state = copy.deepcopy(net.state_dict())
    data = [(torch.full((4, 6), 3e38), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(ValueError, match="lower lr"):
        train_rates(net, data, progress=False)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_networks_that_keep_what_they_computed_are_copied():
    torch.manual_seed(0)
    first = nn.utils.weight_norm(nn.Linear(6, 8))
    net = replace_relu(nn.Sequential(first, nn.ReLU(), nn.Linear(8, 3)))
    trained = train_rates(net, labelled_loader(), epochs=1, lr=0.05, progress=False)
    assert not torch.equal(trained[0].weight_v, first.weight_v)
    assert train_threshold_scale(trained, trained, *[labelled_loader()] * 2, epochs=1, progress=False)
