"""Tracing networks, and the weights that they compute."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sj_burst import standardize
from sj_burst.graph.fuse import fuse
from tests.networks import randomize_batch_norm


def test_parametrized_weights_are_taken_as_they_are():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3)).eval()
    nn.utils.parametrizations.weight_norm(net[0])
    nn.utils.parametrizations.spectral_norm(net[3])
    randomize_batch_norm(net)
    x = torch.rand(2, 1, 6, 6)
    expected = net(x)
    gm = fuse(standardize(net, x), x)
    assert torch.allclose(gm(x), expected, atol=1e-5)
    assert type(gm.get_submodule("3")) is nn.Conv2d
    assert torch.equal(net(x), expected)  # the class, which copies share, has kept its weight


@pytest.mark.parametrize("run", [True, False])
def test_weights_computed_in_hooks_are_refused(run):
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    prune.l1_unstructured(net[0], "weight", 0.5)
    x = torch.rand(2, 3)
    with torch.set_grad_enabled(run):
        net(x)
    with pytest.raises(ValueError, match=r"prune.remove\(module, 'weight'\)"):
        standardize(net, x)


def test_untraceable_and_multi_input_networks():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(ValueError, match="cannot be traced"):
        standardize(Branch(), torch.rand(2, 3))
    with pytest.raises(ValueError, match="exactly one input"):
        standardize(Two(), torch.rand(2, 3))
    with pytest.raises(ValueError, match="instead of its DataParallel"):
        standardize(nn.DataParallel(nn.Linear(3, 2)), torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"does not run on inputs \[2, 3\] \(torch.uint8, cpu\)"):
        standardize(nn.Linear(3, 2), torch.zeros(2, 3, dtype=torch.uint8))
