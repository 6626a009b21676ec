"""Functions that are sums and shifts of ReLUs convert exactly, in whatever words they are written."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_burst import standardize
from sj_burst.graph.check import check_equal
from sj_burst.graph.trace import activation_names


class Around(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.first, self.operation, self.second = nn.Linear(3, 16), operation, nn.Linear(16, 2)

    def forward(self, x):
        return self.second(self.operation(4 * self.first(x)))


WORDS = {
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "where with a tensor": lambda x: torch.where(x >= 0, x, torch.zeros_like(x)),
    "where, the other way round": lambda x: torch.where(x < 0, torch.zeros_like(x), x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "maximum": lambda x: torch.maximum(x, torch.zeros(1)),
    "max": lambda x: torch.max(torch.zeros_like(x), x),
    "product": lambda x: x * (x > 0),
    "product with a float mask": lambda x: (x > 0).float() * x,
}
SUMS = {
    "hardtanh": lambda x: F.hardtanh(x, -1.5, 0.5),
    "clamp": lambda x: x.clamp(-2, 1),
    "clamp_min": lambda x: torch.clamp_min(x, -1),
    "clamp_max": lambda x: x.clamp_max(1.5),
    "clamp in two calls": lambda x: x.clamp(min=0).clamp(max=2),
    "clamp of infinity": lambda x: x.clamp(0, float("inf")),
    "abs": lambda x: x.abs(),
    "built-in abs": lambda x: abs(x),
    "hardsigmoid": lambda x: F.hardsigmoid(x),
    "a module": nn.Hardsigmoid(),
    "a module with bounds": nn.Hardtanh(-1, 3),
}


@pytest.mark.parametrize("name", WORDS)
def test_relus_in_other_words_are_relus(name):
    torch.manual_seed(0)
    net, x = Around(WORDS[name]), torch.randn(4, 3)
    gm = standardize(net, x)
    assert [type(gm.get_submodule(n)) for n in activation_names(gm)] == [nn.ReLU]
    check_equal(gm, net, torch.randn(64, 3))


@pytest.mark.parametrize("name", ["where", "masked_fill"])
def test_other_masks_are_no_relus(convert, name):
    words = {
        "where": lambda x: torch.where(x > 1, x, 0.0),
        "masked_fill": lambda x: x.masked_fill(x > 0, 0),
    }
    with pytest.raises(ValueError, match="cannot be converted"):
        convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), Around(words[name])), [torch.randn(8, 3)])


@pytest.mark.parametrize("name", SUMS)
@torch.no_grad()
def test_sums_of_relus_converge(convert, name):
    torch.manual_seed(0)
    net, x = Around(SUMS[name]), torch.randn(64, 3)
    snn = convert(net, [x], calibration="none", threshold="max", max_spikes=16)
    spread = (net(x) - net(x).mean(0)).norm()
    assert (snn.run(x, 64).mean(0) - net(x)).norm() < 0.04 * spread
