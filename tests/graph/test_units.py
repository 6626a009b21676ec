import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_burst.graph.evaluate import record
from sj_burst.graph.units import count_units

X = torch.rand(8, 2, 6, 6, generator=torch.Generator().manual_seed(0))
MOVES = {
    "slices": lambda a: a[:, :, ::2, 1:],
    "slices of channels": lambda a: a[:, 1:3],
    "padding": lambda a: F.pad(a, (1, 0)),
    "padding of channels": lambda a: F.pad(a, (0, 0, 0, 0, 2, 1)),
    "flatten": lambda a: a.flatten(1),
    "reshape": lambda a: a.reshape(a.shape[0], -1),
    "cat": lambda a: torch.cat([a, a[:, :2]], 1),
    "pooling": lambda a: F.avg_pool2d(F.max_pool2d(a, 2), 3),
}
OTHERS = {
    "a transposition": lambda a: a.transpose(2, 3).transpose(1, 2),
    "padding with ones": lambda a: F.pad(a, (1, 1), value=1.0),
    "reflection": lambda a: F.pad(a, (1, 1, 0, 0), mode="reflect"),
    "an index": lambda a: a[:, 0],
    "another shape": lambda a: a.reshape(a.shape[0], 2, -1),
    "a sum": lambda a: a + a.mean((2, 3), keepdim=True),
}


class Net(nn.Module):
    def __init__(self, move):
        super().__init__()
        self.conv, self.move = nn.Conv2d(2, 4, 3, padding=1), move

    def forward(self, x):
        return 2 * self.move(F.relu(self.conv(x)))


def units_of(convert, move):
    torch.manual_seed(0)
    snn = convert(Net(move), [X], calibration="none", max_spikes=3)
    (neuron,) = snn.neurons().values()
    neuron.threshold = torch.tensor([0.25, 0.5, 1.0, 2.0])
    values = record(snn.graph, X)
    shapes = {node: v.shape for node, v in values.items() if isinstance(v, torch.Tensor)}
    return snn.graph, values, count_units(snn.graph, shapes)


@pytest.mark.parametrize("name", MOVES)
@torch.no_grad()
def test_values_are_counts_times_their_unit(convert, name):
    graph, values, units = units_of(convert, MOVES[name])
    last = graph.graph.output_node().all_input_nodes[0].all_input_nodes[0]
    assert last in units  # what is doubled
    window = 9 if name == "pooling" else 1
    for node, unit in units.items():
        value = values[node]
        counts = window * value / (unit.view(-1, *[1] * (value.dim() - 2)) if unit.dim() else unit)
        torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
        assert counts.abs().sum() > 0


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_what_mixes_channels_has_no_unit(convert, name):
    graph, _, units = units_of(convert, OTHERS[name])
    last = graph.graph.output_node().all_input_nodes[0].all_input_nodes[0]
    assert last not in units
