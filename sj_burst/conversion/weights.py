"""Weights of few bits: symmetric, one scale per output channel."""

from typing import Any

import torch
from torch import Tensor, nn

from ..graph.operators import TRANSPOSED_CONVOLUTIONS

__all__ = ["round_weights", "weight_scale"]


def weight_scale(layer: Any, bits: int) -> Tensor:
    r"""The scale of every output channel, shaped to divide the weights.

    .. math::
        s_o = \max_{c} |W_{oc}| / (2^{b-1} - 1)

    Args:
        layer: a linear or convolutional layer.
        bits: b ≥ 2.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.weight.data = torch.tensor([[0.5, -1.27]])
        >>> weight_scale(layer, 8)
        tensor([[0.0100]])
    """
    weight = layer.weight.detach()
    most = 2 ** (bits - 1) - 1
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):  # [inputs, outputs/groups, ...]
        parts = weight.unflatten(0, (layer.groups, -1)).abs()
        dims = [1, *range(3, parts.dim())]
        largest = parts.amax(dims, keepdim=True).expand(-1, parts.shape[1], *parts.shape[2:])
        largest = largest.flatten(0, 1)[:, :, *[slice(0, 1)] * (weight.dim() - 2)]
    else:
        largest = weight.abs().amax(list(range(1, weight.dim())), keepdim=True)
    return (largest / most).clamp_min(torch.finfo(weight.dtype).tiny)


@torch.no_grad()
def round_weights(layer: Any, bits: int) -> None:
    """Round the weights of a layer to integers of b bits times the scale of their output channel.

    Args:
        layer: a linear or convolutional layer, which gets a new parameter.
        bits: b ≥ 2; integers from −(2^{b−1} − 1) to 2^{b−1} − 1.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.weight.data = torch.tensor([[0.5, -1.0]])
        >>> round_weights(layer, 3)
        >>> layer.weight.tolist()
        [[0.6666666865348816, -1.0]]
    """
    scale = weight_scale(layer, bits)
    layer.weight = nn.Parameter((layer.weight.detach() / scale).round() * scale)
