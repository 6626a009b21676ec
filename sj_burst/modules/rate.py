"""The rate neuron: what a burst neuron transmits in T steps, as one function that can be trained."""

import torch
from torch import Tensor, nn

from .. import functional
from .neuron import BurstIFNode

__all__ = ["RateNeuron"]


class RateNeuron(nn.Module):
    r"""Mean output over T steps of a burst neuron whose current does not change.

    .. math::
        \phi(z) = \frac{\theta}{T}\,\mathrm{clip}\Big(\Big\lfloor
        \frac{(z + \text{shift})\,T + v_0}{\theta} \Big\rfloor, 0, \Gamma T\Big), \qquad
        \theta = \theta_0 e^s, \quad \text{shift} = \text{shift}_0 + \theta_0 d

    One forward pass, whatever T. The gradient passes the floor as if it were not there (straight
    through). ``log_scale`` (s) and ``offset`` (d) are parameters; v₀ keeps its ratio to θ. For a leaky
    neuron the count goes down to −ΓT, and weighs the slope below zero.

    Args:
        neuron: a burst neuron, which is copied from.
        time_steps: T.

    Attributes:
        keep_count: ask for ``count``.
        count: spikes of all T steps in the last forward ``[N, ...]``, with their gradient.

    Source: the clip-floor function of Bu et al., ICLR 2022; straight-through gradients as in Bengio et
    al., 2013.

    Example:
        >>> rate = RateNeuron(BurstIFNode(threshold=0.5, max_spikes=2, v_init=0.25), time_steps=2)
        >>> z = torch.tensor([[-1.0, 0.4, 0.6, 9.0]], requires_grad=True)
        >>> rate(z).tolist()
        [[0.0, 0.5, 0.5, 1.0]]
        >>> rate(z).sum().backward()
        >>> z.grad.tolist()
        [[0.0, 1.0, 1.0, 0.0]]
    """

    threshold: Tensor
    potential: Tensor
    start: Tensor
    negative_slope: Tensor | None

    def __init__(self, neuron: BurstIFNode, time_steps: int) -> None:
        super().__init__()
        self.time_steps, self.max_spikes = time_steps, neuron.max_spikes
        threshold = neuron.threshold.detach()
        shift = torch.zeros_like(threshold) if neuron.shift is None else neuron.shift.detach()
        self.register_buffer("threshold", threshold.clone())
        self.register_buffer("potential", neuron.v_init.detach() / threshold)
        self.register_buffer("start", shift.clone())
        self.register_buffer("negative_slope", neuron.negative_slope)
        self.keep_count = False
        self.count: Tensor | None = None
        self.log_scale = nn.Parameter(torch.zeros_like(threshold))
        self.offset = nn.Parameter(torch.zeros_like(threshold))

    @property
    def shift(self) -> Tensor:
        """The constant current."""
        return self.start + self.threshold * self.offset

    def forward(self, z: Tensor) -> Tensor:
        """``[N, ...]`` to ``[N, ...]``, in units of the activation."""
        steps = self.time_steps
        most = min(self.max_spikes * steps, torch.finfo(z.dtype).max)
        theta = functional.per_channel(self.threshold * self.log_scale.exp(), z.dim())
        potential = functional.per_channel(self.potential, z.dim())
        u = (z + functional.per_channel(self.shift, z.dim())) * steps / theta + potential
        # Clipped before the floor: newer torch has no gradient at the ends, where floors would pile up.
        u = u.clamp(0.0 if self.negative_slope is None else -most, most)
        count = u + (u.floor() - u).detach()
        self.count = count if self.keep_count else None
        if self.negative_slope is not None:
            slope = functional.per_channel(self.negative_slope, z.dim())
            count = torch.where(count < 0, slope * count, count)
        return theta / steps * count

    @torch.no_grad()
    def write_to(self, neuron: BurstIFNode) -> None:
        """Give a burst neuron these thresholds, potentials and shifts."""
        threshold = self.threshold * self.log_scale.exp()
        neuron.threshold = threshold.detach().clone()
        neuron.v_init = (self.potential * threshold).detach().clone()
        if neuron.shift is not None or bool(self.shift.any()):
            neuron.shift = self.shift.clone()
