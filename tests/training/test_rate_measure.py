import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from sj_burst.training.rate_loss import omega
from sj_burst.training.rate_measure import evaluate_rates, record_rates
from sj_burst.training.rate_norm import RateNorm
from tests.training.networks import labelled_loader, rate_norm_mlp


def test_rates_are_outputs_over_thresholds():
    net = rate_norm_mlp().eval()
    x = torch.randn(8, 6)
    with record_rates(net) as rates:
        net(x)
    first = net[2]
    z = net[:2](x)
    assert torch.allclose(rates[0], (z.relu() / first.bound).clamp(max=1))
    assert [tuple(r.shape) for r in rates] == [(8, 16), (8, 16)]
    with record_rates(net) as rates:  # hooks are gone
        pass
    net(x)
    assert rates == []


def test_evaluation_does_not_depend_on_the_batch_size():
    net = rate_norm_mlp().eval()
    data = labelled_loader(40).dataset
    x, y = data.tensors
    accuracy, omegas = evaluate_rates(net, DataLoader(data, 7))
    with record_rates(net) as rates, torch.no_grad():
        logits = net(x)
    assert accuracy == pytest.approx((logits.argmax(1) == y).float().mean().item())
    assert omegas[:2] == pytest.approx([omega(r).item() for r in rates], rel=1e-4)


def test_the_network_runs_in_eval_mode_and_keeps_its_own():
    net = rate_norm_mlp().train()
    net[3].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    got = evaluate_rates(net, labelled_loader())
    assert [module.training for module in (net, net[1], net[3])] == [True, True, False]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    x, y = labelled_loader().dataset.tensors
    with torch.no_grad():
        assert got[0] == pytest.approx((net.eval()(x).argmax(1) == y).float().mean().item())


def test_labels_of_no_class_do_not_count():
    net, (x, y) = rate_norm_mlp(), next(iter(labelled_loader()))
    y = net.eval()(x).argmax(1)
    y[:2] = -100
    assert evaluate_rates(net, [(x, y)])[0] == 1
    assert evaluate_rates(net, [(x, y), (x, torch.full_like(y, -100))])[0] == 1
    pixels = nn.Sequential(nn.Conv2d(2, 4, 1), RateNorm(), nn.Conv2d(4, 3, 1)).eval()
    x = torch.randn(4, 2, 6, 6)
    y = pixels(x).argmax(1)
    y[:, 0] = 255
    assert evaluate_rates(pixels, [(x, y)])[0] == 1


def test_no_class_at_all_is_an_error_and_no_accuracy_of_zero():
    net, (x, y) = rate_norm_mlp(), next(iter(labelled_loader()))
    with pytest.raises(ValueError, match="no label that loader yields is of a class"):
        evaluate_rates(net, [(x, torch.full_like(y, -100))] * 2)
    pixels = nn.Sequential(nn.Conv2d(2, 4, 1), RateNorm(), nn.Conv2d(4, 3, 1))
    with pytest.raises(ValueError, match="no label that loader yields is of a class"):
        evaluate_rates(pixels, [(torch.randn(4, 2, 6, 6), torch.full((4, 6, 6), 255))])


def test_labels_that_do_not_fit():
    x, y = next(iter(labelled_loader()))
    for labels, message in ((y[:, None], "do not fit the output"), (y + 3, "network has 3 classes")):
        with pytest.raises(ValueError, match=message):
            evaluate_rates(rate_norm_mlp(), [(x, labels)])
