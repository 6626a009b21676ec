"""What one layer lost, split by its causes."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..functional import per_channel
from ..modules.neuron import BurstIFNode
from ..utils import distributed
from .inactivated import fires_inactivated
from .layers import LayerMeans

__all__ = ["PARTS", "LayerReport", "LayerTotals", "split_error"]


PARTS = ("propagated", "clipping", "residual", "pooling", "inactivated")


@dataclass(frozen=True)
class LayerReport:
    r"""One neuron or max-pooling layer; measured values are ``None`` in a report without data.

    Attributes:
        name: as in the network.
        kind: class of the module.
        threshold: least, mean and largest θ over channels; ``None`` for pooling.
        max_spikes: Γ.
        potential: mean of v(0)/θ.
        rate: spikes per neuron and step (a burst of n counts n, a negative spike 1, an expected one 0).
        churn: share of the spikes that were taken back, or took others back; ``None`` for leaky neurons
            and where spikes are expected.
        channels: number of channels.
        silent: channels that are active in the ANN, and whose output was always zero.
        dead: channels that are never active in the ANN.
        clipped: share of active ANN neurons (a > 0) with a > Γθ.
        inactivated: share of inactive ANN neurons (a = 0) with a positive output (SIN).
        error: :math:`\sum e^2 / \sum a^2` of e = φ(T) − a.
        parts: what each of ``PARTS`` contributes to ``error``; they add up to it.
        levels: what the quantised ANN contributes to ``error``; a neuron has ΓT levels only.
        unevenness: the rest of it: currents vary from step to step.
    """

    name: str
    kind: str
    threshold: tuple[float, float, float] | None = None
    max_spikes: float | None = None
    potential: float | None = None
    rate: float | None = None
    churn: float | None = None
    channels: int | None = None
    silent: int | None = None
    dead: int | None = None
    clipped: float | None = None
    inactivated: float | None = None
    error: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    levels: float | None = None
    unevenness: float | None = None


def split_error(means: LayerMeans, node: BurstIFNode | None, time_steps: int) -> dict[str, Tensor]:
    """Parts of the error of each neuron, ``[N, ...]``; they sum to φ − a. See :func:`report`."""
    arriving, zero = means.module(means.current), torch.zeros_like(means.rate)
    if node is None:
        parts = {"propagated": arriving - means.activation, "pooling": means.rate - arriving}
        return {part: parts.get(part, zero) for part in PARTS}
    dim = means.rate.dim()
    theta, v_init = per_channel(node.threshold, dim), per_channel(node.v_init, dim)
    current = means.current
    if node.shift is not None:
        current = current + per_channel(node.shift, dim)
        arriving = means.module(current)
    within = arriving.clamp(max=theta * node.max_spikes)
    if node.negative_slope is not None:
        within = means.module(current.clamp(-theta * node.max_spikes, theta * node.max_spikes))
    quiet = (current <= 0) & (current * time_steps + v_init < theta)
    quiet = quiet & (node.negative_slope is None)
    parts = {
        "propagated": arriving - means.activation,
        "clipping": within - arriving,
        "residual": torch.where(quiet, zero, means.rate - within),
        "inactivated": torch.where(quiet, means.rate - within, zero),
    }
    return {part: parts.get(part, zero) for part in PARTS}


class LayerTotals:
    """Sums over the batches of one layer.

    Args:
        node: its neurons; ``None`` for max-pooling.
        time_steps: T.
    """

    def __init__(self, node: BurstIFNode | None, time_steps: int) -> None:
        self.node, self.time_steps = node, time_steps
        self.sums: dict[str, float] = {}
        self.active: Any = False  # in the ANN, by channel
        self.fired: Any = False  # in the SNN, and not taken back

    def add(self, means: LayerMeans) -> None:
        """Take in one batch."""
        a, rate, node = means.activation, means.rate, self.node
        parts = split_error(means, node, self.time_steps)
        error = (rate - a).double()
        values = {part: (error * value).sum() for part, value in parts.items()}
        values |= {"error": error.square().sum(), "reference": a.double().square().sum()}
        values |= {
            "output": rate.double().square().sum(),
            "levels": (error * (means.quantised - a)).sum(),
        }
        if node is not None:
            theta = per_channel(node.threshold, rate.dim())
            values["neurons"] = torch.tensor(rate.numel())
            values["active"], values["inactive"] = (a > 0).sum(), (a <= 0).sum()
            values["clipped"] = (a > theta * node.max_spikes).sum()
            values["wrong"] = fires_inactivated(means, node, self.time_steps).sum()
            self.active = self.active | _any_in_channel(a != 0)
            self.fired = self.fired | _any_in_channel(rate != 0)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()

    def share(self) -> None:
        """Add up the sums of all processes."""
        values = distributed.total(torch.tensor(list(self.sums.values()), dtype=torch.float64))
        self.sums = dict(zip(self.sums, values.tolist(), strict=True))
        if isinstance(self.active, Tensor):
            self.active = distributed.total(self.active.long()) > 0
            self.fired = distributed.total(self.fired.long()) > 0

    def result(self, events: Tensor | None, net: float | None) -> dict[str, Any]:
        """The measured fields of a :class:`LayerReport`.

        Args:
            events: of neurons ``[3, ...]``, as :class:`~sj_burst.simulation.spikes.SpikeCounter` counts.
            net: spikes of neurons, with negative ones taken off.
        """
        s = self.sums
        # A layer that the ANN leaves silent has no scale of its own.
        scale = s["reference"] or s["output"] or 1.0
        found: dict[str, Any] = {
            "error": s["error"] / scale,
            "parts": {part: s[part] / scale for part in PARTS},
            "levels": s["levels"] / scale,
            "unevenness": (s["error"] - s["levels"]) / scale,
        }
        if self.node is not None and events is not None:
            sent = events[0].sum().item()
            found |= {
                "rate": sent / (s["neurons"] * self.time_steps),
                "churn": None if net is None else 1 - net / sent if sent else 0.0,
                "channels": len(self.active),
                "silent": int((self.active & ~self.fired).sum()),
                "dead": int((~self.active).sum()),
                "clipped": s["clipped"] / max(s["active"], 1),
                "inactivated": s["wrong"] / max(s["inactive"], 1),
            }
        return found


def _any_in_channel(mask: Tensor) -> Tensor:
    return mask.movedim(1, 0).flatten(1).any(1) if mask.dim() > 1 else mask.any().view(1)
