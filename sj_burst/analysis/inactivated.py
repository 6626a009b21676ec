"""Spikes of inactivated neurons (SIN): measuring them, and taking them back late."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..network import SpikingNetwork
from .layers import layer_rates

__all__ = ["inactivated_share"]


@torch.no_grad()
def inactivated_share(
    snn: SpikingNetwork, ann: nn.Module, loader: Iterable[Any], time_steps: int
) -> dict[str, float]:
    r"""Share of the ANN's inactive neurons that have a positive total after T steps, per layer.

    .. math::
        \text{SIN} = \frac{|\{i : a_i = 0,\ \sum_t y_i(t) > 0\}|}{|\{i : a_i = 0\}|}

    Args:
        snn: a converted network.
        ann: the network it was converted from.
        loader: batches.
        time_steps: T.

    Returns:
        Layer name to share in [0, 1].

    Raises:
        ValueError: if T < 1, the loader is empty, or ``ann`` is not the network it was converted from.
        TypeError: for a network that was not converted, or a loader that cannot be read.

    Source: Li et al., 2022 (SpiCalib).

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> x = [torch.rand(16, 3)]
        >>> snn = convert(ann, x, max_spikes=1, progress=False)
        >>> list(inactivated_share(snn, ann, x, time_steps=8))
        ['1']
    """
    inactive: dict[str, int] = {}
    wrong: dict[str, int] = {}
    for layers in layer_rates(snn, ann, loader, time_steps):
        for name, (rate, a) in layers.items():
            inactive[name] = inactive.get(name, 0) + int((a <= 0).sum())
            wrong[name] = wrong.get(name, 0) + int(((a <= 0) & (rate > 0)).sum())
    return {name: wrong[name] / max(inactive[name], 1) for name in inactive}
