"""What a multi-step forward of burst neurons gives, whatever runs it."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BurstResult", "SpikeCounts"]


class SpikeCounts(NamedTuple):
    """Spikes of a multi-step forward; a burst of n counts n, a negative spike 1.

    Attributes:
        per_step: ``[T]``, over all neurons.
        per_neuron: ``[N, ...]``, over all steps; ``None`` if the backend counts steps only.
    """

    per_step: Tensor
    per_neuron: Tensor | None = None

    @classmethod
    def of_totals(cls, totals: Sequence[Tensor]) -> "SpikeCounts":
        """Spikes of T steps from the net counts sent before, and after each of them.

        Example:
            >>> SpikeCounts.of_totals([torch.zeros(2), torch.tensor([3.0, -1.0])]).per_step
            tensor([4.], dtype=torch.float64)
        """
        per_neuron, per_step = torch.zeros_like(totals[0]), []
        for before, after in itertools.pairwise(totals):
            spikes = (after - before).abs()
            per_neuron = per_neuron + spikes
            per_step.append(spikes.sum(dtype=torch.float64))
        return cls(torch.stack(per_step), per_neuron)


class BurstResult(NamedTuple):
    """Outputs of T steps, the state after them, and the spikes if they were counted.

    Attributes:
        y_seq: weighted outputs ``[T, N, ...]``.
        v: membrane potential ``[N, ...]``.
        sent: spike count so far ``[N, ...]``; ``None`` for unsigned spikes.
        counts: ``None`` if not asked for, or if the backend could not count.
    """

    y_seq: Tensor
    v: Tensor
    sent: Tensor | None
    counts: SpikeCounts | None = None
