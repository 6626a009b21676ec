"""Networks with an output for every pixel or anchor, built from torchvision's parts."""

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from sj_burst import simulate
from tests.networks import randomize_batch_norm


class Entry(nn.Module):
    """One of the tensors that a network returns in a dict."""

    def __init__(self, net, key):
        super().__init__()
        self.net, self.key = net, key

    def forward(self, x):
        return self.net(x)[self.key]


class Detector(nn.Module):
    """Single-shot detection: class scores and boxes of anchors at several scales, in one tensor."""

    SCALES = ((7, 32), (14, 96), (19, 1280))  # end and channels of parts of MobileNetV2

    def __init__(self, anchors=2, values=5):
        super().__init__()
        features = torchvision.models.mobilenet_v2(weights=None).features
        ends = [0, *(end for end, _ in self.SCALES)]
        self.parts = nn.ModuleList(features[a:b] for a, b in pairwise(ends))
        self.heads = nn.ModuleList(nn.Conv2d(c, anchors * values, 3, 1, 1) for _, c in self.SCALES)
        self.values = values

    def forward(self, x):
        found = []
        for part, head in zip(self.parts, self.heads, strict=True):
            x = part(x)
            found.append(head(x).permute(0, 2, 3, 1).reshape(x.size(0), -1, self.values))
        return torch.cat(found, 1)


def fcn():
    make = torchvision.models.segmentation.fcn_resnet50
    return Entry(make(weights=None, weights_backbone=None, num_classes=5), "out")


@pytest.mark.slow
@pytest.mark.parametrize(("network", "size", "bound"), [(fcn, 32, 0.06), (Detector, 64, 0.01)])
def test_the_spiking_network_is_close_to_the_ann(convert, network, size, bound):
    ann = randomize_batch_norm(network()).eval()
    images = torch.rand(2, 3, size, size)
    snn = convert(ann, [images], max_spikes=15, time_steps=32, threshold="max", calibration="none")
    with torch.no_grad():
        wanted = ann(images)
    classes = wanted.argmax(1)  # of every pixel, or of the values at every anchor
    result = simulate(snn, [(images, classes)], 32, reference=ann, progress=False)
    assert result.output.shape == wanted.shape
    error = ((result.output - wanted).norm() / wanted.norm()).item()
    assert error < bound
    assert result.error[-1].item() == pytest.approx(error, rel=1e-3)
    agree = (result.output.argmax(1) == classes).float().mean().item()
    assert result.accuracy[-1].item() == pytest.approx(agree)


def test_a_detector_with_gates_is_refused_by_name(convert):
    make = torchvision.models.detection.ssdlite320_mobilenet_v3_large
    net = Entry(make(weights=None, weights_backbone=None).backbone, "0")
    with pytest.raises(ValueError, match=r"(?s)Hardswish.*product of two"):
        convert(net, [torch.rand(2, 3, 64, 64)])
