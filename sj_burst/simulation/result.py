"""What a simulation measured."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..utils.table import format_table
from .operations import Operations

__all__ = ["SimulationResult"]


@dataclass(repr=False)
class SimulationResult:
    """What :func:`simulate` measured; ``print`` it for a short table.

    Attributes:
        accuracy: ``[T]``, share of samples whose answer so far has its maximum at the target, after
            every step; ``None`` without labels of a class.
        error: ``[T]``, root of the mean squared difference between the answer so far and the
            reference, relative to the reference; ``None`` without one.
        output: ``[samples, ...]``, the answer: output averaged over the steps that a sample took (logits
            of a classifier), after the read-out, if there is one; for the samples of this process.
        spikes: for every layer of neurons ``[T]``, spikes per sample in each step (a burst of n
            counts n, a negative spike 1, one that is expected nothing).
        net_spikes: the same with negative spikes taken off; layers whose totals may rightly be negative,
            of leaky neurons or with expected spikes, are left out.
        samples: number of samples, of all processes.
        seconds: wall time of the forward passes of this process.
        operations: synaptic operations and energy per sample, of a network converted by
            ``BurstRecipe`` on inputs of one size; see :func:`sj_burst.synops`.
        exit_steps: ``[samples]``, step after which each sample left; T if it never did. Of all
            processes, in the order of a ``DistributedSampler``'s data set.

    Example:
        >>> print(SimulationResult(torch.tensor([0.5, 0.75]), None, torch.zeros(4, 2), {}, samples=4))
        SimulationResult: 4 samples, T=2, 0.00 s
        steps             1      2
        accuracy (%)  50.00  75.00
    """

    accuracy: Tensor | None
    error: Tensor | None
    output: Tensor
    spikes: dict[str, Tensor]
    samples: int = 0
    seconds: float = 0.0
    operations: Operations | None = None
    exit_steps: Tensor = field(default_factory=lambda: torch.zeros(0))
    net_spikes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def average_steps(self) -> float:
        """Mean number of steps that a sample took."""
        return self.exit_steps.double().mean().item()

    @property
    def total_spikes(self) -> Tensor:
        """``[T]``, spikes per sample over all layers, accumulated up to every step."""
        if not self.spikes:
            return torch.zeros(0)
        return torch.stack(list(self.spikes.values())).sum(0).cumsum(0)

    @property
    def churn(self) -> dict[str, float]:
        """For every layer, the share of its spikes that were taken back or took others back."""
        net = {name: (spikes.sum(), self.spikes[name].sum()) for name, spikes in self.net_spikes.items()}
        return {name: float(1 - kept / sent) if sent else 0.0 for name, (kept, sent) in net.items()}

    def __repr__(self) -> str:
        accuracy = None if self.accuracy is None else 100 * self.accuracy
        error = None if self.error is None else 100 * self.error
        spikes = self.total_spikes if self.spikes else None
        curves = {"accuracy (%)": accuracy, "error (%)": error, "spikes so far": spikes}
        known = {name: curve.tolist() for name, curve in curves.items() if curve is not None}
        steps = max(map(len, known.values()), default=0)
        lines = [f"SimulationResult: {self.samples} samples, T={steps}, {self.seconds:.2f} s"]
        if known:
            shown = [t for t in range(1, steps + 1) if t & (t - 1) == 0 or t == steps]
            rows = [["steps", *map(str, shown)]]
            for name, curve in known.items():
                style = ".2f" if "%" in name else ".1f"
                rows.append([name, *(format(curve[t - 1], style) for t in shown)])
            lines.append(format_table(rows))
        if len(self.exit_steps) and self.average_steps < steps:
            lines.append(f"average steps: {self.average_steps:.2f}")
        if sent := sum(self.spikes[name].sum().item() for name in self.net_spikes):
            kept = sum(net.sum().item() for net in self.net_spikes.values())
            share = 100 * (1 - kept / sent)
            lines.append(f"churn: {share:.1f} % of the spikes were taken back, or took others back")
        if self.operations is not None:
            lines.append(str(self.operations))
        return "\n".join(lines)
