"""The cost of a single spike against counts of whole networks."""

import pytest
import torch
from torch import nn

from sj_burst import simulate, synops
from sj_burst.simulation.fan_out import fan_out
from sj_burst.simulation.spikes import count_spikes
from sj_burst.simulation.values import values_of
from sj_burst.simulation.walk import pool_units
from sj_burst.utils.inputs import Inputs
from tests.networks import resnet, vgg


def averaged():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)),
    )


class Headed(nn.Module):
    """A layer follows the mean output."""

    def __init__(self):
        super().__init__()
        self.body, self.head = averaged(), nn.Linear(3, 5)

    def forward(self, x):
        return self.head(self.body(x).softmax(1))


@pytest.mark.parametrize(("make", "channels"), [(vgg, 2), (resnet, 3), (averaged, 2), (Headed, 2)])
def test_spikes_times_fan_out_are_the_operations(convert, make, channels):
    x = torch.randn(8, channels, 8, 8)
    snn = convert(make(), [x], calibration="none")
    found = fan_out(snn, Inputs(x[:1]))
    values = values_of(snn, Inputs(x[:1]))
    with torch.no_grad(), count_spikes(snn, pool_units=pool_units(snn.graph, values)) as counter:
        snn.run(x, 5)
    operations = synops(snn, [x], 5)
    each = [(fan * counter.per_neuron[name][:1]).sum().item() for name, fan in found.spikes.items()]
    assert sum(each) / 8 == pytest.approx(operations.synops, rel=1e-6)
    assert found.macs + 5 * found.varying_macs == operations.macs
    assert found.ann_macs == operations.ann_macs


def test_one_spike_of_a_convolution_by_hand(convert):
    snn = convert(averaged(), [torch.randn(8, 2, 8, 8)], calibration="none")
    found = fan_out(snn, Inputs(torch.randn(1, 2, 8, 8))).spikes["1"]
    # 8×8 pixels in windows of 2, then 4×4 by 3×3 with stride 2: one place, 3 of 6 channels a group.
    wanted = torch.zeros(1, 4, 8, 8)
    wanted[..., :6, :6] = 3
    assert torch.equal(found.float(), wanted)


def test_no_spike_reaches_a_weight(convert):
    ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    snn = convert(ann, [torch.randn(8, 3)])
    found = fan_out(snn, Inputs(torch.randn(1, 3)))
    assert found.spikes["1"].tolist() == [[0.0] * 4] and found.macs == 12
    assert simulate(snn, [torch.randn(8, 3)], 2, progress=False).operations.synops == 0
