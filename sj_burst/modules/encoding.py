"""Input coding: how an analog, possibly signed image becomes spikes."""

import math
from collections.abc import Callable

import torch
from spikingjelly.activation_based import encoding
from torch import Tensor

from ..backends.layout import float_dtype, state_dtype
from .temporal import TemporalModule, check_state_shape, first_step

__all__ = ["ENCODERS", "CompensatedRateEncoder", "PoissonEncoder", "RateEncoder"]


class PoissonEncoder(TemporalModule):
    r"""SpikingJelly's Poisson encoder for signed inputs.

    .. math::
        y(t) = \theta\,\mathrm{sign}(x)\,s(t), \qquad P(s(t) = 1) = |x| / \theta

    Args:
        threshold: θ, the largest |x| that is coded; larger values saturate.
        step_mode: ``"s"`` or ``"m"``.

    Raises:
        ValueError: if the threshold is no positive, finite number.

    Example:
        >>> encoder = PoissonEncoder(threshold=2.0)
        >>> encoder(torch.tensor([[-2.0, 0.0, 2.0]])).tolist()
        [[-2.0, 0.0, 2.0]]
    """

    threshold: Tensor

    def __init__(self, threshold: float | Tensor, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        self.register_buffer("threshold", _positive(threshold))
        self.encoder = encoding.PoissonEncoder()

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        """One step; stateless."""
        (x,) = inputs
        rate = (x.to(state_dtype(x.dtype)).abs() / self.threshold).clamp_(max=1.0)
        return ((self.threshold * x.sign() * self.encoder(rate)).to(x.dtype),), states


class RateEncoder(TemporalModule):
    r"""Deterministic signed rate coding by an integrate-and-fire encoder.

    .. math::
        u(t) = u(t-1) + x, \quad
        n(t) = \mathrm{clip}(\mathrm{trunc}(u(t)/\theta), -1, 1), \quad
        y(t) = \theta n(t), \quad u(t) \leftarrow u(t) - y(t)

    Args:
        threshold: θ, the largest |x| that is coded.
        step_mode: ``"s"`` or ``"m"``.

    Raises:
        ValueError: if the threshold is no positive, finite number.

    Example:
        >>> encoder = RateEncoder(threshold=1.0, step_mode="m")
        >>> encoder(torch.full((4, 1, 1), -0.5)).flatten().tolist()
        [-0.0, -1.0, -0.0, -1.0]
    """

    threshold: Tensor

    def __init__(self, threshold: float | Tensor, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        self.register_buffer("threshold", _positive(threshold))
        self.register_memory("u", None)

    def materialize_states(
        self, inputs: tuple[object, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[object, ...]:
        """Start from an empty accumulator after a reset."""
        x = first_step(inputs, step_mode)
        u = torch.zeros_like(x, dtype=state_dtype(x.dtype)) if states[0] is None else states[0]
        check_state_shape(self, u, x, "accumulator")
        return (u,)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        """One step on explicit state ``(u,)``."""
        (x,) = inputs
        y, u = _fire(x, states[0], self.threshold)
        return (y.to(x.dtype),), (u,)


class CompensatedRateEncoder(TemporalModule):
    r"""Rate coding that rounds, and delivers what the spikes still lose with the first of them.

    The accumulator starts at u(0) = sign(x)·θ/2, and the loss of the deterministic code,

    .. math::
        r = xT - \sum_{t=1}^{T} \theta n(t),

    is known at t = 1. It belongs into the membrane potential of the first layer,
    :math:`v_1(0) \mathrel{+}= W r`; as that layer is affine, the encoder adds r to y(1), which puts
    exactly W r there whatever the first layer looks like. Then Σ W y = T·W x. Derived here after the
    text of the IC-SNN article, whose Algorithm 3 is printed as a figure.

    Args:
        threshold: θ, the largest |x| that is coded by spikes; what exceeds it is in r.
        time_steps: T, which must be known in advance; later steps follow the plain rate code.
        step_mode: ``"s"`` or ``"m"``.

    Raises:
        ValueError: if the threshold is no positive, finite number, or T < 1.

    Source: after Li et al., "IC-SNN: optimal ANN2SNN conversion at low latency", 2023.

    Example:
        >>> encoder = CompensatedRateEncoder(threshold=1.0, time_steps=4, step_mode="m")
        >>> y = encoder(torch.full((4, 1, 1), 0.3))
        >>> round(y.sum().item() / 4, 6)
        0.3
    """

    threshold: Tensor

    def __init__(self, threshold: float | Tensor, time_steps: int, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        if time_steps < 1:
            raise ValueError(f"time_steps must be at least 1, got {time_steps}")
        self.register_buffer("threshold", _positive(threshold))
        self.time_steps = time_steps
        self.register_memory("u", None)

    def materialize_states(
        self, inputs: tuple[object, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[object, ...]:
        """Nothing before the first step, which tells itself by that."""
        check_state_shape(self, states[0], first_step(inputs, step_mode), "accumulator")
        return states

    def _half(self, x: Tensor) -> Tensor:
        """The accumulator at the start."""
        return x.sign().to(state_dtype(x.dtype)) * self.threshold / 2

    def _loss(self, x: Tensor) -> Tensor:
        """The remainder r for a constant input x."""
        u, rest = self._half(x), x.to(state_dtype(x.dtype)) * self.time_steps
        for _ in range(self.time_steps):
            y, u = _fire(x, u, self.threshold)
            rest = rest - y
        return rest

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        """One step on explicit state ``(u,)``; ``None`` before the first."""
        (x,), (u,) = inputs, states
        if u is None:
            y, u = _fire(x, self._half(x), self.threshold)
            return ((y + self._loss(x)).to(x.dtype),), (u,)
        y, u = _fire(x, u, self.threshold)
        return (y.to(x.dtype),), (u,)


def _fire(x: Tensor, u: object, threshold: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(u, Tensor)
    u = u + x
    y = threshold * (u / threshold).trunc().clamp_(-1, 1)
    return y, u - y


def _positive(threshold: float | Tensor) -> Tensor:
    threshold = torch.as_tensor(threshold, dtype=float_dtype(threshold)).detach().clone()
    if threshold.numel() != 1 or not 0 < threshold.item() < math.inf:
        got = f"{threshold.item():.4g}" if threshold.numel() == 1 else list(threshold.shape)
        raise ValueError(f"the encoder's threshold must be one positive, finite number, got {got}")
    return threshold.squeeze()


# coding option → encoder, from the largest |x| of the calibration set and T; "direct" needs none.
ENCODERS: dict[str, Callable[[Tensor, int], TemporalModule]] = {
    "rate": lambda threshold, time_steps: RateEncoder(threshold),
    "poisson": lambda threshold, time_steps: PoissonEncoder(threshold),
    "compensated": CompensatedRateEncoder,
}
