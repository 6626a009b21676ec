"""What a multi-step forward of burst neurons gives, whatever runs it."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ACCOUNTINGS", "BurstResult", "SpikeCounts", "count_events"]

# How the spikes n of a neuron in one step may travel: as |n| unit events; as popcount(|n|) events of
# weights θ, 2θ, 4θ, …; as one event that carries the number.
ACCOUNTINGS = ("unary", "binary", "graded")


def count_events(numbers: Tensor) -> Tensor:
    r"""The events of bursts ``[...]`` by each of ``ACCOUNTINGS`` ``[3, ...]``.

    .. math::
        |n|, \qquad \mathrm{popcount}(|n|) = |n| - \sum_{k \ge 1} \lfloor |n| / 2^k \rfloor, \qquad
        [n \ne 0]

    Args:
        numbers: n, of any type; parts of a spike, as averages send, are an event at least.

    Example:
        >>> count_events(torch.tensor([0.0, 5.0, -3.0])).tolist()
        [[0.0, 5.0, 3.0], [0.0, 2.0, 2.0], [0.0, 1.0, 1.0]]
    """
    sizes = numbers.abs()
    binary, half = sizes.clone(), sizes
    for _ in range(max(0, int(sizes.max().item()).bit_length() - 1) if sizes.numel() else 0):
        half = (half / 2).floor().to(sizes.dtype)
        binary -= half
    graded = (sizes != 0).to(sizes.dtype)
    return torch.stack([sizes, torch.maximum(binary, graded), graded])  # no less than one


class SpikeCounts(NamedTuple):
    """Spikes of a multi-step forward; a burst of n counts n, a negative spike 1.

    Attributes:
        per_step: ``[T]``, over all neurons.
        per_neuron: ``[3, N, ...]``, over all steps, by each of ``ACCOUNTINGS``; ``None`` if the backend
            counts steps only.
        net: ``[T]``, as ``per_step`` with negative spikes taken off; ``None`` if the backend does not
            tell, or for a leaky neuron, whose total may rightly be negative.
    """

    per_step: Tensor
    per_neuron: Tensor | None = None
    net: Tensor | None = None

    @classmethod
    def of_totals(cls, totals: Sequence[Tensor]) -> "SpikeCounts":
        """Spikes of T steps from the net counts sent before, and after each of them.

        Example:
            >>> SpikeCounts.of_totals([torch.zeros(2), torch.tensor([3.0, -1.0])]).per_step
            tensor([4.], dtype=torch.float64)
        """
        per_neuron = totals[0].new_zeros(len(ACCOUNTINGS), *totals[0].shape)
        per_step = []
        for before, after in itertools.pairwise(totals):
            events = count_events(after - before)
            per_neuron += events
            per_step.append(events[0].sum(dtype=torch.float64))
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
