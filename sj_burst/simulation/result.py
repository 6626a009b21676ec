"""What a simulation measured."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .operations import Operations

__all__ = ["SimulationResult"]


@dataclass
class SimulationResult:
    """What :func:`simulate` measured.

    Attributes:
        accuracy: ``[T]``, share of samples whose mean output so far has its maximum at the target,
            after every step; ``None`` without targets.
        error: ``[T]``, root of the mean squared difference between the mean output so far and the
            reference, relative to the reference; ``None`` without one.
        output: ``[samples, ...]``, output averaged over the steps that a sample took (logits of a
            classifier), for the samples of this process.
        spikes: for every layer of neurons ``[T]``, spikes per sample in each step (a burst of n
            counts n, a negative spike 1).
        samples: number of samples, of all processes.
        seconds: wall time of the forward passes of this process.
        operations: synaptic operations and energy per sample, of a network converted by
            ``BurstRecipe``; see :func:`sj_burst.synops`.
        exit_steps: ``[samples]``, step after which each sample left; T if it never did.
    """

    accuracy: Tensor | None
    error: Tensor | None
    output: Tensor
    spikes: dict[str, Tensor] = field(repr=False)
    samples: int = 0
    seconds: float = 0.0
    operations: Operations | None = field(default=None, repr=False)
    exit_steps: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)

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
