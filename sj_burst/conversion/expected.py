"""Expected spikes: what the layers behind take for granted need not be sent."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.events import AT_ONCE
from ..functional import per_channel
from ..modules.neuron import BurstIFNode
from ..modules.pooling import LIPool
from ..network import SpikingNetwork, check_converted
from ..simulation.plan import steps_at_once
from ..simulation.spikes import spike_numbers
from ..simulation.steps import present
from ..simulation.values import values_of
from ..simulation.walk import pool_units
from ..utils import distributed
from ..utils.checks import check_count
from ..utils.inference import eval_mode, forward_hooks
from ..utils.loader import check_loader, first_samples
from ..utils.outputs import at_least_single

__all__ = ["expect_spikes"]

_MOST = 255  # spikes a step that are told apart; more may be sent, but are not expected


@torch.no_grad()
def expect_spikes(
    snn: SpikingNetwork,
    loader: Iterable[Any],
    time_steps: int | None = None,
    *,
    images: int = 64,
    time_dim: int | None = None,
) -> None:
    r"""Let the layers of a network expect the median of each channel's spikes in a step, in place.

    .. math::
        r_c = \mathrm{median}_{i,\,t}\; n_{ci}(t), \qquad
        \sum_{i,\,t} |n_{ci}(t) - r_c| \;\text{ is least}

    The current of a layer is :math:`W\theta n = W\theta(n - r) + W\theta r`, of which the second part is
    constant: the network computes what it did, and sends n − r, in unary events the fewest (one event
    that carries a number may be sent more often). Burst neurons and lateral-inhibition pooling have
    expected spikes, leaky neurons none. Conversion does so under ``expected_spikes="median"``, and
    training in the end; call it if you have changed the network otherwise.

    Args:
        snn: a converted network; its state is reset. Without ``channel_wise`` a layer has one r.
        loader: batches, as for :func:`sj_burst.convert`.
        time_steps: T; ``None`` for the one it was converted for.
        images: how many of them to look at.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`.

    Raises:
        TypeError: for a network that was not converted, or a loader that cannot be read.
        ValueError: for numbers below one, a loader without images, or images that do not fit.

    Source: derived here; that a neuron sends what was not predicted is predictive coding, Rao &
    Ballard, Nature Neuroscience 1999.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
        >>> _ = nn.init.zeros_(ann[0].weight), nn.init.constant_(ann[0].bias, 3.0)
        >>> snn = sj_burst.convert(ann, [torch.rand(8, 2)], max_spikes=4, progress=False)
        >>> expect_spikes(snn, [torch.rand(8, 2)])
        >>> snn.neurons()["1"].expected.tolist()
        [4.0]
    """
    check_converted(snn, "expect_spikes")
    check_loader(loader)
    steps = snn.options.time_steps if time_steps is None else time_steps
    check_count(time_steps=steps, images=images)
    seen = [x.to(snn.device) for x in first_samples(loader, images, "loader", time_dim)]
    snn.check_input(seen[0].one_frame())
    units = pool_units(snn.graph, values_of(snn, seen[0][:1]))
    layers = {n: m for n, m in snn.graph.named_modules() if _may_expect(m, n in units)}
    channel_wise = snn.options.channel_wise
    histograms: dict[str, Tensor] = {}

    def add(name: str, module: nn.Module, _: Any, y: Tensor) -> None:
        for part in y.split(max(1, AT_ONCE * len(y) // max(1, y.numel()))):
            numbers = _numbers(module, part, units.get(name))
            found = _histogram(numbers, channel_wise)
            histograms[name] = histograms[name] + found if name in histograms else found

    with eval_mode(snn), forward_hooks(layers, add):
        for x in seen:
            with present(snn, x) as shown:
                for _ in shown.chunks(steps, steps_at_once(len(x))):
                    pass
    dtype = next(iter(snn.neurons().values())).threshold.dtype
    for name, histogram in histograms.items():
        counts = distributed.total(histogram).cumsum(1)
        median = (counts < counts[:, -1:] / 2).sum(1).to(dtype)
        median = median if channel_wise else median.squeeze()
        layers[name].expected = median if bool(median.any()) else None


def _may_expect(module: nn.Module, pools_spikes: bool) -> bool:
    if isinstance(module, BurstIFNode):
        return module.negative_slope is None
    return isinstance(module, LIPool) and pools_spikes


def _numbers(module: nn.Module, y: Tensor, unit: Tensor | None) -> Tensor:
    """How many spikes there are in what a neuron or a pooling, with its unit, has sent."""
    if isinstance(module, BurstIFNode):
        return spike_numbers(module, y)
    assert unit is not None
    return at_least_single(y) / per_channel(unit, y.dim()).to(y)


def _histogram(numbers: Tensor, channel_wise: bool) -> Tensor:
    """How often each number of spikes occurs, by channel ``[C, _MOST + 1]`` or ``[1, _MOST + 1]``."""
    rows = numbers.movedim(1, 0).flatten(1) if channel_wise else numbers.flatten().unsqueeze(0)
    whole = rows.nan_to_num(0.0).clamp(0, _MOST).round().long()
    first = (_MOST + 1) * torch.arange(len(rows), device=rows.device).unsqueeze(1)
    size = len(rows) * (_MOST + 1)
    return torch.bincount((first + whole).flatten(), minlength=size).view(len(rows), -1).double()
