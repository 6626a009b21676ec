"""The burst neuron for LeakyReLU and PReLU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..backends.result import SpikeCounts
from .neuron import BurstIFNode

__all__ = ["LeakyBurstIFNode"]

_NEVER = 2.0**22  # a count that is never taken back whole; float32 has all integers about it


class LeakyBurstIFNode(BurstIFNode):
    r"""Burst neuron whose net count S may fall below zero, where a spike weighs less.

    .. math::
        n(t) = \mathrm{clip}(\lfloor m(t) / \theta \rfloor, -\Gamma, \Gamma), \quad
        S(t) = S(t-1) + n(t), \quad y(t) = f(S(t)) - f(S(t-1)), \quad
        f(S) = \begin{cases} \theta S & S \ge 0 \\ a \theta S & S < 0 \end{cases}

    The membrane loses θ·n, so that charge is conserved, :math:`\sum z = \theta \sum n + v(T) - v(0)`,
    and the mean output converges to LeakyReLU of the mean current with slope a below zero. It equals
    two neurons, relu(x) − a·relu(−x). For a constant current z the output after T steps is f of
    clip(⌊(zT + v(0))/θ⌋, −ΓT, ΓT), which v(0) = θ/2 rounds to the nearest on both sides. Derived here.

    The spikes come from the backend of :class:`BurstIFNode`; their weights are computed by torch.

    Args:
        threshold: as in :class:`BurstIFNode`.
        max_spikes: as in :class:`BurstIFNode`.
        v_init: as in :class:`BurstIFNode`.
        shift: as in :class:`BurstIFNode`.
        negative_slope: a, shaped as ``threshold``: a scalar or one value per channel.
        surrogate_function: as in :class:`BurstIFNode`.
        step_mode: ``"s"`` or ``"m"``.

    Raises:
        ValueError: as :class:`BurstIFNode`, or if a slope is not finite.

    Example:
        >>> node = LeakyBurstIFNode(threshold=1.0, negative_slope=0.25, max_spikes=4, step_mode="m")
        >>> with torch.no_grad():
        ...     node(torch.tensor([-2.0, -2.0, 5.0]).view(3, 1, 1)).flatten().tolist()
        [-0.5, -0.5, 1.0]
    """

    negative_slope: Tensor

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        max_spikes: float = 1,
        v_init: float | Tensor = 0.0,
        shift: float | Tensor | None = None,
        negative_slope: float | Tensor = 0.01,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        step_mode: str = "s",
    ) -> None:
        super().__init__(
            threshold, max_spikes, v_init, shift, True, surrogate_function, step_mode=step_mode
        )
        slope = torch.as_tensor(negative_slope, dtype=self.threshold.dtype).detach().clone()
        if not slope.isfinite().all():
            raise ValueError(f"negative_slope must be finite, got {slope.tolist()}")
        self.register_buffer("negative_slope", slope)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """One step on explicit state ``(v, S)``."""
        v, count = states
        (y,), (v, _) = super().single_step_functional_forward(inputs, (v, count + _NEVER))
        y_seq, count = self._weigh(y.unsqueeze(0), count)
        return (y_seq[0],), (v, count)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """T steps on explicit state ``(v, S)``; inputs ``[T, N, ...]``."""
        if self.store_v_seq:
            return self._multi_step_storing_v(inputs[0], states)
        v, count = states
        (y_seq,), (v, _) = super().multi_step_functional_forward(inputs, (v, count + _NEVER))
        y_seq, count = self._weigh(y_seq, count)
        return (y_seq,), (v, count)

    def _weigh(self, y_seq: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes θ·n ``[T, N, ...]`` by their weight on either side of zero, and S after them."""
        theta = functional.per_channel(self.threshold, y_seq.dim() - 1).to(count.dtype)
        slope = functional.per_channel(self.negative_slope, y_seq.dim() - 1).to(count.dtype)
        exact = y_seq.to(count.dtype) / theta
        numbers = exact + (exact.detach().round() - exact.detach())
        before, outputs = _transmitted(count, theta, slope), []
        for number in numbers:
            count = count + number
            after = _transmitted(count, theta, slope)
            outputs.append(after - before)
            before = after
        if self.count_spikes:
            spikes = numbers.detach().abs()
            self.spike_counts = SpikeCounts(spikes.flatten(1).sum(1, dtype=torch.float64), spikes.sum(0))
        return torch.stack(outputs).to(y_seq.dtype), count

    def extra_repr(self) -> str:
        """Options in one line."""
        slope = self.negative_slope
        shown = f"{slope.item():.4g}" if slope.numel() == 1 else f"{tuple(slope.shape)}"
        return f"{super().extra_repr()}, negative_slope={shown}"


def _transmitted(count: Tensor, theta: Tensor, slope: Tensor) -> Tensor:
    """f(S), what a neuron has sent in all."""
    return theta * torch.where(count >= 0, count, slope * count)
