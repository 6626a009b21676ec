"""What one spike of every neuron costs, and what the layers cost that no spike reaches."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..graph.trace import is_module
from ..utils.inputs import Inputs
from .operations import AC_PICOJOULES, MAC_PICOJOULES
from .spikes import POOLS, SOURCES
from .values import graph_of, values_of
from .walk import SpikeWalk, pool_units, readout_costs

__all__ = ["FanOut", "fan_out"]


class FanOut(NamedTuple):
    """What the spikes of a converted network cost; see :func:`sj_burst.synops` for the conventions.

    Attributes:
        spikes: accumulations that one spike causes ``[1, ...]``, of every layer that emits some.
        macs: multiply-accumulates per sample on values that are no spikes, once.
        varying_macs: the same at every step.
        ann_macs: multiply-accumulates per sample of the ANN.
        pool_units: what a spike of each pooling layer weighs; see
            :func:`~sj_burst.simulation.walk.pool_units`.
    """

    spikes: dict[str, Tensor]
    macs: float
    varying_macs: float
    ann_macs: float
    pool_units: dict[str, Tensor]

    def share(self, time_steps: int) -> float:
        """What no spike reaches costs in T steps, as a share of the ANN's energy."""
        return (self.macs + self.varying_macs * time_steps) / self.ann_macs

    def spikes_within(self, budget: float, time_steps: int) -> float:
        """Accumulations per sample that a budget of energy leaves for spikes.

        Args:
            budget: a share of the ANN's energy.
            time_steps: T.

        Raises:
            ValueError: if what no spike reaches costs more.
        """
        share = self.share(time_steps)
        if budget <= share:
            raise ValueError(
                f"energy_budget={budget}: the layers that no spike reaches cost {share:.3f} of the "
                f"ANN's energy in {time_steps} steps; allow more"
            )
        return (budget - share) * self.ann_macs * MAC_PICOJOULES / AC_PICOJOULES


def fan_out(snn: nn.Module, x: Inputs) -> FanOut:
    """Count the operations of a single spike, everywhere at once.

    Operations are linear in the spikes, so the gradient is the fan-out.

    Args:
        snn: a converted network, or its graph; its state is reset.
        x: of one sample, for the shapes; a sequence if the input will change from step to step.

    Example:
        >>> import sj_burst
        >>> ann = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> snn = sj_burst.convert(ann, [torch.rand(8, 3)], progress=False)
        >>> found = fan_out(snn, Inputs(torch.rand(1, 3)))
        >>> found.spikes["1"].tolist(), found.macs, found.ann_macs
        ([[2.0, 2.0, 2.0, 2.0]], 12.0, 20.0)
    """
    gm = graph_of(snn)
    values = values_of(snn, x)
    emitted = {
        str(node.target): torch.ones_like(values[node], dtype=torch.float64, requires_grad=True)
        for node in gm.graph.nodes
        if is_module(gm, node, (*SOURCES, *POOLS))
    }
    with torch.enable_grad():
        each = {name: [events] for name, events in emitted.items()}
        costs = list(SpikeWalk(gm, values, each, x.sequence).run().values())
        total = sum((torch.as_tensor(cost.synops).sum() for cost in costs), torch.zeros(()))
    costs += readout_costs(snn, values).values()
    return FanOut(
        _gradients(total, emitted),
        sum(cost.constant_macs for cost in costs),
        sum(cost.varying_macs for cost in costs),
        sum(cost.ann_macs for cost in costs),
        pool_units(gm, values),
    )


def _gradients(total: Tensor, emitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    leaves: Any = list(emitted.values())
    if not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in emitted.items()}
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(emitted.items(), found, strict=True)
    }
