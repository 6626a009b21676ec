"""What a multi-step forward of burst neurons gives, whatever runs it."""

from typing import NamedTuple

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
