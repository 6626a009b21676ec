"""What a neuron transmits in T steps: the transfer function that thresholds and potentials fit."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Transfer"]


@dataclass(frozen=True)
class Transfer:
    r"""Mean output of a burst neuron after T steps of constant current a.

    .. math::
        \phi(a) = \frac{\theta}{T}\,\mathrm{clip}\Big(\Big\lfloor
        \frac{aT + v_0}{\theta} \Big\rfloor, 0, \Gamma T\Big)

    Args:
        time_steps: T.
        max_spikes: Γ.
        potential: v0 as a fraction of θ.

    Example:
        >>> Transfer(time_steps=4, max_spikes=1, potential=0.5)(
        ...     torch.tensor([0.1, 0.6, 7.0]), torch.tensor(1.0)).tolist()
        [0.0, 0.5, 1.0]
    """

    time_steps: int
    max_spikes: float = 1
    potential: float = 0.0

    @property
    def levels(self) -> float:
        """How many outputs above zero there are: ΓT."""
        return self.max_spikes * self.time_steps

    def __call__(self, a: Tensor, threshold: Tensor, v_init: Tensor | None = None) -> Tensor:
        """φ(a); ``v_init`` (broadcast to ``a``) takes the place of ``potential``·θ if given."""
        v0 = threshold * self.potential if v_init is None else v_init
        count = torch.floor((a * self.time_steps + v0) / threshold)
        return count.clamp_(0, self.levels) * (threshold / self.time_steps)
