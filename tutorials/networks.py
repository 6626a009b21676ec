"""Networks that the tutorials train and convert."""

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

    def __init__(self, blocks: int = 3, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._layer(widths[0], widths[0], blocks, 1)
        self.layer2 = self._layer(widths[0], widths[1], blocks, 2)
        self.layer3 = self._layer(widths[1], widths[2], blocks, 2)
        self.linear = nn.Linear(widths[2], 10)

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


def small_vgg(classes: int = 10, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A VGG of five convolutions with BatchNorm and max-pooling, for 28×28 grey images."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (16, 16, "M", 32, 32, "M", 64, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers.append(activation())
        channels = width
    layers += [nn.Flatten(), nn.Linear(64 * 3 * 3, 128), activation(), nn.Linear(128, classes)]
    return nn.Sequential(*layers)
