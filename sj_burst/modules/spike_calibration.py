"""Spike calibration: neurons that take back spikes they should not have sent."""

from typing import Any

import torch
from torch import Tensor

from .. import functional
from .neuron import BurstIFNode

__all__ = ["SpikeCalibratedNode"]


class SpikeCalibratedNode(BurstIFNode):
    r"""Burst neuron that takes a spike back when it has been silent for unusually long.

    A neuron keeps the mean interval τ between the steps in which it fired and the last of them. If

    .. math::
        t - t_\text{last} > \tau + A

    it was probably not meant to fire: it emits −1 (never below a total of zero), its membrane
    potential gets θ back, and the clock starts anew. Charge is conserved, so an active neuron that
    was only slow fires again.

    Args:
        threshold: as in :class:`BurstIFNode`.
        max_spikes: as in :class:`BurstIFNode`.
        v_init: as in :class:`BurstIFNode`.
        shift: as in :class:`BurstIFNode`.
        allowance: A in steps; 64 to 256 in the article, so it acts at T > A only.
        step_mode: ``"s"`` or ``"m"``.

    Raises:
        ValueError: as :class:`BurstIFNode`, or if A < 0.

    Source: Li et al., "Spike calibration: fast and accurate conversion of spiking neural network
    for object detection and segmentation", 2022.

    Example:
        >>> node = SpikeCalibratedNode(allowance=1, step_mode="m")
        >>> with torch.no_grad():
        ...     node(torch.tensor([1.0, 0.0, 0.0, 0.0]).view(4, 1, 1)).flatten().tolist()
        [1.0, 0.0, -1.0, 1.0]
    """

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        max_spikes: float = 1,
        v_init: float | Tensor = 0.0,
        shift: float | Tensor | None = None,
        allowance: int = 64,
        step_mode: str = "s",
    ) -> None:
        super().__init__(threshold, max_spikes, v_init, shift, step_mode=step_mode)
        if allowance < 0:
            raise ValueError(f"allowance must be at least 0 time steps, got {allowance}")
        self.allowance = allowance
        # Clock, first and last step with a spike, number of such steps.
        for name in ("clock", "first", "last", "fired"):
            self.register_memory(name, None)

    def materialize_states(
        self, inputs: tuple[object, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[Any, ...]:
        """Start all clocks at zero after a reset."""
        v, _ = super().materialize_states(inputs, states[:2], step_mode)
        assert isinstance(v, Tensor)
        if states[1] is not None:
            return (v, *states[1:])
        return (v, *(torch.zeros_like(v) for _ in range(5)))

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """One step on explicit state ``(v, sent, clock, first, last, fired)``."""
        v: Any
        (y,), (v, _) = super().single_step_functional_forward(inputs, (states[0], None))
        sent, clock, first, last, fired = states[1:]
        theta = functional.per_channel(self.threshold, y.dim())
        clock = clock + 1
        spiked = y > 0
        first = torch.where(spiked & (fired == 0), clock, first)
        interval = (last - first) / (fired - 1).clamp_min(1)
        sent = sent + torch.round(y / theta)
        late = ~spiked & (clock - last > interval + self.allowance) & (sent > 0)
        y = torch.where(late, -theta, y)
        v = torch.where(late, v + theta, v)
        last = torch.where(spiked | late, clock, last)
        return (y,), (v, sent - late.to(sent.dtype), clock, first, last, fired + spiked)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        """T steps on explicit state; inputs ``[T, N, ...]``."""
        outputs = []
        for z in inputs[0]:
            (y,), states = self.single_step_functional_forward((z,), states)
            outputs.append(y)
        return (torch.stack(outputs),), states
