"""Spikes of inactivated neurons (SIN)."""

from collections.abc import Iterable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.neuron import BurstIFNode
from ..network import SpikingNetwork
from ..simulation.spikes import spike_numbers
from .layers import LayerMeans, layer_means

__all__ = ["fires_inactivated", "inactivated_share"]


def fires_inactivated(means: LayerMeans, node: BurstIFNode, time_steps: int) -> Tensor:
    """Which neurons ``[N, ...]`` are inactive in the ANN and have sent spikes, less those taken back.

    It is spikes that count: sums of weighted ones that cancel need not be zero in floating point.
    """
    return (means.activation <= 0) & (spike_numbers(node, means.rate * time_steps) >= 1)


@torch.no_grad()
def inactivated_share(
    snn: SpikingNetwork,
    ann: nn.Module,
    loader: Iterable[Any],
    time_steps: int,
    *,
    time_dim: int | None = None,
) -> dict[str, float]:
    r"""Share of the ANN's inactive neurons whose spikes after T steps add up to some, per layer.

    .. math::
        \text{SIN} = \frac{|\{i : a_i = 0,\ \sum_t n_i(t) > 0\}|}{|\{i : a_i = 0\}|}

    Args:
        snn: a converted network.
        ann: the network it was converted from.
        loader: batches.
        time_steps: T.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`.

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
    with closing(layer_means(snn, ann, loader, time_steps, time_dim)) as found:
        for layers, _ in found:
            for name, node in snn.neurons().items():
                quiet = int((layers[name].activation <= 0).sum())
                fired = int(fires_inactivated(layers[name], node, time_steps).sum())
                inactive[name] = inactive.get(name, 0) + quiet
                wrong[name] = wrong.get(name, 0) + fired
    return {name: wrong[name] / max(inactive[name], 1) for name in inactive}
