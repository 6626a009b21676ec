"""Stand-ins for values against a run of the graph, node by node."""

import torch
from torch import nn

from sj_burst import simulate
from sj_burst.modules.temporal import TimeFold, time_folded
from sj_burst.simulation.values import values_of
from sj_burst.utils.inputs import Inputs
from tests.networks import resnet, vgg


def shapes(values):
    return {node.name: [t.shape, t.dtype] for node, t in values.items() if torch.is_tensor(t)}


def run(snn, x):
    found = {}
    with torch.no_grad(), time_folded(snn.graph, TimeFold(1, len(x))):
        interpreter = torch.fx.Interpreter(snn.graph)
        before = interpreter.run_node
        interpreter.run_node = lambda node: found.setdefault(node, before(node))
        interpreter.run(x)
    snn.graph.apply(lambda m: m.reset() if hasattr(m, "reset") else None)
    return found


def test_they_look_like_the_values(convert):
    for make, channels in ((vgg, 2), (resnet, 3)):
        x = torch.randn(8, channels, 8, 8)
        snn = convert(make(), [x], calibration="none")
        for samples in (1, 3, 1):
            values = values_of(snn, Inputs(x[:samples]))
            assert shapes(values) == shapes(run(snn, x[:samples]))
            assert all(not t.any() for t in values.values() if torch.is_tensor(t))
        assert all(node.v is None for node in snn.neurons().values())


def test_constants_are_looked_up_and_other_modules_noticed(convert):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.second(self.scale * self.first(x).relu())

    x = torch.randn(8, 2, 9, 9)
    snn = convert(Scaled(), [x], calibration="none")
    looked_up = [n for n in snn.graph.graph.nodes if n.op == "get_attr"]
    before = values_of(snn, Inputs(x[:1]))
    assert [before[n].item() for n in looked_up] == [2.0]
    with torch.no_grad():
        snn.graph.scale.fill_(3.0)
    assert [values_of(snn, Inputs(x[:1]))[n].item() for n in looked_up] == [3.0]
    first, second = 2 * 4 * 9, 4 * 3 * 9  # weights
    assert simulate(snn, [x], 2, progress=False).operations.ann_macs == first * 49 + second * 25
    snn.graph.first = nn.Conv2d(2, 4, 3, stride=2)
    assert simulate(snn, [x], 2, progress=False).operations.ann_macs == first * 16 + second * 4
