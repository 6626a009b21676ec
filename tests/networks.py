"""Networks that the tests share."""

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


def randomize_batch_norm(net: nn.Module) -> nn.Module:
    """Running statistics as after training, so that a wrong fold shows."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias, 0.0, 0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net


def resnet(seed: int = 0, blocks: int = 1) -> nn.Module:
    """A small, random CIFAR ResNet in eval mode."""
    torch.manual_seed(seed)
    return randomize_batch_norm(CifarResNet(blocks, (4, 8, 16))).eval()


def vgg(seed: int = 0) -> nn.Sequential:
    """A small, random network with BatchNorm and max-pooling, for inputs ``[N, 2, 8, 8]``."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 5)),
    )
    return randomize_batch_norm(net).eval()
