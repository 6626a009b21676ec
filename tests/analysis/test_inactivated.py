import pytest
import torch
from torch import nn

from sj_burst import inactivated_share, report
from tests.networks import resnet


def deep_net(dtype, width=100, depth=6):
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)
    return nn.Sequential(*layers, nn.Linear(width, 3)).to(dtype)


def follow_spikes(snn):
    """Adds up the spikes of every neuron as integers, while the network runs."""
    totals = {}
    for name, node in snn.neurons().items():

        def add(node, _, y, name=name):
            n = (y.double() / node.threshold.double()).round().long()
            totals[name] = totals.get(name, 0) + n.unflatten(0, node.time_fold).sum(0)

        node.register_forward_hook(add)
    return totals


@torch.no_grad()
@pytest.mark.parametrize("rule", ["signed", "allow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shares_are_those_of_spikes_added_up(convert, rule, dtype):
    """In float32 many a sum of signed weighted spikes that cancel is a little above zero."""
    ann, x, steps = deep_net(dtype), torch.randn(40, 100, dtype=dtype), 24
    options = {"calibration": "none", "max_spikes": 15, "threshold": "99%"}
    snn = convert(ann, [x], inactivated_spikes=rule, **options)
    totals = follow_spikes(snn)
    found = inactivated_share(snn, ann, [x], steps)
    for i, name in enumerate(found):
        quiet = ann[: 2 * i + 2](x) <= 0
        assert found[name] == ((totals[name] > 0) & quiet).sum().item() / quiet.sum().item(), name
    assert found["11"] > 0.005
    for layer in report(snn, ann, [x], steps).layers:
        assert layer.inactivated == found[layer.name]


def test_signed_spikes_take_some_back(convert):
    ann, x, share = resnet(), torch.randn(8, 3, 8, 8), {}
    for rule in ("allow", "signed"):
        snn = convert(ann, [x], max_spikes=1, inactivated_spikes=rule, calibration="none")
        share[rule] = inactivated_share(snn, ann, [x], 16)
    assert share["allow"].keys() == share["signed"].keys()
    assert sum(share["signed"].values()) < sum(share["allow"].values())
    with pytest.raises(ValueError, match="no activation"):
        inactivated_share(snn, nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), [x], 4)
