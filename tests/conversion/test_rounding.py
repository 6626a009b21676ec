"""Rounding with feedback against least squares, one input after the other."""

import copy

import pytest
import torch
from torch import nn

from sj_burst.conversion import rounding
from sj_burst.conversion.layer import Layer
from sj_burst.conversion.rounding import round_layer
from sj_burst.conversion.weights import integer_weights, round_weights


def layer_of(module, x, unit=None, targets=None):
    return Layer(
        name="0",
        neuron=None,
        affine=module,
        evaluate=list,
        inputs=list(x.split(20)),
        wanted=[],
        residuals=[],
        targets=[] if targets is None else list(targets.split(20)),
        time_steps=1,
        device=torch.device("cpu"),
        clipped=targets is not None,
        unit=unit,
    )


def clipping_scales(weight, most):
    return [(1 - 0.02 * k) * weight.abs().max().item() / most for k in range(41)]


def loss_by_scale(weight, scale, energy, most):
    pairs = zip(weight.tolist(), energy.tolist(), strict=True)
    return sum(e * (w - scale * max(-most, min(most, round(w / scale)))) ** 2 for w, e in pairs)


def slow(weight, x, bits, count=1.0):
    """Round one weight after the other; the rest is fitted anew to the outputs every time.

    ``count``: how much each sample counts.
    """
    most = 2 ** (bits - 1) - 1
    u = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    h = u.T @ (count * u)
    energy = h.diagonal()[:-1]
    scale = min(clipping_scales(weight, most), key=lambda s: loss_by_scale(weight, s, energy, most))
    h = h + 0.01 * energy.mean() * torch.eye(len(h))
    original = torch.cat([weight, torch.zeros(1)]).double()
    current, done = original.clone(), []
    for i in energy.argsort(descending=True).tolist():
        q = (current[i] / scale).round().clamp(-most, most)
        if i == weight.abs().argmax():
            q = weight[i].sign() * most
        current[i] = q * scale
        done.append(i)
        rest = [j for j in range(len(current)) if j not in done]
        # argmin (w - w0)ᵀ H (w - w0) over the rest
        change = current[done] - original[done]
        current[rest] = original[rest] - torch.linalg.solve(h[rest][:, rest], h[rest][:, done] @ change)
    return current


