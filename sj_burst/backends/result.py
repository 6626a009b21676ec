"""What a multi-step forward of burst neurons gives, whatever runs it."""

from typing import NamedTuple

from torch import Tensor

from .events import SpikeCounts

__all__ = ["BurstResult"]


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
