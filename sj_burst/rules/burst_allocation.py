"""Γ for each layer: long bursts where the answer depends on them, at a given mean."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .rate_distortion import spikes_and_errors
from .statistics import ActivationStatistics
from .threshold import fit_threshold
from .transfer import Transfer

__all__ = ["Choice", "allocate_bursts", "choose", "ladder"]

_MOST = 127  # what counts of eight bits hold; a larger mean wants more
_TIMES = 8  # the mean, at most
_KEPT = 2**13  # combinations
_CEILINGS = (0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 2.0)  # Γθ, over that of the mean Γ


def allocate_bursts(
    statistics: Mapping[str, ActivationStatistics],
    weight: Mapping[str, Tensor],
    neurons: Mapping[str, int],
    transfer: Transfer,
    rule: str,
) -> dict[str, int]:
    r"""Γ of every layer with the least loss; at most that of ``transfer``, on average over neurons.

    .. math::
        \min_{\Gamma_1, \Gamma_2, \dots} \sum_l \sum_{c \in l} \frac{g_c}{2}
        \sum_i (\phi_{\Gamma_l}(a_i) - a_i)^2 \quad \text{with} \quad
        \sum_l n_l \Gamma_l \le \Gamma \sum_l n_l

    for n neurons in layer l, with the thresholds that the rule fits for each Γ (for ``"mse"`` the best
    of a few). An error falls with the square of the number of levels, so that layers of few neurons, on
    which the answer depends most, get the longest bursts. A layer that was silent keeps the mean.

    Args:
        statistics: of the activations of every layer.
        weight: g, mean of :math:`(\partial \ell/\partial a)^2` at active positions ``[C]``, by layer.
        neurons: how many each layer has.
        transfer: T, Γ and v0 that will run.
        rule: of thresholds; see :func:`~sj_burst.rules.threshold.fit_threshold`.

    Source: derived here; Γ by layer as in Wang et al., "Adaptive calibration: a unified conversion
    framework of spiking neural networks", AAAI 2025, who measure what each layer's Γ does.

    Example:
        >>> wide, narrow = ActivationStatistics(), ActivationStatistics()
        >>> for one in (wide, narrow):
        ...     one.update(torch.linspace(0, 1, 100).unsqueeze(1))
        >>> weight = {"wide": torch.tensor([1.0]), "narrow": torch.tensor([100.0])}
        >>> neurons, transfer = {"wide": 900, "narrow": 100}, Transfer(4, 4, 0.5)
        >>> allocate_bursts({"wide": wide, "narrow": narrow}, weight, neurons, transfer, "mse")
        {'wide': 3, 'narrow': 12}
    """
    tables: dict[str, list[Choice]] = {}
    for name, one in statistics.items():
        if bool(one.dead.all()):  # nothing is known of it
            mean = int(transfer.max_spikes)
            tables[name] = [Choice(mean, mean * neurons[name], 0.0)]
            continue
        positions, rows = neurons[name] / len(one.maximum), []
        ceiling = transfer.max_spikes * fit_threshold(one, rule, transfer).clamp_min(1e-30).double()
        for gamma in ladder(transfer.max_spikes, _TIMES):
            tried = dataclasses.replace(transfer, max_spikes=gamma)
            if rule == "mse":  # a whole search for every Γ would take minutes
                thetas = [(share * ceiling).clamp(max=one.upper) / gamma for share in _CEILINGS]
            else:
                thetas = [fit_threshold(one, rule, tried).clamp_min(1e-30).double()]
            errors = torch.stack([error for _, error in spikes_and_errors(one, tried, thetas)]).amin(0)
            loss = (weight[name].to(errors) * errors).sum().item() / 2 * positions / one.samples
            rows.append(Choice(gamma, gamma * neurons[name], loss))
        tables[name] = rows
    return choose(tables, transfer.max_spikes * sum(neurons.values()))


class Choice(NamedTuple):
    """What a layer may get, with what it costs and loses."""

    max_spikes: int
    cost: float
    loss: float


def choose(tables: Mapping[str, Sequence[Choice]], cost: float) -> dict[str, int]:
    """One choice for each layer, of the least loss in all for at most ``cost`` in all.

    Layer by layer, of all choices so far those are kept that no other beats in both cost and loss; of
    more than a few thousand, the best of each sliver of the cost.

    Args:
        tables: what each layer may choose from.
        cost: what may be spent.

    Raises:
        ValueError: if every choice costs more.

    Example:
        >>> table = [Choice(1, 1.0, 9.0), Choice(2, 3.0, 4.0), Choice(3, 6.0, 0.0)]
        >>> choose({"a": table, "b": table}, cost=7.0)
        {'a': 2, 'b': 2}
    """
    costs = losses = torch.zeros(1, dtype=torch.float64)
    picks: list[Tensor] = []  # by layer, of every combination kept: its last choice and what it adds to
    for table in tables.values():
        own = torch.tensor([row[1:] for row in table], dtype=torch.float64)
        total, loss = ((costs[:, None] + own[:, 0]).flatten(), (losses[:, None] + own[:, 1]).flatten())
        order = _undominated(total, loss, cost * (1 + 1e-9))
        if len(order) == 0:
            raise ValueError(f"no choice of Γ by layer costs at most {cost:.4g}, or losses are NaN")
        costs, losses = total[order], loss[order]
        picks.append(order)
    at, chosen = int(losses.argmin()), {}
    for (name, table), order in zip(reversed(list(tables.items())), reversed(picks), strict=True):
        at, row = divmod(int(order[at]), len(table))
        chosen[name] = table[row].max_spikes
    return {name: chosen[name] for name in tables}


def _undominated(cost: Tensor, loss: Tensor, most: float) -> Tensor:
    """Which are within ``most`` and cost or lose less than any other, by cost."""
    order = cost.argsort(stable=True)
    order = order[cost[order] <= most]
    least = torch.cat([loss.new_tensor([math.inf]), loss[order].cummin(0).values[:-1]])
    order = order[loss[order] < least]
    if len(order) <= _KEPT:
        return order
    sliver = (cost[order] * (_KEPT / most)).long()
    last = torch.cat([sliver[1:] != sliver[:-1], torch.ones(1, dtype=torch.bool)])
    last[0] = True  # what the layers to come may need
    return order[last]


def ladder(mean: float, times: int) -> list[int]:
    """Γ that a layer may get, up to so many times the mean: whole numbers in steps of some 25 %.

    Example:
        >>> ladder(2, times=8)
        [1, 2, 3, 4, 5, 6, 8, 10, 12, 15]
    """
    found, last = [int(mean)], 1
    while last <= min(max(_MOST, 2 * mean), times * mean):
        found.append(last)
        last = max(last + 1, round(1.25 * last))
    return sorted(set(found))
