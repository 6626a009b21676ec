import torch
from torch import nn

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