@torch.no_grad()
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_it_is_least_squares_one_after_the_other(bits):
    torch.manual_seed(bits)
    x = torch.randn(60, 7) @ torch.randn(7, 7) + 1
    module = nn.Linear(7, 4)
    before = module.weight.clone(), module.bias.clone()
    round_layer(layer_of(module, x), bits)
    for o in range(4):
        wanted = slow(before[0][o], x, bits)
        assert torch.allclose(module.weight[o].double(), wanted[:-1], atol=1e-5)
        assert (module.bias[o] - before[1][o]).item() == pytest.approx(wanted[-1].item(), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_where_a_relu_clips_outputs_count_where_they_are_active(groups, places, monkeypatch):
    monkeypatch.setattr(rounding, "_MATRIX_BYTES", 1200)  # two at a time
    torch.manual_seed(0)
    shape = (60, 6, 2, 1) if places else (120, 6)
    x = torch.rand(shape).square() + torch.rand(shape[0], *[1] * (len(shape) - 1))
    module = nn.Conv2d(6, 6, 1, groups=groups) if places else nn.Linear(6, 6)
    before = module.weight.flatten(1).clone(), module.bias.clone()
    wanted = module(x) - module(x).mean(0)
    round_layer(layer_of(module, x, targets=wanted), 3)
    inputs = 6 // groups if places else 6
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    active = (wanted.movedim(1, -1).reshape(len(rows), -1) > 0).double()
    for o in range(6):
        group = o * groups // 6 if places else 0
        seen = rows[:, group * inputs : (group + 1) * inputs]
        expected = slow(before[0][o], seen, 3, active[:, o, None] + 0.02)
        assert torch.allclose(module.weight[o].flatten().double(), expected[:-1], atol=1e-4)
        assert (module.bias[o] - before[1][o]).item() == pytest.approx(expected[-1].item(), abs=1e-4)


@torch.no_grad()
def test_what_is_clipped_away_does_not_spend_levels(monkeypatch):
    torch.manual_seed(0)
    sign = torch.randint(0, 2, (4000, 1)) * 2 - 1.0
    x = torch.rand(
        4000, 12
    )  # the first half of the inputs is on where the output is, the rest elsewhere
    x = torch.cat([x[:, :6] * (sign > 0), x[:, 6:] * (sign < 0)], 1)
    module = nn.Linear(12, 3)
    module.weight[:, :6] = module.weight[:, :6].abs()
    module.weight[:, 6:] = -4 * module.weight[:, 6:].abs()  # far below zero, whatever is rounded
    module.bias.zero_()
    wanted = module(x)
    whole, again = copy.deepcopy(module), copy.deepcopy(module)
    round_layer(layer_of(module, x, targets=wanted), 3)
    round_layer(layer_of(whole, x), 3)
    errors = [(net(x).relu() - wanted.relu()).norm() for net in (module, whole)]
    assert errors[0] < 0.7 * errors[1]
    eight = [copy.deepcopy(again) for _ in range(2)]  # of eight bits there is enough
    round_layer(layer_of(eight[0], x, targets=wanted), 8)
    round_layer(layer_of(eight[1], x), 8)
    assert torch.equal(eight[0].weight, eight[1].weight)
    monkeypatch.setattr(rounding, "_ROWS", 500)  # a part of the places tells nearly as much
    round_layer(layer_of(again, x, targets=wanted), 3)
    assert (again(x).relu() - wanted.relu()).norm() < 0.8 * errors[1]


MODULES = {
    "linear": (lambda: nn.Linear(12, 5), (12,)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), (4, 6, 6)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6)),
    "last": (lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (4, 6, 6)),
    "wide": (lambda: nn.Conv1d(40, 3, 5), (40, 9)),  # more inputs than a block
}


@torch.no_grad()
@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_outputs_are_closer_than_by_the_nearest(name, units):
    make, shape = MODULES[name]
    torch.manual_seed(0)
    x = torch.rand(200, *shape).square()
    x = x + torch.rand(200, *[1] * len(shape))  # inputs that vary together
    unit = torch.rand(shape[0]) + 0.1 if units else None
    module, nearest = make(), make()
    nearest.load_state_dict(module.state_dict())
    wanted = module(x)
    round_weights(nearest, 3, unit)
    round_layer(layer_of(module, x, unit), 3)
    assert (module(x) - wanted).norm() < 0.6 * (nearest(x) - wanted).norm()
    integers, _, rest = integer_weights(module, 3, unit)
    assert rest < 1e-3 and integers.flatten(1).abs().amax(1).tolist() == [3] * len(integers)
    again = module.weight.clone()
    round_weights(module, 3, unit)  # nothing is left to round
    assert torch.allclose(module.weight, again, atol=1e-6)


def test_what_has_no_gram_matrix_is_rounded_to_the_nearest():
    torch.manual_seed(0)
    module = nn.ConvTranspose2d(3, 4, 2)
    wanted = nn.ConvTranspose2d(3, 4, 2)
    wanted.load_state_dict(module.state_dict())
    round_weights(wanted, 4)
    round_layer(layer_of(module, torch.rand(40, 3, 4, 4)), 4)
    assert torch.equal(module.weight, wanted.weight)


@torch.no_grad()
def test_an_outlier_is_clipped_where_that_loses_less():
    torch.manual_seed(0)
    x = torch.rand(400, 60)
    module = nn.Linear(60, 2)
    module.weight[0, 3] = 1.0  # eight times the others
    x[:, 3] *= 0.01  # of an input that hardly matters
    wanted = module(x)
    nearest = nn.Linear(60, 2)
    nearest.load_state_dict(module.state_dict())
    round_layer(layer_of(module, x), 4)
    round_weights(nearest, 4)
    assert module.weight[0].abs().max() < 0.5 and integer_weights(module, 4)[2] < 1e-3
    assert (module(x) - wanted)[:, 0].norm() < 0.3 * (nearest(x) - wanted)[:, 0].norm()
