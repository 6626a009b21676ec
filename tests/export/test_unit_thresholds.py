import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sj_burst
from sj_burst.export.unit_thresholds import Scale, unit_thresholds
from sj_burst.modules.neuron import BurstIFNode
from tests.networks import resnet, vgg


class UNet(nn.Module):
    """Concatenation, transposed and grouped convolution, a sum, and two outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2, groups=2)
        self.c, self.d = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.leaky_relu(self.b(F.avg_pool2d(a, 2)), 0.1)
        up = F.relu(self.up(b) + a)
        c = F.relu(self.c(torch.cat([up, a], 1)))
        return self.d(c), self.fc(F.adaptive_avg_pool2d(c, 1).flatten(1))


class Sequences(nn.Module):
    """Linear layers over the last of three dimensions, a shared layer, an offset."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)
        self.offset = nn.Parameter(torch.randn(5, 6))

    def forward(self, x):
        h = F.relu(self.a(x) + self.offset)
        return F.relu(self.b(F.relu(self.b(h) + h))).sum(1)


def conv1d():
    return nn.Sequential(
        *(nn.Conv1d(2, 6, 3), nn.ReLU6(), nn.MaxPool1d(2), nn.Conv1d(6, 4, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)),
    )


CASES = {
    "vgg": (vgg, (2, 8, 8), {}),
    "vgg, one threshold": (vgg, (2, 8, 8), {"channel_wise": False}),
    "vgg, shift": (vgg, (2, 8, 8), {"potential": "shift", "max_spikes": 1}),
    "vgg, spike calibration": (
        vgg,
        (2, 8, 8),
        {"inactivated_spikes": "spike_calibration", "allowance": 2},
    ),
    "resnet": (resnet, (3, 8, 8), {}),
    "resnet, unsigned": (resnet, (3, 8, 8), {"inactivated_spikes": "allow", "max_spikes": 1}),
    "resnet, endless": (resnet, (3, 8, 8), {"max_spikes": math.inf, "threshold": "99%"}),
    "unet": (UNet, (3, 8, 8), {}),
    "sequences": (Sequences, (5, 4), {"channel_wise": False}),
    "conv1d": (conv1d, (2, 16), {}),
    "rate coded": (vgg, (2, 8, 8), {"coding": "rate"}),
}


def trains(net, x, steps):
    """Spike trains of every neuron in units of its threshold, in all steps, and the output."""
    found = {}

    def keep(name, node):
        def hook(module, _, out):
            theta = module.threshold
            shape = (1, -1, *[1] * (out.dim() - 2)) if theta.dim() == 1 else theta.shape
            found[name] = out / theta.reshape(shape)

        return node.register_forward_hook(hook)

    hooks = [keep(name, node) for name, node in net.neurons().items()]
    out = net.run(x, steps)
    for hook in hooks:
        hook.remove()
    return found, out


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_spikes_are_the_same_step_by_step(convert, name):
    make, shape, options = CASES[name]
    torch.manual_seed(0)
    ann, x = make().double(), torch.randn(24, *shape, dtype=torch.float64)
    snn = convert(ann, [x], **{"max_spikes": 3, "time_steps": 6} | options)
    before = {key: value.clone() for key, value in snn.state_dict().items()}
    unit = unit_thresholds(snn)
    wanted, out = trains(snn, x, 7)
    got, same = trains(unit, x, 7)
    assert list(got) == list(wanted)
    for layer in wanted:
        torch.testing.assert_close(got[layer], wanted[layer], atol=1e-6, rtol=0)
        if "unet" not in name:
            assert torch.equal(got[layer], got[layer].round())  # counts
    torch.testing.assert_close(same, out, atol=1e-6, rtol=1e-6)
    assert all((node.threshold == 1).all() for node in unit.neurons().values())
    assert all(torch.equal(value, before[key]) for key, value in snn.state_dict().items())


def scales(net):
    return [name for name, m in net.named_modules() if isinstance(m, Scale)]


def test_weights_hold_the_scales(convert):
    x = torch.randn(16, 2, 8, 8)
    assert not scales(unit_thresholds(convert(vgg(), [x], calibration="light")))
    x = torch.randn(16, 3, 8, 8)
    # Skips, sliced and padded ones too, have no weights.
    assert len(scales(unit_thresholds(convert(resnet(), [x], calibration="light")))) == 3
    # That of the skip, and of the pooling of a leaky neuron's spikes nothing.
    assert len(scales(unit_thresholds(convert(UNet(), [x], calibration="light")))) == 1


def test_it_runs_wherever_a_network_runs(convert):
    ann, x = vgg(), torch.rand(16, 2, 8, 8)
    snn = convert(ann, [x], max_spikes=2, calibration="none")
    unit = unit_thresholds(snn)
    data = [(x, torch.zeros(16, dtype=torch.long))]
    a, b = (sj_burst.simulate(net, data, 4, progress=False) for net in (unit, snn))
    assert torch.allclose(a.output, b.output, atol=1e-4)
    assert torch.allclose(a.total_spikes, b.total_spikes, rtol=1e-3)
    assert a.operations.synops == pytest.approx(b.operations.synops, rel=1e-3)
    assert isinstance(next(iter(unit.neurons().values())), BurstIFNode)


def test_another_network_is_refused():
    with pytest.raises(TypeError, match="converted by BurstRecipe, got Linear"):
        unit_thresholds(nn.Linear(2, 2))


def test_files_are_of_the_converted_network(convert, tmp_path):
    unit = unit_thresholds(convert(vgg(), [torch.rand(8, 2, 8, 8)], calibration="none"))
    with pytest.raises(ValueError, match=r"save the network that it was made of, or its state_dict\(\)"):
        sj_burst.save(unit, tmp_path / "unit.pt")
    assert not list(tmp_path.iterdir())
