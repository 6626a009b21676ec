"""Random weights under which every layer matters, as after training."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

__all__ = ["make_ordinary"]


@torch.no_grad()
def make_ordinary(net: nn.Module, x: Any) -> nn.Module:
    """Give every layer outputs of about unit variance, and normalisations statistics of their own.

    Weights are scaled so on the data ``x`` layer after layer (Mishkin & Matas, ICLR 2016); then the
    normalisations see the data in training mode, as they do in training.
    """
    net.eval()
    norms = [m for m in net.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # type: ignore[assignment]  # the plain mean over batches
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | _ConvNd) and _is_plain(m)]
    hooks = [layer.register_forward_hook(_rescale) for layer in layers]
    inputs = x if isinstance(x, tuple) else (x,)
    try:
        net(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for norm in norms:
        norm.reset_running_stats()
    net(*inputs)
    for norm in norms:
        norm.momentum = 0.1
    return net.eval()


def _is_plain(layer: nn.Module) -> bool:
    return not parametrize.is_parametrized(layer) and not layer._forward_pre_hooks


def _rescale(layer: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
    if layer.bias is not None:
        nn.init.normal_(layer.bias, 0.0, 0.1)
    if out.numel() > 1 and out.std() > 1e-6:
        layer.weight.data.div_(out.std())
    return layer.forward(*args)
