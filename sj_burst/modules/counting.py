"""The burst neuron that sends plain counts, as integers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..backends import dispatch
from .integers import check_no_gradient
from .neuron import BurstIFNode
from .temporal import check_state_shape, first_step

__all__ = ["LARGEST_INT8", "CountingNode"]

LARGEST_INT8 = 127


class CountingNode(BurstIFNode):
    r"""Burst neuron of threshold 1 that sends its counts in int8, and reads sums of several units.

    .. math::
        m(t) = v(t-1) + \sum_i s_i x_i(t) + \text{shift}, \quad
        n(t) = \mathrm{clip}(\lfloor m(t) \rfloor, 0, \Gamma), \quad v(t) = m(t) - n(t)

    The membrane potential is in float32 and every operation is rounded for itself, in this order: from
    equal sums come equal counts, on every machine. Made by :func:`sj_burst.export.integers.to_integers`.

    Args:
        scales: s, for every input what a unit of it weighs, in thresholds: scalars, one value per
            channel or one per neuron.
        max_spikes: Γ, from 1 to 127.
        v_init: membrane potential after a reset, in thresholds.
        shift: constant current added at every step, in thresholds; ``None`` for none.
        signed: allow negative spikes, as in :class:`BurstIFNode`.
        step_mode: ``"s"`` or ``"m"``.
        expected: as in :class:`BurstIFNode`.

    Raises:
        ValueError: as :class:`BurstIFNode`, or if Γ is above 127, or an input asks for a gradient.

    Source: :class:`BurstIFNode` in units of its threshold.

    Example:
        >>> node = CountingNode([0.5, 2.0], max_spikes=15)
        >>> node(torch.tensor([[3.0]]), torch.tensor([[1]], dtype=torch.int8))
        tensor([[3]], dtype=torch.int8)
    """

    def __init__(
        self,
        scales: Sequence[float | Tensor],
        max_spikes: float = 1,
        v_init: float | Tensor = 0.0,
        shift: float | Tensor | None = None,
        signed: bool = False,
        step_mode: str = "s",
        expected: Tensor | None = None,
    ) -> None:
        super().__init__(1.0, max_spikes, v_init, shift, signed, step_mode=step_mode, expected=expected)
        if not self.max_spikes <= LARGEST_INT8:
            raise ValueError(
                f"max_spikes={max_spikes}: counts in int8 go up to {LARGEST_INT8}; convert with fewer"
            )
        self.terms = len(scales)
        for i, scale in enumerate(scales):
            self.register_buffer(f"scale_{i}", torch.as_tensor(scale, dtype=torch.float32).clone())
        self.float()

    def materialize_states(
        self, inputs: tuple[object, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[object, ...]:
        """Expand the initial membrane potential to the shape of the input after a reset.

        Raises:
            ValueError: for another number of inputs, or if one asks for a gradient.
        """
        if len(inputs) != self.terms:
            raise ValueError(f"CountingNode has scales for {self.terms} inputs, got {len(inputs)}")
        check_no_gradient(*inputs)  # type: ignore[arg-type]
        x, (v, sent) = first_step(inputs, step_mode), states
        if v is None:
            v = functional.per_channel(self.v_init, x.dim()).expand_as(x)
        check_state_shape(self, v, x, "membrane potential")
        if self.signed and sent is None:
            sent = self.v_init.new_zeros(()).expand_as(x)
        return v, sent

    def _given(self, dim: int) -> dict[str, Any]:
        """Scales and shift, for inputs of so many dimensions."""
        scales = [getattr(self, f"scale_{i}") for i in range(self.terms)]
        shift = self.v_init.new_zeros(()) if self.shift is None else self.shift
        return {
            "scales": [functional.per_channel(scale, dim) for scale in scales],
            "max_spikes": int(self.max_spikes),
            "shift": functional.per_channel(shift, dim),
        }

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        """One step on explicit state ``(v, sent)``."""
        v, sent = states
        n, v, sent = functional.count_step(inputs, v, sent=sent, **self._given(v.dim()))
        self.spike_counts = None
        return (n,), (v, sent)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        """T steps on explicit state ``(v, sent)``; inputs ``[T, N, ...]``."""
        v, sent = states
        n_seq, v, sent, self.spike_counts = dispatch.count_multi_step(
            self.backend, inputs, v, sent=sent, count=self._backend_counts, **self._given(v.dim())
        )
        return (n_seq,), (v, sent)
