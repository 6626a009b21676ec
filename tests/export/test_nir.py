import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_burst.export import from_nir, to_nir
from sj_burst.export.sinabs import SinabsNeurons
from sj_burst.modules.neuron import BurstIFNode
from tests.networks import resnet, vgg

from .test_sinabs import UNSIGNED, counts

needs_sinabs = pytest.mark.skipif(importlib.util.find_spec("sinabs") is None, reason="needs sinabs")
X = {"double": torch.randn(12, 2, 8, 8, dtype=torch.float64), "single": torch.randn(12, 2, 8, 8)}


def pooled():
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding="same"), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 3)),
    )


class Signals(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 6, 3, 2, 1), nn.Conv1d(6, 6, 1, bias=False)
        self.c = nn.Linear(24, 3)

    def forward(self, x):
        a = F.relu(self.a(x))
        return self.c(F.relu(self.b(a) + a).flatten(1))


NETWORKS = {"pooled": (pooled, (2, 8, 8)), "resnet": (resnet, (3, 8, 8)), "signals": (Signals, (2, 8))}


@needs_sinabs
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
@pytest.mark.parametrize("gamma", [1, 4, math.inf])
@pytest.mark.parametrize("name", NETWORKS)
def test_spike_for_spike_through_a_file(convert, tmp_path, name, gamma):
    import nir

    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    ann, x = make().double(), torch.randn(12, *shape, dtype=torch.float64)
    threshold = "99.9%" if math.isinf(gamma) else "mse"
    options = {"max_spikes": gamma, "threshold": threshold, "time_steps": 16, "calibration": "light"}
    snn = convert(ann, [x], **options, **UNSIGNED)
    nir.write(tmp_path / "net.nir", to_nir(snn))
    net = from_nir(tmp_path / "net.nir")
    wanted, out = counts(snn, BurstIFNode, lambda: snn.run(x, 16))
    got, same = counts(net, SinabsNeurons, lambda: net.run(x, time_steps=16))
    assert len(got) == len(wanted)
    for a, b in zip(got.values(), wanted.values(), strict=True):
        assert torch.equal(a, b.round())
        assert a.sum() > 0
    torch.testing.assert_close(same, out, atol=1e-6, rtol=1e-6)


def test_the_graph_says_how_it_resets(convert):
    nir = pytest.importorskip("nir")
    snn = convert(pooled(), [X["single"]], max_spikes=3, calibration="light", **UNSIGNED)
    graph = to_nir(snn)
    assert isinstance(graph, nir.NIRGraph)
    assert graph.metadata["reset"] == "subtract"
    assert graph.metadata["time_steps"] == snn.options.time_steps
    neurons = [node for node in graph.nodes.values() if isinstance(node, nir.IF)]
    assert len(neurons) == 3
    for node in neurons:
        assert node.metadata["reset"] == "subtract"
        assert node.metadata["max_spikes"] == 3
        assert (node.v_threshold == 1).all()
        assert node.metadata["v_init"].shape == node.v_threshold.shape
    assert {b for _, b in graph.edges} == set(graph.nodes) - {"input"}


def test_what_nir_cannot_express_is_refused(convert):
    pytest.importorskip("nir")
    x = X["single"]
    with pytest.raises(ValueError, match="convert with inactivated_spikes='allow'; nor 3"):
        to_nir(convert(vgg(), [x], calibration="none"))
    with pytest.raises(ValueError, match="what follows the mean output"):
        to_nir(convert(nn.Sequential(pooled(), nn.Softmax(1)), [x], calibration="none", **UNSIGNED))
    up = nn.Sequential(
        *(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Upsample(scale_factor=2), nn.ConvTranspose2d(3, 2, 2)),
    )
    with pytest.raises(ValueError, match=r"2 \(Upsample\); nor 3 \(ConvTranspose2d\)"):
        to_nir(convert(up, [x], calibration="none", **UNSIGNED))
    with pytest.raises(TypeError, match="got Linear"):
        to_nir(nn.Linear(2, 2))


@needs_sinabs
@pytest.mark.filterwarnings("ignore")
def test_a_graph_of_others_is_refused(convert):
    graph = to_nir(convert(pooled(), [X["single"]], calibration="none", **UNSIGNED))
    next(n for n in graph.nodes.values() if type(n).__name__ == "IF").metadata.clear()
    with pytest.raises(ValueError, match="does not ask for a soft reset"):
        from_nir(graph)


@pytest.mark.skipif(importlib.util.find_spec("nir") is not None, reason="nir is there")
def test_without_nir_its_extra_is_named(convert):
    snn = convert(pooled(), [X["single"]], calibration="none", **UNSIGNED)
    with pytest.raises(ImportError, match=r"pip install 'sj_burst\[nir\]'"):
        to_nir(snn)


class Edges(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.a, self.output = kind, nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
        self.same = nn.Conv2d(2, 2, 1)

    def forward(self, x, y=None):
        if self.kind == "twice":
            x = x + (x + self.same(x))
        a = F.relu(self.a(x))
        if self.kind == "crop":
            return F.relu(self.output(a) + F.pad(a, (0, 0, 0, 0, -1, 1)))
        return self.output(a)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x, y):
        return F.relu(self.a(x) + self.b(y))


def test_edges_that_nir_does_not_have(convert):
    nir = pytest.importorskip("nir")
    x = X["single"]
    with pytest.raises(ValueError, match="adds a value twice"):
        to_nir(convert(Edges("twice"), [x], calibration="none", **UNSIGNED))
    with pytest.raises(ValueError, match=r"\(pad\)"):
        to_nir(convert(Edges("crop"), [x], calibration="none", **UNSIGNED))
    with pytest.raises(ValueError, match="several inputs"):
        to_nir(convert(Two(), [((x, x),)], calibration="none", **UNSIGNED))
    graph = to_nir(convert(Edges("name"), [x], calibration="none", **UNSIGNED))
    assert isinstance(graph.nodes["output_layer"], nir.Conv2d)
    assert isinstance(graph.nodes["output"], nir.Output)
