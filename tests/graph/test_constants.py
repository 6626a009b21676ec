"""What does not depend on the input is computed once."""

import torch
import torch.nn.functional as F
from torch import nn

from sj_burst import standardize


class Standardized(nn.Module):
    """Weight standardisation, a positional grid, and numbers that come from parameters' shapes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 2, 3, 3))
        self.register_buffer("grid", torch.linspace(0, 1, 6))
        self.bias = nn.BatchNorm1d(4)

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        grid = torch.outer(self.grid, self.grid)
        h = F.relu(F.conv2d(x + grid, weight, self.bias(torch.ones(1, 4)).flatten(), padding=1))
        return h.reshape(h.size(0), self.weight.shape[0], -1).mean(2)


def test_only_the_way_of_the_input_is_left():
    net, x = Standardized().eval(), torch.randn(3, 2, 6, 6)
    gm = standardize(net, x)
    assert torch.allclose(gm(x), net(x), atol=1e-6)
    depending = {n for n in gm.graph.nodes if n.op == "placeholder"}
    for node in gm.graph.nodes:
        if depending.intersection(node.all_input_nodes):
            depending.add(node)
    assert {n.op for n in gm.graph.nodes if n not in depending} == {"get_attr"}
    # Trained values stay trainable, others do not become so.
    kinds = {n.target: type(getattr(gm, n.target)) for n in gm.graph.nodes if n.op == "get_attr"}
    assert sorted(kind is nn.Parameter for kind in kinds.values()) == [False, True, True]


def test_operations_in_place_on_constants_come_first():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            weight = self.weight.clone()
            weight.clamp_(-0.5, 0.5)
            x.mul_(2)
            return F.relu(F.linear(x, weight))

    net, x = Masked(), torch.randn(2, 4)
    assert torch.equal(standardize(net, x)(x.clone()), net(x.clone()))


def test_the_network_keeps_its_own_values():
    net, x = Standardized().eval(), torch.randn(3, 2, 6, 6)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    standardize(net, x)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
