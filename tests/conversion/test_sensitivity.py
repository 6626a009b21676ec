"""Fisher information and sizes of activations against gradients taken one by one."""

import pytest
import torch
from torch import nn

from sj_burst import standardize
from sj_burst.conversion.sensitivity import measure_sensitivity
from sj_burst.utils.inputs import Inputs
from tests.networks import vgg


def slow_fisher(tail, a):
    """E over labels of the squared gradient of the log-likelihood, for each neuron of each sample."""
    found = torch.zeros_like(a)
    for n in range(len(a)):
        one = a[n : n + 1].clone().requires_grad_()
        scores = (tail(one) / 4).log_softmax(1)[0]
        for score in scores:
            (gradient,) = torch.autograd.grad(score, one, retain_graph=True)
            found[n] += score.exp().item() * gradient[0].square()
    return found


def test_weights_are_the_fisher_information():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(300, 3)
    gm = standardize(net, x[:2])
    batches = [Inputs(part) for part in x.repeat(100, 1).split(3000)]  # 100 labels for each
    found = measure_sensitivity(gm, batches, "cpu")
    assert found.samples == 30_000
    for name, head in (("1", 2), ("3", 4)):
        with torch.no_grad():
            a = net[:head](x)
        fisher, on = slow_fisher(net[head:], a), a > 0
        wanted = (fisher * on).sum(0) / on.sum(0)
        often = on.sum(0) > 30  # others lean on their layer's mean
        assert often.sum() >= 3
        close = {"rtol": 0.15, "atol": 0.01 * wanted.max()}
        assert torch.allclose(found.weight[name].float()[often], wanted[often], **close)
        assert torch.allclose(found.size[name].float(), a.mean(0, keepdim=True), rtol=1e-4)


def test_answers_that_are_no_class_scores_meet_random_signs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    x = torch.randn(200, 3)
    found = measure_sensitivity(standardize(net, x[:2]), [Inputs(x)], "cpu")
    assert torch.allclose(found.weight["1"].float(), net[2].weight[0].square(), rtol=0.15)


def test_sizes_of_pooling_and_a_graph_left_as_it_was():
    net, x = vgg(), torch.randn(6, 2, 8, 8)
    gm = standardize(net, x[:2])
    before = gm(x)
    found = measure_sensitivity(gm, [Inputs(x[:4]), Inputs(x[4:])], "cpu")
    with torch.no_grad():
        pooled = net[:4](x).mean(0, keepdim=True)
    assert torch.allclose(found.size["3"].float(), pooled, atol=1e-6)
    assert torch.equal(gm(x), before)
    assert not any(module._forward_hooks for module in gm.modules())
    assert all(parameter.grad is None for parameter in gm.parameters())


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_same_every_time(seed):
    torch.manual_seed(seed)
    x = torch.randn(6, 2, 8, 8)
    gm = standardize(vgg(), x[:2])
    one, other = (measure_sensitivity(gm, [Inputs(x)], "cpu").weight for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
