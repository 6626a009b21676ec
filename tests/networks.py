"""Networks that the tests share."""

import torch
from networks import CifarResNet  # the tutorials' networks
from torch import nn


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
