import pytest
import torch
from torch import nn

from sj_burst.conversion.weights import round_weights

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
