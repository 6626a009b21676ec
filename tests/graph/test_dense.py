"""Networks with an output for every pixel or anchor, built from torchvision's parts."""

from functools import partial
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from sj_burst import simulate
from sj_burst.graph.fuse import unfused
from sj_burst.utils.outputs import tensors_of
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
    return make(weights=None, weights_backbone=None, aux_loss=True, num_classes=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "output", "size", "bound"), [(fcn, "out", 32, 0.12), (Detector, None, 64, 0.01)]
)
def test_the_spiking_network_is_close_to_the_ann(convert, network, output, size, bound):
    """Four draws of the weights of the ResNet-50 are off by 0.03 to 0.07."""
    ann = randomize_batch_norm(network()).eval()
    images = torch.rand(2, 3, size, size)
    snn = convert(ann, [images], max_spikes=15, time_steps=32, threshold="max", calibration="none")
    with torch.no_grad():
        answers, found = tensors_of(ann(images)), tensors_of(snn.run(images, 32))
    assert answers.keys() == found.keys() and len(answers) == (2 if output else 1)
    for key, wanted in answers.items():
        assert (found[key].mean(0) - wanted).norm() < bound * wanted.norm()
    wanted = ann(images)[output].detach() if output else ann(images).detach()
    classes = wanted.argmax(1)  # of every pixel, or of the values at every anchor
    result = simulate(snn, [(images, classes)], 32, reference=ann, output=output, progress=False)
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


class SSDLite(nn.Module):
    """SSDlite's heads on MobileNetV2, which has ReLU6 everywhere: classes and boxes of all anchors."""

    def __init__(self, classes=4):
        super().__init__()
        features = torchvision.models.mobilenet_v2(weights=None).features
        self.fine, self.coarse = features[:14], features[14:]
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
        self.head = SSDLiteHead([96, 1280], [3, 3], classes, norm)

    def forward(self, x):
        maps = [x := self.fine(x), self.coarse(x)]
        found = self.head(maps)
        return {"scores": found["cls_logits"].softmax(2), "boxes": [found["bbox_regression"]]}


class RetinaNet(nn.Module):
    """ResNet with frozen BatchNorm, a feature pyramid of five levels, and heads that they share."""

    def __init__(self, classes=2):
        super().__init__()
        self.backbone = resnet_fpn_backbone(
            backbone_name="resnet18",
            weights=None,
            norm_layer=FrozenBatchNorm2d,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        self.head = RetinaNetHead(256, 3, classes)
        for conv in self.head.modules():  # they begin so small that the biases are the answer
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight)

    def forward(self, x):
        levels = [self.head([level]) for level in self.backbone(x).values()]
        return {
            "scores": [level["cls_logits"].sigmoid() for level in levels],
            "boxes": [level["bbox_regression"] for level in levels],
        }


@pytest.mark.slow
@pytest.mark.parametrize(("network", "outputs"), [(SSDLite, 2), (RetinaNet, 10)])
@torch.no_grad()
def test_detectors_convert_as_one_network_with_several_outputs(convert, network, outputs):
    net, x = randomize_batch_norm(network()).eval(), torch.rand(2, 3, 64, 64)
    levels = {"threshold": "mse", "max_spikes": 256, "time_steps": 1, "calibration": "none"}
    snn = convert(net, [x], **levels)
    assert unfused(snn.graph) == []
    wanted, found = tensors_of(net(x)), tensors_of(snn.answer(x, 1))
    assert found.keys() == wanted.keys() and len(wanted) == outputs
    for path, expected in wanted.items():
        assert (found[path] - expected).norm() < 0.03 * (expected - expected.mean()).norm(), path
    result = simulate(snn, [x], 1, reference=net, output=("boxes", 0), progress=False)
    assert result.error[-1] < 0.03


@torch.no_grad()
def test_frozen_batch_norm_is_folded(convert):
    norm = FrozenBatchNorm2d(4, eps=1e-3)
    for statistic in norm.buffers():
        statistic.uniform_(0.5, 2)
    net, x = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU()), torch.randn(4, 1, 6, 6)
    snn = convert(net, [x], max_spikes=256, calibration="none")
    assert [name for name, _ in snn.graph.named_children()] == ["0", "2"]
    assert (snn.answer(x, 4) - net(x)).norm() < 0.01 * net(x).norm()
