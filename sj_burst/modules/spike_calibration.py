"""Spike calibration: neurons that take back spikes they should not have sent."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import functional
from .neuron import BurstIFNode

__all__ = ["SpikeCalibratedNode"]


class _Record(NamedTuple):
    """What a neuron remembers of its spikes; ``clock`` is 0 in the first step."""

    sent: Tensor  # spikes sent and not taken back
    clock: Tensor  # t of the step to come
    last: Tensor  # t of the last step with spikes
    fired: Tensor  # number of steps with spikes


class SpikeCalibratedNode(BurstIFNode):
    r"""Burst neuron that takes its spikes back once it has been silent for unusually long.

    A step with spikes, however many, updates the mean interval τ between such steps; the first
    interval begins at t = 0, the first step. After a silence longer than τ + A the neuron was probably
    not meant to fire, and emits −θ at every step until nothing is left of its total S, or it fires anew:

    .. math::
        n \leftarrow n + 1, \quad
        \tau \leftarrow \frac{(t - t_\text{last}) + \tau (n - 1)}{n}, \quad
        t_\text{last} \leftarrow t
        \qquad \text{if } y(t) > 0

    .. math::
        y(t) = -\theta, \quad S \leftarrow S - 1
        \qquad \text{if } t - t_\text{last} > \tau + A \text{ and } S > 0

    The membrane potential gets nothing back, so charge is **not** conserved: what is taken back is lost.
    Nothing can happen before step A + 2; up to step A + 1 this is :class:`BurstIFNode`.

    That is the published rule, except that S stops at zero, and that A = 0 means no allowance: in the
    authors' code S falls further, so that a long silence swallows as many later spikes, and A = 0
    switches the calibration off.

    Args:
        threshold: as in :class:`BurstIFNode`.
        max_spikes: as in :class:`BurstIFNode`.
        v_init: as in :class:`BurstIFNode`.
        shift: as in :class:`BurstIFNode`.
        allowance: A in steps; 64, 128 or 256 in the article.
        step_mode: ``"s"`` or ``"m"``.

    Raises:
        ValueError: as :class:`BurstIFNode`, or if A < 0.

    Source: Li et al., "Spike calibration: fast and accurate conversion of spiking neural network
    for object detection and segmentation", 2022; the rule is that of the authors' code.

    Example:
        >>> node = SpikeCalibratedNode(max_spikes=5, allowance=1, step_mode="m")
        >>> with torch.no_grad():
        ...     node(torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0]).view(5, 1, 1)).flatten().tolist()
        [2.0, 0.0, -1.0, -1.0, 0.0]
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
        for name in ("clock", "last", "fired"):  # beside v and sent
            self.register_memory(name, None)

    def materialize_states(
        self, inputs: tuple[object, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[Any, ...]:
        """Start the record of spikes at zero after a reset."""
        v, sent = super().materialize_states(inputs, states[:2], step_mode)
        if sent is not None:
            return (v, *states[1:])
        assert isinstance(v, Tensor)
        return (v, *(torch.zeros_like(v) for _ in _Record._fields))

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """One step on explicit state ``(v, sent, clock, last, fired)``."""
        (y,), (v, _) = super().single_step_functional_forward(inputs, (states[0], None))
        y, record = self._calibrate(y, _Record(*states[1:]))
        return (y,), (v, *record)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """T steps on explicit state ``(v, sent, clock, last, fired)``; inputs ``[T, N, ...]``."""
        if self.store_v_seq:
            return self._multi_step_storing_v(inputs[0], states)
        # The membrane does not see what is taken back: all of its steps run first, on the backend.
        (y_seq,), (v, _) = super().multi_step_functional_forward(inputs, (states[0], None))
        self.spike_counts = None  # of the spikes before calibration
        record = _Record(*states[1:])
        outputs = []
        for y in y_seq:
            y, record = self._calibrate(y, record)
            outputs.append(y)
        return (torch.stack(outputs),), (v, *record)

    def _calibrate(self, y: Tensor, record: _Record) -> tuple[Tensor, _Record]:
        """What is emitted in a step in which the burst neuron emits ``y``."""
        sent, clock, last, fired = record
        theta = functional.per_channel(self.threshold, y.dim())
        spiked = y > 0
        sent = sent + torch.round(y.detach() / theta)
        last = torch.where(spiked, clock, last)
        fired = fired + spiked
        interval = last / fired.clamp_min(1)  # τ: all intervals together last until the last spike
        late = (clock - last > interval + self.allowance) & (sent > 0)
        y = torch.where(late, -theta.to(y.dtype), y)
        return y, _Record(sent - late.to(sent.dtype), clock + 1, last, fired)
