"""Networks, data and writers that the tests of training share."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sj_burst.training.qcfs import QCFS
from sj_burst.training.rate_norm import RateNorm, replace_relu, share_scale
from tests.networks import vgg

X = torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def rate_norm_vgg() -> nn.Module:
    """With thresholds that clip a part of the activations, a different one in each layer."""
    net = share_scale(replace_relu(vgg()), shared=False).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    net(X)
    for number, module in enumerate(m for m in net.modules() if isinstance(m, RateNorm)):
        nn.init.constant_(module.scale_logit, -0.5 * number)
    return net.eval()


def qcfs_vgg(levels: int = 4) -> nn.Module:
    return replace_relu(vgg(), lambda: QCFS(levels, bound=1.3))


def rate_norm_mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(6, 16), nn.BatchNorm1d(16), RateNorm()),
        *(nn.Linear(16, 16), RateNorm(), nn.Linear(16, 3)),
    )


def labelled_loader(samples=96, generator=None):
    torch.manual_seed(1)
    x = torch.randn(samples, 6)
    y = (x[:, :3] + 0.3 * x[:, 3:]).argmax(1)
    return DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=generator)


class Interrupt:
    """A writer that interrupts the run the n-th time it is called."""

    def __init__(self, after):
        self.left = after

    def add_scalar(self, *_):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
