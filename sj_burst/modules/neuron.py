"""The burst neuron as a SpikingJelly module."""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

from .. import functional
from ..backends import dispatch
from ..backends.events import SpikeCounts
from ..backends.layout import float_dtype, state_dtype
from .temporal import TemporalModule, TimeFold, check_state_shape, first_step, run_temporal, time_mean

__all__ = ["MOST_LEVELS", "BurstIFNode", "check_expected", "check_max_spikes", "mean_output", "neurons"]

MOST_LEVELS = 1024  # of a surrogate gradient: each takes time, and memory for all inputs


class BurstIFNode(TemporalModule):
    r"""Integrate-and-fire neuron that may emit up to Γ spikes per time step, with soft reset.

    .. math::
        m(t) = v(t-1) + z(t) + \text{shift}, \quad
        n(t) = \mathrm{clip}(\lfloor m(t) / \theta \rfloor, 0, \Gamma), \quad
        y(t) = \theta n(t), \quad v(t) = m(t) - y(t)

    It emits **weighted** spikes y = θ·n, so no scaling modules are needed around it. ``threshold``,
    ``v_init``, ``shift``, ``negative_slope`` and ``expected`` are buffers: they follow ``state_dict``
    and ``.to()``.

    With ``negative_slope`` a the neuron stands for LeakyReLU: its total S of spikes may fall below zero,
    and weighs aθ a spike there; see :func:`sj_burst.functional.burst_step`. What such a neuron sends,
    y = f(S) − f(S − n), does not tell n: the memory ``sent`` (S) does, and ``spike_counts``, which every
    backend fills for it in either step mode.

    Args:
        threshold: θ > 0, in units of the input current. A scalar, one value per channel (``[C]``,
            dimension 1 of the input), or one per neuron (the shape of one sample).
        max_spikes: Γ ≥ 1, an integer or ``math.inf``.
        v_init: membrane potential after a reset, shaped as ``threshold``.
        shift: constant current added at every step, shaped as ``threshold``; ``None`` for none.
        signed: allow negative spikes, which take back spikes sent too early: down to −Γ per step,
            and never more than were sent.
        negative_slope: a, any finite number, shaped as ``threshold``; ``None`` for a ReLU. Its spikes
            are signed, whatever ``signed`` says.
        surrogate_function: SpikingJelly surrogate for training, applied at every level θ, 2θ, …, Γθ.
        step_mode: ``"s"`` for input ``[N, ...]``, ``"m"`` for input ``[T, N, ...]``.
        store_v_seq: in multi-step mode keep the membrane potential after every step in ``v_seq``.
        backend: what runs the multi-step forward; see :func:`sj_burst.set_backend`.
        expected: r, spikes a step that need not be sent, one whole number or one for each channel:
            what they cause is a constant current of those who read them, and a neuron sends the n − r
            that differ, which is what counts as its spikes. It still *emits* θ·n, which is what arrives.
            ``None`` for none.

    Attributes:
        count_spikes: ask the backend to count spikes while it emits them.
        spike_counts: spikes of the last multi-step forward, if asked for and the backend counts;
            else ``None``.

    Raises:
        ValueError: if Γ < 1 or not an integer, a threshold is not positive and finite, a slope is not
            finite, or expected spikes are no whole numbers, or those of a leaky neuron.

    Source: Li & Zeng, IJCAI 2022; signed spikes as in Wang et al., IJCAI 2022 and Hu et al., 2023. The
    slope and expected spikes are derived here.

    Example:
        >>> node = BurstIFNode(threshold=0.5, max_spikes=4, step_mode="m")
        >>> with torch.no_grad():
        ...     node(torch.full((3, 1, 1), 0.75)).flatten().tolist()
        [0.5, 1.0, 0.5]
        >>> leaky = BurstIFNode(0.5, 4, v_init=0.25, negative_slope=0.1, step_mode="m")
        >>> with torch.no_grad():
        ...     leaky(torch.full((2, 1, 1), -1.0)).mean(0).item()
        -0.10000000149011612
    """

    threshold: Tensor
    v_init: Tensor
    shift: Tensor | None
    negative_slope: Tensor | None
    expected: Tensor | None

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        max_spikes: float = 1,
        v_init: float | Tensor = 0.0,
        shift: float | Tensor | None = None,
        signed: bool = False,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        step_mode: str = "s",
        store_v_seq: bool = False,
        backend: str = "torch",
        negative_slope: float | Tensor | None = None,
        expected: float | Tensor | None = None,
    ) -> None:
        super().__init__(step_mode)
        self.backend = backend
        self.count_spikes = False
        self.spike_counts: SpikeCounts | None = None
        self.max_spikes = check_max_spikes(max_spikes)
        self.signed = signed or negative_slope is not None
        self.surrogate_function = surrogate_function or surrogate.Sigmoid()
        self.store_v_seq = store_v_seq
        self.v_seq: Tensor | None = None
        threshold = torch.as_tensor(threshold, dtype=float_dtype(threshold)).detach().clone()
        if not (threshold > 0).all() or not threshold.isfinite().all():
            raise ValueError(
                f"threshold must be positive and finite, got values in "
                f"[{threshold.min():.4g}, {threshold.max():.4g}]; a channel that never fires needs "
                "some positive threshold too"
            )
        self.register_buffer("threshold", threshold)
        buffers = {"v_init": v_init, "shift": shift, "negative_slope": negative_slope}
        buffers["expected"] = expected
        for name, value in buffers.items():
            if value is not None:
                value = torch.as_tensor(value, dtype=threshold.dtype).detach().clone()
            self.register_buffer(name, value)
        if self.negative_slope is not None and not self.negative_slope.isfinite().all():
            raise ValueError(
                f"negative_slope must be finite, got {negative_slope}; check the network's weights"
            )
        if self.expected is not None:
            check_expected(self.expected, self.negative_slope)
        self.register_memory("v", None)
        self.register_memory("sent", None)

    @property
    def _backend_counts(self) -> bool:
        """Whether the backend is to count spikes, which knows nothing of expected ones."""
        return self.count_spikes and self.expected is None

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """What ``backend`` may be."""
        return dispatch.BACKENDS

    def materialize_states(
        self, inputs: tuple[object, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[object, ...]:
        """Expand the initial membrane potential to the shape of the input after a reset."""
        x = first_step(inputs, step_mode)
        v, sent = states
        if v is None:
            _check_fits(self, x)
            v = functional.per_channel(self.v_init, x.dim()).to(state_dtype(x.dtype))
            v = v.expand_as(x)
        check_state_shape(self, v, x, "membrane potential")
        if self.signed and sent is None:
            sent = x.new_zeros((), dtype=state_dtype(x.dtype)).expand_as(x)
        return v, sent

    def _parameters_for(self, z: Tensor, v: Tensor, dim: int) -> dict[str, Any]:
        given = (self.threshold, self.shift, self.negative_slope)
        threshold, shift, slope = (
            None if value is None else _at_most(functional.per_channel(value, dim), v.dtype)
            for value in given
        )
        assert threshold is not None
        surrogate_function = None
        if functional.needs_grad(z, v, threshold, shift, slope):
            if self.max_spikes > MOST_LEVELS:
                raise ValueError(
                    f"max_spikes={self.max_spikes} has no surrogate gradient (one term per level, up to "
                    f"{MOST_LEVELS}); run the network under torch.no_grad(), or give max_spikes less"
                )
            surrogate_function = self.surrogate_function
        return {
            "threshold": threshold,
            "max_spikes": self.max_spikes,
            "shift": shift,
            "negative_slope": slope,
            "surrogate": surrogate_function,
        }

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        """One step on explicit state ``(v, sent)``."""
        (z,), (v, sent) = inputs, states
        assert isinstance(v, Tensor) and (sent is None or isinstance(sent, Tensor))
        parameters = self._parameters_for(z, v, z.dim())
        y, v, after = functional.burst_step(z, v, sent=sent, **parameters)
        self.spike_counts = None
        if self.count_spikes and self.negative_slope is not None:
            assert sent is not None and after is not None
            self.spike_counts = SpikeCounts.of_totals([sent.detach(), after.detach()])
        return (y.to(z.dtype),), (v, after)  # the state may be more precise

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[object, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        """T steps on explicit state ``(v, sent)``; inputs ``[T, N, ...]``."""
        (z_seq,), (v, sent) = inputs, states
        if self.store_v_seq:
            return self._multi_step_storing_v(z_seq, states)
        assert isinstance(v, Tensor) and (sent is None or isinstance(sent, Tensor))
        parameters = self._parameters_for(z_seq, v, z_seq.dim() - 1)
        y_seq, v, sent, self.spike_counts = dispatch.burst_multi_step(
            self.backend, z_seq, v, sent=sent, count=self._backend_counts, **parameters
        )
        return (y_seq,), (v, sent)

    def _multi_step_storing_v(
        self, z_seq: Tensor, states: tuple[object, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        y_seq, v_seq, totals = [], [], [states[1]]
        for z in z_seq:
            (y,), states = self.single_step_functional_forward((z,), states)
            y_seq.append(y)
            v_seq.append(states[0])
            totals.append(states[1])
        self.v_seq = torch.stack(v_seq)  # type: ignore[arg-type]
        if self.spike_counts is not None:  # those of the last step
            self.spike_counts = SpikeCounts.of_totals(totals)  # type: ignore[arg-type]
        return (torch.stack(y_seq),), states

    def _apply(self, fn: Any, **options: Any) -> "BurstIFNode":
        """Move or cast; a threshold that another precision has no number for stays positive."""
        before = self.threshold.dtype
        super()._apply(fn, **options)
        if self.threshold.dtype != before:
            self.threshold = self.threshold.clamp_min(torch.finfo(self.threshold.dtype).tiny)
        return self

    def reset(self) -> None:
        """Forget the state: the next forward starts from ``v_init``, for any input shape."""
        super().reset()
        self.v_seq = None

    def extra_repr(self) -> str:
        """Options in one line."""
        slope = self.negative_slope
        kind = f"signed={self.signed}" if slope is None else f"negative_slope={_summary(slope)}"
        return (
            f"threshold={_summary(self.threshold)}, max_spikes={self.max_spikes}, "
            f"v_init={_summary(self.v_init)}, {kind}, step_mode={self.step_mode}"
            + ("" if self.expected is None else f", expected={_summary(self.expected)}")
        )


def _at_most(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In the precision of the state if its own is higher."""
    return value.to(dtype) if torch.promote_types(value.dtype, dtype) != dtype else value


@torch.no_grad()
def mean_output(neuron: BurstIFNode, z: Tensor, fold: TimeFold) -> Tensor:
    """Mean over all steps of what a neuron sends from a fresh state ``[N, ...]``.

    Args:
        neuron: of any kind; its state is left as it was.
        z: input current ``[T·N, ...]``, or ``[N, ...]`` if it is the same at every step.
        fold: T and N.

    Example:
        >>> mean_output(BurstIFNode(0.5, 4), torch.full((1, 1), 0.75), TimeFold(steps=2, batch=1))
        tensor([[0.7500]])
    """
    if type(neuron) is not BurstIFNode:  # it may do more at each step
        return time_mean(run_temporal(neuron, z, fold), fold)
    constant = len(z) == fold.batch
    z_seq = z.expand(fold.steps, *z.shape) if constant else z.unflatten(0, fold)
    v, sent = neuron.materialize_states((z_seq,), (None, None), "m")
    parameters = neuron._parameters_for(z_seq, v, z_seq.dim() - 1)  # type: ignore[arg-type]
    del parameters["surrogate"]
    return dispatch.burst_mean(neuron.backend, z_seq, v, sent=sent, **parameters)  # type: ignore[arg-type]


_WHAT = {  # buffers, and what they are called
    "threshold": "thresholds",
    "v_init": "initial potentials",
    "shift": "shifts",
    "negative_slope": "slopes",
    "expected": "expected spikes",
}


def _check_fits(node: BurstIFNode, x: Tensor) -> None:
    """Raise unless the input is a current that the parameters of the node are for."""
    if not x.is_floating_point():
        raise TypeError(f"BurstIFNode wants currents in floating point, got {x.dtype}; use x.float()")
    for name, what in _WHAT.items():
        value = getattr(node, name)
        if value is None:
            continue
        if value.dim() == 1 and x.dim() > 1 and len(value) not in (1, x.shape[1]):
            raise ValueError(
                f"BurstIFNode has {what} for {len(value)} channels (dimension 1) and got an input "
                f"{list(x.shape)}; for sequences [N, L, C] of any length convert with "
                "channel_wise=False and another potential than 'data'"
            )
        sizes = functional.per_channel(value, x.dim()).shape
        met = x.shape[max(0, x.dim() - len(sizes)) :]
        if len(sizes) > len(met) or any(a not in (1, b) for a, b in zip(sizes, met, strict=True)):
            raise ValueError(
                f"BurstIFNode has {what} of shape {list(value.shape)} and got an input {list(x.shape)}"
            )


def check_expected(expected: Tensor, negative_slope: Tensor | None = None) -> None:
    """Raise unless they are numbers of spikes that neurons may be expected to send."""
    if negative_slope is not None:
        raise ValueError(
            "expected is for neurons that are never below zero; leave it out with a negative_slope"
        )
    if expected.dim() > 1:
        raise ValueError(
            f"expected must be one number, or one for each channel, got {list(expected.shape)}"
        )
    if not ((expected >= 0) & (expected <= LARGEST_COUNT) & (expected == expected.round())).all():
        raise ValueError(
            f"expected must be whole numbers from 0 to {LARGEST_COUNT}, got {expected.tolist()}"
        )


LARGEST_COUNT = 2**24  # float32, in which spikes are counted, has all integers up to it


def check_max_spikes(max_spikes: float) -> float:
    """Return Γ as an int (or infinity), or say what is wrong with it."""
    if isinstance(max_spikes, bool) or not isinstance(max_spikes, int | float | Integral):
        raise TypeError(
            f"max_spikes must be an integer ≥ 1 or math.inf, got {type(max_spikes).__name__}"
        )
    if LARGEST_COUNT < max_spikes < math.inf:
        got = str(max_spikes)[:20]
        raise ValueError(f"max_spikes must be at most {LARGEST_COUNT}, or math.inf, got {got}")
    if not max_spikes >= 1 or (math.isfinite(max_spikes) and max_spikes != int(max_spikes)):
        raise ValueError(
            f"max_spikes must be an integer ≥ 1 or math.inf, got {max_spikes}; 1 is the ordinary "
            "integrate-and-fire neuron"
        )
    return max_spikes if math.isinf(max_spikes) else int(max_spikes)


def _summary(value: Tensor) -> str:
    if value.numel() == 1:
        return f"{value.item():.4g}"
    return f"{tuple(value.shape)} in [{value.min():.4g}, {value.max():.4g}]"


def neurons(net: nn.Module) -> dict[str, BurstIFNode]:
    """Burst neurons of a network by name, in definition order."""
    return {name: m for name, m in net.named_modules() if isinstance(m, BurstIFNode)}
