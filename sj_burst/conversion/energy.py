"""Thresholds that spend a budget of energy where it matters most."""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..graph.trace import is_module
from ..modules.neuron import neurons
from ..modules.pooling import MAX_POOLS, GatedPool, LIPool
from ..network import SpikingNetwork
from ..rules.rate_distortion import allocate, candidates
from ..rules.statistics import ActivationStatistics
from ..rules.transfer import Transfer
from ..simulation.fan_out import fan_out
from ..simulation.synops import synops
from ..simulation.values import values_of
from ..simulation.walk import SpikeWalk
from ..utils.inputs import Inputs
from .sensitivity import Sensitivity

__all__ = ["ThresholdBudget"]

_CLOSE = 0.03  # of the budget, within which what was measured is close enough

_TOLD = 0.1  # of the budget: beyond it, spending more is told of


class ThresholdBudget:
    """Thresholds of a converted network by rate and distortion, for a budget of energy.

    Args:
        snn: the network, before its layers are calibrated; its thresholds are set.
        x: one sample, for the shapes; a sequence if the input will change from step to step.
        statistics: of the activations, by name.
        sensitivity: of the same.
        transfers: T, Γ and v0 of the neurons, by name.
        budget: what a sample may cost, as a share of the ANN's energy.

    Raises:
        ValueError: if what no spike reaches costs more than the budget.
    """

    def __init__(
        self,
        snn: SpikingNetwork,
        x: Inputs,
        statistics: Mapping[str, ActivationStatistics],
        sensitivity: Sensitivity,
        transfers: Mapping[str, Transfer],
        budget: float,
    ) -> None:
        expected = snn.options.expected_spikes != "none"
        self.time_steps = snn.options.time_steps
        found = fan_out(snn, x)
        costs = spike_costs(snn.graph, x, found.spikes, sensitivity.size)
        self.layers = {
            name: candidates(
                one,
                transfers[name],
                neurons(snn.graph)[name].threshold.detach(),
                _samples(one, sensitivity.size[name]),
                sensitivity.weight[name],
                _mean_fan_out(costs[name], sensitivity.size[name], one.channel_wise)
                * _unweighted(one, sensitivity.size[name]),
                expected and one.negative_slope is None,
            )
            for name, one in statistics.items()
        }
        self.allowed = found.spikes_within(budget, self.time_steps)
        self.budget, self.target, self.excess = budget, self.allowed, 0.0
        self.tried: list[_Tried] = []

    def spend(self, snn: SpikingNetwork) -> None:
        """Give a network the thresholds that are predicted to cause ``target`` operations."""
        chosen, _ = allocate(self.layers, self.target)
        for name, node in snn.neurons().items():
            theta, node.max_spikes = chosen[name]
            theta = theta.to(node.threshold).view_as(node.threshold)
            theta = theta.clamp_min(torch.finfo(theta.dtype).tiny)
            ratio = theta / node.threshold
            node.threshold, node.v_init = theta, node.v_init * ratio
            if node.shift is not None:
                node.shift = node.shift * ratio

    def correct(self, snn: SpikingNetwork, batches: Iterable[Any], time_dim: int | None = None) -> bool:
        """Aim better by what images cost; returns whether the last aim was good.

        Args:
            snn: a network with the thresholds of the last :meth:`spend`.
            batches: of images.
            time_dim: which of their dimensions is time, if one is.
        """
        measured = max(synops(snn, batches, self.time_steps, time_dim=time_dim).synops, 1e-30)
        self.tried.append(_Tried(self.target, measured))
        guess = self.target * self.allowed / measured
        low = max((t.target for t in self.tried if t.measured <= self.allowed), default=0.0)
        high = min((t.target for t in self.tried if t.measured > self.allowed), default=math.inf)
        if 0 < low < high < math.inf and not low < guess < high:  # calibration may do more than follow
            guess = math.sqrt(low * high)
        self.target = guess
        return abs(measured / self.allowed - 1) <= _CLOSE

    def forget(self) -> None:
        """What was measured is of another network than what will be."""
        self.tried.clear()

    def settle(self) -> None:
        """Aim as was best: the most within the budget, else the least."""
        within = [tried for tried in self.tried if tried.measured <= (1 + _CLOSE) * self.allowed]
        best = max(within, key=_measured) if within else min(self.tried, key=_measured)
        self.target = best.target
        self.excess = 0.0 if within else best.measured / self.allowed - 1

    def warn_of_excess(self) -> None:
        """Say so if no thresholds that were tried keep within the budget."""
        if self.excess > _TOLD:
            warnings.warn(
                f"energy_budget={self.budget}: spikes cost {100 * self.excess:.0f} % more than it "
                "leaves for them, however coarse the thresholds; those of encoders cannot be saved, nor "
                "can bounded activations go beyond their bound; take another coding or a smaller "
                "max_spikes",
                stacklevel=2,
            )


