"""A sample of the zoo, and that its judges can tell right from wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from . import byhand
from .attempt import attempt, convert, difference
from .entry import Entry
from .libraries import smp_entries, timm_entries, torchvision_entries
from .oracle import inquire
from .ordinary import make_ordinary
from .table import summary

SAMPLE = [
    *("audio/DilatedCausal", "signals/TCN", "vision/HighResolution", "dense/MilesialUNet"),
    *("detection/YoloV3Tiny", "points/PointNet", "tables/TextCNN"),
    *("torchvision/squeezenet1_1", "timm/resnet10t", "smp/linknet-resnet18"),
]
_LIBRARIES = {
    "timm": ("timm", timm_entries),
    "torchvision": ("torchvision", torchvision_entries),
    "smp": ("segmentation_models_pytorch", smp_entries),
}


def entry_of(name: str) -> Entry:
    library, name = name.split("/")
    package, entries = _LIBRARIES.get(library, ("torch", byhand.entries))
    pytest.importorskip(package)
    return next(e for e in entries() if (e.library, e.name) == (library, name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_converts(name):
    result = attempt(entry_of(name))
    assert result.verdict == "converts", result
    assert result.error_256 < result.error_16


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        *("tables/SelfAttention", "tables/LayerNormed", "audio/WaveNetGated"),
        "torchvision/mobilenet_v3_small",
    ],
)
def test_what_no_rate_passes_is_refused(name):
    entry = entry_of(name)
    assert attempt(entry).verdict == "refused rightly"
    x = entry.samples(2)
    assert inquire(entry.make().eval(), x).verdict  # the oracle knows it without the author


def test_names_are_unique_and_choices_are_there():
    names = [(e.library, e.name) for e in byhand.entries()]
    assert len(names) == len(set(names)) > 250
    assert len(list(timm_entries())) > 450


class Net(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.operation, self.first, self.second = operation, nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return F.relu(self.second(self.operation(F.relu(self.first(x)))))


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (lambda x: 2 * x.flip(1) - x.mean(1, keepdim=True), ""),
        (lambda x: x * x.detach().sigmoid(), "product of activations"),
        (lambda x: x * x.mean(1, keepdim=True), "product of activations"),
        (lambda x: x / (1 + x), "product of activations"),
        (lambda x: x @ x.mT.contiguous() @ x, "product of activations"),
        (lambda x: F.layer_norm(x, (8,)), "native_layer_norm"),
        (lambda x: F.silu(x), "silu"),
        (lambda x: x.softmax(1), "softmax"),
    ],
)
def test_the_oracle(operation, reason):
    finding = inquire(Net(operation), torch.randn(4, 6))
    assert reason in finding.verdict if reason else not finding.verdict
    assert not finding.unknown


def test_the_oracle_tells_read_out_from_what_stands_between_neurons():
    finding = inquire(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Softmax(1)), torch.randn(2, 3))
    assert finding.activations == 1
    assert not finding.verdict
    assert finding.read_out == ["softmax"]


def test_the_error_sees_a_wrong_network():
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    net = make_ordinary(Net(lambda x: x), torch.randn(8, 6))
    snn = convert(net, x, 256)
    assert difference(snn.answer(x, 1), net(x)) < 0.05
    next(snn.parameters()).data *= 1.1
    assert difference(snn.answer(x, 1), net(x)) > 0.05


def test_every_layer_of_an_ordinary_network_has_unit_variance():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    x = torch.randn(64, 6)
    make_ordinary(net, x)
    assert 0.8 < net(x).std() < 1.2
    assert (net[1].running_mean != 0).all()
    assert not net.training


def test_the_share_counts_what_is_convertible():
    verdicts = ["converts"] * 3 + ["refused wrongly", "refused rightly", "does not run"]
    text = summary([{"library": "a", "network": str(i), "verdict": v} for i, v in enumerate(verdicts)])
    assert text.splitlines()[-1].endswith("75.0 % of 4 |")
