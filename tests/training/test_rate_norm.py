import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from sj_burst.training.rate_norm import RateNorm, lock_max, rate_norms, replace_relu, share_scale
from tests.networks import resnet, vgg


def test_forward_and_maximum_against_a_plain_loop():
    layer = RateNorm(scale_logit=0.3, momentum=0.2).double().train()
    batches = torch.randn(6, 5, 3, dtype=torch.float64)
    p, m = 1 / (1 + math.exp(-0.3)), None
    for x in batches:
        y = layer(x)
        largest = max(x.flatten().tolist())
        m = largest if m is None else 0.8 * m + 0.2 * largest
        for value, got in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
            rate = min(max(value, 0.0) / (p * m), 1.0)
            assert got == pytest.approx(p * m * rate)
    assert layer.bound.item() == pytest.approx(p * m)


def test_gradients_against_finite_differences():
    layer = RateNorm(scale_logit=0.3).double().eval()
    layer.maximum.fill_(1.5)
    x = torch.linspace(-1, 3, 24, dtype=torch.float64, requires_grad=True)

    def function(x, q):
        return torch.func.functional_call(layer, {"scale_logit": q}, (x,))

    q = layer.scale_logit.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (x, q))
    # The clipped values carry a gradient to the threshold.
    (gradient,) = torch.autograd.grad(function(x, q).sum(), q)
    assert gradient > 0


@given(
    st.floats(-30, 30),
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=5),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
@example(0.0, [1e-45], torch.float32)  # half of the smallest number is 0
@example(-30.0, [6e-8], torch.float16)
def test_the_threshold_is_positive_whatever_was_seen(q, values, dtype):
    layer = RateNorm(scale_logit=q).to(dtype).train()
    for value in values:
        layer(torch.tensor([value], dtype=dtype))
    assert layer.bound >= torch.finfo(dtype).tiny
    assert (1 / layer.bound).isfinite()
    x = torch.tensor([-1.0, 1e-3, 1.0], dtype=dtype, requires_grad=True)
    y = layer.eval()(x)
    assert (y >= 0).all()
    assert 0 < y[2] <= layer.bound
    y.sum().backward()
    assert layer.scale_logit.grad.isfinite()
    assert x.grad.isfinite().all()


@given(st.floats(-30, 30), st.floats(0, 1e4, width=32, exclude_min=True))
@example(0.0, 1e-45)
def test_rates_of_the_smallest_thresholds_have_gradients(q, value):
    layer = RateNorm(scale_logit=q).train()
    layer(torch.tensor([value]))
    x = torch.tensor([-1.0, 1e-3, 1e5], requires_grad=True)
    rate = layer.eval()(x) / layer.bound
    assert rate[2] == 1
    rate.mean().backward()
    assert layer.scale_logit.grad.isfinite()
    assert x.grad.isfinite().all()


def test_the_maximum_moves_in_training_only_and_can_be_locked():
    layer = RateNorm()
    layer.eval()(torch.tensor([7.0]))
    assert layer.maximum == 1
    layer.train()(torch.tensor([7.0]))
    assert layer.maximum == 7
    lock_max(layer)
    layer(torch.tensor([100.0]))
    assert layer.maximum == 7
    lock_max(layer, False)
    layer(torch.tensor([-1.0, math.nan]))  # neither silence nor NaN sets a threshold
    assert layer.maximum == 7


def test_shared_scale_is_one_parameter_and_stays_so_in_copies():
    net = share_scale(replace_relu(vgg()))
    first, second = rate_norms(copy.deepcopy(net)).values()
    assert first.scale_logit is second.scale_logit
    assert sum("scale_logit" in name for name, _ in net.named_parameters()) == 1
    first, second = rate_norms(share_scale(net, shared=False)).values()
    assert first.scale_logit is not second.scale_logit
    assert torch.equal(first.scale_logit, second.scale_logit)


def test_modules_are_replaced_under_their_names():
    model = vgg().train()
    state = copy.deepcopy(model.state_dict())
    net = replace_relu(model)
    assert list(rate_norms(net)) == ["2", "6"]
    assert type(model[2]) is nn.ReLU
    assert net.training
    assert state.keys() <= net.state_dict().keys()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.also = self.relu
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.also(self.fc(self.relu(self.fc(x))))


def test_a_module_with_two_names_or_calls():
    net = replace_relu(Reused())
    assert net.relu is net.also
    assert isinstance(net.relu, RateNorm)
    per_call = replace_relu(Reused(), example=torch.rand(2, 3))
    assert len(rate_norms(per_call)) == 2


def test_functional_relus_need_an_example():
    model = resnet().double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="example"):
        replace_relu(model)
    net = replace_relu(model, example=x)
    assert len(rate_norms(net)) == 7
    assert model.state_dict().keys() <= net.state_dict().keys()
    for layer in rate_norms(net).values():
        layer.maximum.fill_(1e9)
    assert torch.allclose(net(x), model(x))
    # It trains as the original does.
    F.cross_entropy(net.train()(x), torch.tensor([0, 1])).backward()
    assert net.conv1.weight.grad.abs().sum() > 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="momentum must be in"):
        RateNorm(momentum=0)
    with pytest.raises(ValueError, match="scale_logit"):
        RateNorm(scale_logit=float("nan"))
    with pytest.raises(TypeError, match="makes a new module for each ReLU"):
        replace_relu(vgg(), RateNorm())
    with pytest.raises(ValueError, match="replace_relu"):
        lock_max(vgg())


def test_modules_keep_their_modes():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU())
    model[1].eval()
    made = replace_relu(model, RateNorm)
    assert made.training and made[2].training and not made[1].training
