"""Rounding with feedback against least squares, one input after the other."""

import pytest
import torch
from torch import nn

from sj_burst.conversion import rounding
from sj_burst.conversion.layer import Layer
from sj_burst.conversion.rounding import round_layer
from sj_burst.conversion.weights import integer_weights, round_weights


def layer_of(module, x, unit=None):
    return Layer(
        name="0",
        neuron=None,
        affine=module,
        evaluate=list,
        inputs=list(x.split(20)),
        wanted=[],
        residuals=[],
        targets=[],
        time_steps=1,
        device=torch.device("cpu"),
        unit=unit,
    )


def clipping_scales(weight, most):
    return [(1 - 0.02 * k) * weight.abs().max().item() / most for k in range(41)]


def loss_by_scale(weight, scale, energy, most):
    pairs = zip(weight.tolist(), energy.tolist(), strict=True)
    return sum(e * (w - scale * max(-most, min(most, round(w / scale)))) ** 2 for w, e in pairs)


def one_by_one(weight, x, scale, most):
    """Round one weight after the other; the rest is fitted anew to the outputs every time."""
    u = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    h = u.T @ u
    energy = h.diagonal()[:-1]
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


def slow(weight, x, bits):
    """Of few bits, the best of ten scales, each fitted to its integers; by samples, without a matrix."""
    most = 2 ** (bits - 1) - 1
    energy = x.double().square().sum(0)
    scale = min(clipping_scales(weight, most), key=lambda s: loss_by_scale(weight, s, energy, most))
    if bits > 6:
        return one_by_one(weight, x, scale, most)
    found = {}
    for factor in (0.6, 0.7, 0.8, 0.87, 0.93, 1.0, 1.07, 1.15, 1.25, 1.4):
        levels = (one_by_one(weight, x, factor * scale, most)[:-1] / (factor * scale)).round()
        wanted = x.double() @ weight.double()
        sums = torch.stack([x.double() @ levels, torch.ones(len(x)).double()], 1)
        fitted = torch.linalg.lstsq(sums, wanted.unsqueeze(1)).solution.squeeze(1)
        found[(sums @ fitted - wanted).norm().item()] = torch.cat([levels * fitted[0], fitted[1:]])
    return found[min(found)]


@torch.no_grad()
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_it_is_least_squares_one_after_the_other(monkeypatch, bits):
    torch.manual_seed(bits)
    monkeypatch.setattr(rounding, "_AT_ONCE", 2 * 70)  # two outputs
    x = torch.randn(60, 7) @ torch.randn(7, 7) + 1
    module = nn.Linear(7, 4)
    before = module.weight.clone(), module.bias.clone()
    round_layer(layer_of(module, x), bits)
    for o in range(4):
        wanted = slow(before[0][o], x, bits)
        assert torch.allclose(module.weight[o].double(), wanted[:-1], atol=1e-5)
        assert (module.bias[o] - before[1][o]).item() == pytest.approx(wanted[-1].item(), abs=1e-4)


MODULES = {
    "linear": (lambda: nn.Linear(12, 5), (12,)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), (4, 6, 6)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6)),
    "channels last": (lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (4, 6, 6)),
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