class _Tried(NamedTuple):
    """Operations that were aimed at, and what they came to."""

    target: float
    measured: float


def _measured(tried: _Tried) -> float:
    return tried.measured


def spike_costs(
    gm: fx.GraphModule, x: Inputs, fans: Mapping[str, Tensor], size: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Operations per sample and channel of every neuron, if each unit of activation is a spike ``[C]``.

    Those of max-pooling are counted where its spikes come from: with what its output weighs, 1/θ times
    its size is the number of its spikes, whose derivative tells the neurons that share in it.

    Args:
        gm: a converted graph.
        x: one sample, for the shapes.
        fans: operations that a spike causes; see :class:`~sj_burst.simulation.fan_out.FanOut`.
        size: mean activations.
    """
    values = values_of(gm, x)
    costs = {name: _by_channel(fans[name] * size[name]) for name in neurons(gm)}
    pools = {
        str(node.target): node
        for node in gm.graph.nodes
        if is_module(gm, node, (LIPool, GatedPool, *MAX_POOLS)) and str(node.target) in size
    }
    thresholds = {
        name: torch.ones(len(cost), dtype=torch.float64, device=cost.device, requires_grad=True)
        for name, cost in costs.items()
    }
    emitted = {name: [torch.zeros_like(fan)] for name, fan in fans.items()}
    with torch.enable_grad():
        walk = SpikeWalk(gm, values, emitted, x.sequence, thresholds)
        walk.run()
        total = torch.zeros((), dtype=torch.float64)
        for name, node in pools.items():
            unit = getattr(walk.flow[node], "unit", None)
            if unit is not None:
                total = total + (fans[name] * size[name] / unit.clamp_min(1e-30)).sum()
    if not total.requires_grad:
        return costs
    shares = torch.autograd.grad(total, list(thresholds.values()), allow_unused=True)
    pairs = zip(costs, shares, strict=True)
    return {name: costs[name] if share is None else costs[name] - share for name, share in pairs}


def _by_channel(x: Tensor) -> Tensor:
    return x.movedim(1, 0).flatten(1).sum(1)


def _mean_fan_out(cost: Tensor, size: Tensor, channel_wise: bool) -> Tensor:
    """Operations that a spike of a channel causes on average, or one of the layer."""
    total = _by_channel(size)
    if not channel_wise:
        cost, total = cost.sum().view(1), total.sum().view(1)
    return cost / total.clamp_min(1e-30)


def _unweighted(statistics: ActivationStatistics, size: Tensor) -> "Tensor | float":
    """By how much more a leaky activation spikes than its histogram tells.

    There negative values count by how little an error of theirs matters.
    """
    if statistics.negative_slope is None:
        return 1.0
    told = (statistics.centres.double() * statistics.histogram).sum(1)
    total = _by_channel(size) if statistics.channel_wise else size.sum().view(1)
    return total * _samples(statistics, size) / told.clamp_min(1e-30)


def _samples(statistics: ActivationStatistics, size: Tensor) -> float:
    """How many images the statistics of a layer are of."""
    positions = size.numel() if not statistics.channel_wise else size.numel() / size.shape[1]
    return statistics.samples / positions
