"""Networks that the tutorials train and convert."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Option A of the CIFAR ResNets: every second pixel, zero channels around."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pad = channels // 4

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential() if stride == 1 else PadShortcut(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """The classic CIFAR ResNet with functional ReLUs and a pooling size taken from the input."""

    def __init__(
        self,
        blocks: int = 3,
        widths: tuple[int, int, int] = (16, 32, 64),
        inputs: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._layer(widths[0], widths[0], blocks, 1)
        self.layer2 = self._layer(widths[0], widths[1], blocks, 2)
        self.layer3 = self._layer(widths[1], widths[2], blocks, 2)
        self.linear = nn.Linear(widths[2], classes)

    @staticmethod
    def _layer(inputs: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


def without_padding(net: nn.Module) -> nn.Module:
    """A copy whose pad shortcuts are the same map as 1×1 convolutions, which SpikingJelly converts."""
    net = copy.deepcopy(net)
    for block in net.modules():
        if isinstance(block, BasicBlock) and isinstance(block.shortcut, PadShortcut):
            inputs, outputs = block.conv1.in_channels, block.conv1.out_channels
            conv = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
            with torch.no_grad():
                conv.weight.zero_()[block.shortcut.pad :][:inputs, :, 0, 0] = torch.eye(inputs)
            block.shortcut = conv.to(block.conv1.weight.device).eval()  # type: ignore[assignment]
    return net


def small_vgg(
    classes: int = 10,
    activation: type[nn.Module] = nn.ReLU,
    pool: Callable[[int], nn.Module] = nn.MaxPool2d,
) -> nn.Sequential:
    """A VGG of five convolutions with BatchNorm and pooling, for 28×28 grey images."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (16, 16, "M", 32, 32, "M", 64, "M"):
        if width == "M":
            layers.append(pool(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers.append(activation())
        channels = width
    layers += [nn.Flatten(), nn.Linear(64 * 3 * 3, 128), activation(), nn.Linear(128, classes)]
    return nn.Sequential(*layers)


def _conv(inputs: int, channels: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


class SmallFCN(nn.Module):
    """A U-Net: three max-poolings down, three transposed convolutions up, skip connections across.

    Takes grey images whose sides are multiples of 8; returns logits ``[N, classes, H, W]``.
    """

    def __init__(self, classes: int = 11, widths: tuple[int, int, int, int] = (12, 24, 48, 96)) -> None:
        super().__init__()
        a, b, c, d = widths
        self.down1, self.down2, self.down3 = _conv(1, a), _conv(a, b), _conv(b, c)
        self.pool = nn.MaxPool2d(2)
        self.bottom = nn.Sequential(_conv(c, d), _conv(d, d))
        self.up3, self.merge3 = nn.ConvTranspose2d(d, c, 2, 2), _conv(c + c, c)
        self.up2, self.merge2 = nn.ConvTranspose2d(c, b, 2, 2), _conv(b + b, b)
        self.up1, self.merge1 = nn.ConvTranspose2d(b, a, 2, 2), _conv(a + a, a)
        self.head = nn.Conv2d(a, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.down1(x)
        x2 = self.down2(self.pool(x1))
        x3 = self.down3(self.pool(x2))
        x = self.bottom(self.pool(x3))
        x = self.merge3(torch.cat([self.up3(x), x3], 1))
        x = self.merge2(torch.cat([self.up2(x), x2], 1))
        x = self.merge1(torch.cat([self.up1(x), x1], 1))
        return self.head(x)


class SmallDetector(nn.Module):
    """A one-stage detector with a feature pyramid of two levels, whose heads are shared.

    Takes grey images whose sides are multiples of 16. Returns class probabilities ``[N, classes, H, W]``
    and distances to the four sides of a box, in strides, ``[N, 4, H, W]``, each for both levels.
    """

    STRIDES = (8, 16)

    def __init__(self, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.fine = nn.Sequential(
            *(_conv(1, 16, stride=2), _conv(16, 24), pool, _conv(24, 48), pool, _conv(48, width))
        )
        self.coarse = nn.Sequential(pool, _conv(width, width), _conv(width, width))
        self.lateral, self.merge = nn.Conv2d(width, width, 1), _conv(width, width)
        # Without BatchNorm, whose statistics differ between the levels.
        self.tower = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.classes, self.sides = (nn.Conv2d(width, outputs, 3, padding=1) for outputs in (classes, 4))
        nn.init.constant_(self.classes.bias, -4.6)  # few cells have an object: probability 0.01

    def levels(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Class scores and logarithms of distances of both levels, for training."""
        fine = self.fine(x)
        coarse = self.coarse(fine)
        fine = self.merge(self.lateral(fine) + F.interpolate(coarse, scale_factor=2.0))
        towers = [self.tower(level) for level in (fine, coarse)]
        return [self.classes(t) for t in towers], [self.sides(t) for t in towers]

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        scores, distances = self.levels(x)
        return {"scores": [z.sigmoid() for z in scores], "distances": [d.exp() for d in distances]}


def vgg16(classes: int = 10) -> nn.Sequential:
    """VGG-16 for 32×32 colour images."""
    layers: list[nn.Module] = []
    channels = 3
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, classes))


def small_resnet(classes: int = 10) -> CifarResNet:
    """ResNet-14 of width 8, 16, 32 for 28×28 grey images."""
    return CifarResNet(2, (8, 16, 32), inputs=1, classes=classes)


def make(name: str, classes: int) -> nn.Module:
    """An untrained network: one of ours, or one of torchvision's."""
    ours: dict[str, Any] = {
        "vgg": small_vgg,
        "resnet": small_resnet,
        "resnet20": lambda classes: CifarResNet(classes=classes),
        "vgg16": vgg16,
    }
    if name in ours:
        return ours[name](classes)
    from torchvision import models

    if name not in models.list_models():
        raise SystemExit(f"--network must be one of {list(ours)} or a torchvision model, got {name!r}")
    return models.get_model(name, num_classes=classes)
