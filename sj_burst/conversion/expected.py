"""Expected spikes: what the layers behind take for granted need not be sent."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import per_channel
from ..modules.neuron import BurstIFNode
from ..modules.pooling import LIPool
from ..network import SpikingNetwork
from ..simulation.plan import steps_at_once
from ..simulation.spikes import spike_numbers
from ..simulation.steps import present
from ..simulation.values import values_of
from ..simulation.walk import pool_units
from ..utils import distributed
from ..utils.inference import forward_hooks
from ..utils.inputs import Inputs
from ..utils.outputs import at_least_single

__all__ = ["expect_spikes"]

_MOST = 255  # spikes a step that are told apart; more may be expected, but are not


@torch.no_grad()
def expect_spikes(snn: SpikingNetwork, images: Iterable[Inputs], time_steps: int) -> None:
    r"""Let the layers of a network expect the median of each channel's spikes in a step, in place.

    .. math::
        r_c = \mathrm{median}_{i,\,t}\; n_{ci}(t), \qquad
        \sum_{i,\,t} |n_{ci}(t) - r_c| \;\text{ is least}

    The current of a layer is :math:`W\theta n = W\theta(n - r) + W\theta r`, of which the second part is
    constant: the network computes what it did, and sends n − r. Burst neurons and lateral-inhibition
    pooling have expected spikes, leaky neurons none, whose totals are about zero anyway.

    Args:
        snn: a converted network; its state is reset. Without ``channel_wise`` a layer has one r.
        images: what to look at, in batches.
        time_steps: T.

    Source: derived here; that a neuron sends what was not predicted is predictive coding, Rao &
    Ballard, Nature Neuroscience 1999.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
        >>> _ = nn.init.zeros_(ann[0].weight), nn.init.constant_(ann[0].bias, 3.0)
        >>> snn = sj_burst.convert(ann, [torch.rand(8, 2)], max_spikes=4, progress=False)
        >>> expect_spikes(snn, [Inputs(torch.rand(8, 2))], time_steps=4)
        >>> snn.neurons()["1"].expected.tolist()
        [4.0]
    """
    histograms: dict[str, Tensor] = {}
    layers = dict(snn.graph.named_modules())
    units: dict[str, Tensor] = {}

    def add(name: str, module: nn.Module, _: Any, y: Tensor) -> None:
        if isinstance(module, BurstIFNode):
            numbers = spike_numbers(module, y)
        else:
            numbers = at_least_single(y) / per_channel(units[name], y.dim()).to(y)
        found = _histogram(numbers, snn.options.channel_wise)
        histograms[name] = histograms.get(name, 0) + found

    for x in images:
        if not histograms:
            units = pool_units(snn.graph, values_of(snn, x[:1]))
            sending = {name: layers[name] for name in layers if _may_expect(layers[name], name in units)}
        with present(snn, x) as shown, forward_hooks(sending, add):
            for _ in shown.chunks(time_steps, steps_at_once(len(x))):
                pass
    for name, histogram in histograms.items():
        counts = distributed.total(histogram).cumsum(1)
        median = (counts < counts[:, -1:] / 2).sum(1)
        dtype = next(iter(snn.neurons().values())).threshold.dtype
        expected = median.to(dtype) if snn.options.channel_wise else median.to(dtype).squeeze()
        layers[name].expected = expected if bool(median.any()) else None


def _may_expect(module: nn.Module, pools_spikes: bool) -> bool:
    if isinstance(module, BurstIFNode):
        return module.negative_slope is None
    return isinstance(module, LIPool) and pools_spikes


def _histogram(numbers: Tensor, channel_wise: bool) -> Tensor:
    """How often each number of spikes occurs, by channel ``[C, _MOST + 1]`` or ``[1, _MOST + 1]``."""
    rows = numbers.movedim(1, 0).flatten(1) if channel_wise else numbers.flatten().unsqueeze(0)
    whole = rows.nan_to_num(0.0).clamp(0, _MOST).round().long()
    first = (_MOST + 1) * torch.arange(len(rows), device=rows.device).unsqueeze(1)
    size = len(rows) * (_MOST + 1)
    return torch.bincount((first + whole).flatten(), minlength=size).view(len(rows), -1).double()
