import pytest
import torch
from torch import nn

from sj_burst.conversion.weights import integer_weights, round_weights

LAYERS = [
    nn.Linear(5, 7),
    nn.Conv1d(4, 6, 3),
    nn.Conv2d(6, 9, 3, groups=3),
    nn.ConvTranspose2d(6, 9, 3, groups=3),
    nn.ConvTranspose1d(4, 5, 2),
    nn.ConvTranspose3d(2, 4, 2, groups=2),
]


def by_output(layer, weight):
    """For every output channel its weights, slowly."""
    if not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return [weight[o] for o in range(len(weight))]
    outputs, found = weight.shape[1], []
    inputs = len(weight) // layer.groups
    for group in range(layer.groups):
        for o in range(outputs):
            found.append(torch.stack([weight[group * inputs + i, o] for i in range(inputs)]))
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_every_output_channel_has_a_scale_of_its_own(layer, bits):
    torch.manual_seed(0)
    layer.reset_parameters()
    before = layer.weight.detach().clone()
    parameter = layer.weight
    round_weights(layer, bits)
    assert layer.weight is not parameter  # another layer may be tied to it
    most = 2 ** (bits - 1) - 1
    for old, new in zip(by_output(layer, before), by_output(layer, layer.weight.detach()), strict=True):
        scale = old.abs().max() / most
        expected = torch.round(old / scale) * scale
        torch.testing.assert_close(new, expected)
        levels = new / scale
        assert torch.allclose(levels, levels.round(), atol=1e-3)
        assert levels.abs().max() <= most + 1e-3
        assert (new - old).abs().max() <= 0.5 * scale * (1 + 1e-5)
    once = layer.weight.detach().clone()
    round_weights(layer, bits)
    torch.testing.assert_close(layer.weight.detach(), once)  # rounded is rounded


def test_a_channel_of_zeros_stays_one():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    round_weights(layer, 4)
    assert torch.equal(layer.weight, torch.zeros(2, 3))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_what_meets_counts_is_rounded(layer):
    """Slowly: a layer that reads u·n has integers times s of every output channel before n."""
    torch.manual_seed(0)
    layer.reset_parameters()
    transposed = "Transpose" in type(layer).__name__
    inputs = layer.weight.shape[0] if transposed else layer.weight.shape[1] * getattr(layer, "groups", 1)
    unit = torch.rand(inputs) + 0.1
    before = layer.weight.detach().clone()
    round_weights(layer, 8, unit)
    q, scale, rest = integer_weights(layer, 8, unit)
    assert rest < 1e-3
    assert q.dtype == torch.int8
    assert q.abs().max() == 127
    n = torch.randint(-3, 4, (2, inputs, *[5] * (layer.weight.dim() - 2)))
    by_channel = [-1, *[1] * (n.dim() - 2)]
    wanted = layer(n * unit.view(by_channel)) - layer(torch.zeros(n.shape))
    layer.weight = nn.Parameter(q.float())
    sums = layer(n.float()) - layer(torch.zeros(n.shape))
    torch.testing.assert_close(sums * scale.view(by_channel), wanted, atol=1e-4, rtol=1e-4)
    assert (q.float() - before).abs().max() > 0  # they are no weights of one unit


def test_more_bits_need_more_room():
    assert integer_weights(nn.Linear(3, 2), 8)[0].dtype == torch.int8
    assert integer_weights(nn.Linear(3, 2), 9)[0].dtype == torch.int16
