"""Functions that are sums and shifts of ReLUs convert exactly, in whatever words they are written."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sj_burst
from sj_burst import standardize
from sj_burst.graph.check import check_equal
from sj_burst.graph.trace import activation_names
from sj_burst.modules.pooling import LIPool


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
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), Around(words[name]), nn.ReLU())
    with pytest.raises(ValueError, match="cannot be converted"):
        convert(net, [torch.randn(8, 3)])


@torch.no_grad()
def test_a_zero_that_changes_the_shape_is_left_alone(convert):
    widened = Around(lambda x: torch.maximum(x[:, :1], torch.zeros(16)))
    net, x = nn.Sequential(widened, nn.ReLU()), torch.randn(8, 3)
    snn = convert(net, [x], calibration="none", threshold="max", max_spikes=16)
    assert torch.allclose(snn.run(x, 512).mean(0), net(x), atol=0.02)
    with pytest.raises(ValueError, match=r"maximum \(maximum, test_composites"):
        convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), widened, nn.ReLU()), [x])


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.clamp(max=x.max() * 0.5),
        lambda x: x.clamp(min=0, max=x[0, 0] + 9),
        lambda x: F.hardtanh(x, 0.0, x[0].abs().max().item()),
    ],
)
def test_bounds_that_follow_the_input_are_refused(convert, operation):
    with pytest.raises(ValueError, match="an argument follows the values of the input"):
        convert(Around(operation), [torch.randn(8, 3)])


@pytest.mark.parametrize("name", SUMS)
@torch.no_grad()
def test_sums_of_relus_converge(convert, name):
    torch.manual_seed(0)
    net, x = Around(SUMS[name]), torch.randn(64, 3)
    snn = convert(net, [x], calibration="none", threshold="max", max_spikes=16)
    spread = (net(x) - net(x).mean(0)).norm()
    assert (snn.run(x, 64).mean(0) - net(x)).norm() < 0.04 * spread


class Points(nn.Module):
    """A small PointNet: a maximum over the points."""

    def __init__(self, maximum):
        super().__init__()
        self.first, self.maximum, self.second = nn.Conv1d(3, 16, 1), maximum, nn.LazyLinear(2)

    def forward(self, x):
        return self.second(self.maximum(F.relu(self.first(x)) - 0.2).flatten(1))


MAXIMA = {
    "amax": lambda x: x.amax(2),
    "amax over two, kept": lambda x: torch.amax(x.unflatten(1, (4, 4)), (1, -1), keepdim=True),
    "max": lambda x: torch.max(x, 2)[0],
    "max by name": lambda x: x.max(dim=-1, keepdim=True).values,
    "maxout": lambda x: torch.maximum(x[:, :8], x[:, 8:]),
    "max of two": lambda x: torch.max(x[:, :8], x[:, 8:]),
    "amin": lambda x: x.amin(2),
    "min": lambda x: torch.min(x, 2)[0],
    "minimum": lambda x: torch.minimum(x[:, :8], x[:, 8:]),
}


@pytest.mark.parametrize("name", MAXIMA)
@torch.no_grad()
def test_maxima_are_pooled_by_lateral_inhibition(convert, tmp_path, name):
    torch.manual_seed(0)
    net, x = Points(MAXIMA[name]), torch.randn(32, 3, 10)
    net(x)
    snn = convert(net, [x], calibration="none", threshold="max", max_spikes=16)
    assert [type(m) for m in snn.temporal_modules()].count(LIPool) == 1
    errors = [(snn.run(x, steps).mean(0) - net(x)).norm() for steps in (16, 256)]
    assert errors[1] < 0.02 * (net(x) - net(x).mean(0)).norm() and errors[1] < errors[0] / 4
    assert sj_burst.report(snn, net, [x], 4).layers[1].error < 0.2
    assert sj_burst.synops(snn, [x], 4).synops > 0
    sj_burst.save(snn, tmp_path / "snn.pt")
    assert torch.equal(sj_burst.load(tmp_path / "snn.pt", net).run(x, 3), snn.run(x, 3))
    if name == "amax":
        with pytest.raises(ValueError, match=r"only max_pool=.lateral_inhibition. and .spike."):
            convert(net, [x], max_pool="gated")


def test_a_maximum_over_the_batch_is_refused(convert):
    with pytest.raises(ValueError, match="leave dimension 0 out"):
        convert(Around(lambda x: F.relu(x) - x.amax(0)), [torch.randn(8, 3)])


def test_indices_of_a_maximum_are_refused(convert):
    net = nn.Sequential(Around(lambda x: F.relu(x) * x.relu().max(1, keepdim=True)[1]), nn.ReLU())
    with pytest.raises(ValueError, match="cannot be converted"):
        convert(net, [torch.randn(8, 3)])
