"""Max-pooling of spikes over time: lateral inhibition, gated, plain and average."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..backends import dispatch
from ..backends.layout import state_dtype
from .temporal import TemporalModule, check_state_shape, first_step

__all__ = [
    "MAX_POOLS",
    "POOLING_RULES",
    "WINDOWED_POOLS",
    "GatedPool",
    "LIPool",
    "MaxOver",
    "average_pool",
    "spiking_pool",
]


class MaxOver(nn.Module):
    r"""Largest value over some dimensions of a sample: ``amax``, max over points or frames, maxout.

    .. math::
        y = \max_{d \in \text{dims}} x

    Args:
        dims: dimensions of ``[N, ...]``, not that of the samples.
        keepdim: keep them, with one element.

    Raises:
        ValueError: for dimension 0.

    Example:
        >>> MaxOver((1,))(torch.tensor([[1.0, 3.0], [2.0, 0.0]])).tolist()
        [3.0, 2.0]
    """

    __constants__ = ("dims", "keepdim")

    def __init__(self, dims: tuple[int, ...], keepdim: bool = False) -> None:
        super().__init__()
        if not dims or min(dims) < 1:
            raise ValueError(f"dims must be dimensions of a sample, from 1 on, got {dims}")
        self.dims, self.keepdim = tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...]`` without ``dims``."""
        return x.amax(self.dims, keepdim=self.keepdim)

    def extra_repr(self) -> str:
        """Options in one line."""
        return f"dims={self.dims}, keepdim={self.keepdim}"


class _Kind(NamedTuple):
    """What goes with one of torch's max-pooling modules."""

    dimensions: int
    function: Callable[..., Any]
    average: Callable[..., nn.Module]


_KINDS: dict[type[nn.Module], _Kind] = {
    nn.MaxPool1d: _Kind(1, F.max_pool1d, nn.AvgPool1d),
    nn.MaxPool2d: _Kind(2, F.max_pool2d, nn.AvgPool2d),
    nn.MaxPool3d: _Kind(3, F.max_pool3d, nn.AvgPool3d),
    nn.AdaptiveMaxPool1d: _Kind(1, F.adaptive_max_pool1d, nn.AdaptiveAvgPool1d),
    nn.AdaptiveMaxPool2d: _Kind(2, F.adaptive_max_pool2d, nn.AdaptiveAvgPool2d),
    nn.AdaptiveMaxPool3d: _Kind(3, F.adaptive_max_pool3d, nn.AdaptiveAvgPool3d),
}
WINDOWED_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
MAX_POOLS = (*WINDOWED_POOLS, MaxOver)


def _kind_of(pool: nn.Module) -> _Kind:
    """The row for a max-pooling module, or for one that derives from it.

    Raises:
        TypeError: if it is none.
        ValueError: for a maximum over dimensions, which has no window, or pooling that returns indices.
    """
    if isinstance(pool, MaxOver):
        raise ValueError(
            'only max_pool="lateral_inhibition" and "spike" take a maximum over dimensions, or of '
            "several tensors"
        )
    for kind, row in _KINDS.items():
        if isinstance(pool, kind):
            if pool.return_indices:
                raise ValueError("max-pooling of spikes has no indices; leave out return_indices=True")
            return row
    names = [kind.__name__ for kind in MAX_POOLS]
    raise TypeError(f"pool must be one of torch's {names}, got {type(pool).__name__}")


class LIPool(TemporalModule):
    r"""Lateral-inhibition pooling with the geometry of a given max-pooling module.

    .. math::
        \text{out}(t) = \mathrm{maxpool}\Big(\sum_{s \le t} x(s)\Big)
                      - \mathrm{maxpool}\Big(\sum_{s \le t-1} x(s)\Big)

    Σ out = maxpool(Σ x) at every T, so the pooled rate converges to the ANN's pooled activation.

    Args:
        pool: any of torch's ``MaxPool1d/2d/3d`` and ``AdaptiveMaxPool1d/2d/3d``, or a
            :class:`MaxOver`.
        step_mode: ``"s"`` for input ``[N, C, ...]``, ``"m"`` for ``[T, N, C, ...]``.

    Attributes:
        expected: spikes a step that need not be sent, one number or one for each channel, as for
            :class:`~sj_burst.modules.neuron.BurstIFNode`; ``None`` for none.

    Raises:
        TypeError: if ``pool`` is no max-pooling module.

    Source: Li & Zeng, IJCAI 2022; closed form derived here.

    Example:
        >>> pool = LIPool(nn.MaxPool1d(2), step_mode="m")
        >>> pool(torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]])).flatten().tolist()
        [1.0, 1.0]
    """

    keeps_constant = True  # a constant input gives a constant output
    expected: Tensor | None

    def __init__(self, pool: nn.Module, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        if not isinstance(pool, MaxOver):
            _kind_of(pool)  # refuses any other module
        self.pool = pool
        self.register_buffer("expected", None)
        self.register_memory("total", None)
        self.register_memory("pooled", None)

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """What ``backend`` may be; adaptive and 3d pooling have no kernels."""
        has_kernel = type(self.pool) in dispatch.POOLS_WITH_KERNELS
        return dispatch.BACKENDS if has_kernel else ("torch",)

    def multi_step_forward(self, x_seq: Tensor, *more: Tensor) -> Tensor:
        """Run all steps; an input that is constant in time needs plain max-pooling only."""
        return self.pool(x_seq) if self.is_constant(x_seq) else super().multi_step_forward(x_seq)

    def materialize_states(
        self, inputs: tuple[object, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[object, ...]:
        """Start from empty totals after a reset."""
        x = first_step(inputs, step_mode)
        total, pooled = states
        if total is None:
            zero = x.new_zeros((), dtype=state_dtype(x.dtype))
            total = zero.expand_as(x)
            pooled = zero.expand(len(x), *self.pool(total[:1]).shape[1:])
        check_state_shape(self, total, x, "totals")
        return total, pooled

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """One step on explicit state ``(total, pooled)``."""
        (x,), (total, pooled) = inputs, states
        out, total, pooled = functional.li_pool_step(x, total, pooled, self.pool)
        return (out.to(x.dtype),), (total, pooled)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """T steps on explicit state ``(total, pooled)``."""
        (x_seq,), (total, pooled) = inputs, states
        out, total, pooled = dispatch.li_pool_multi_step(self.backend, x_seq, total, pooled, self.pool)
        return (out,), (total, pooled)


class GatedPool(TemporalModule):
    r"""Gated max-pooling: passes the spikes of the input with the largest total so far.

    .. math::
        \text{out}(t) = x_{i^*}(t), \quad i^* = \arg\max_i \sum_{s \le t} x_i(s)

    Args:
        pool: any of torch's ``MaxPool1d/2d/3d`` and ``AdaptiveMaxPool1d/2d/3d``.
        step_mode: ``"s"`` for input ``[N, C, ...]``, ``"m"`` for ``[T, N, C, ...]``.

    Raises:
        TypeError: if ``pool`` is no max-pooling module.

    Source: Rueckauer et al., Frontiers in Neuroscience 2017.

    Example:
        >>> pool = GatedPool(nn.MaxPool1d(2), step_mode="m")
        >>> pool(torch.tensor([[[[2.0, 0.0]]], [[[0.0, 1.0]]]])).flatten().tolist()
        [2.0, 0.0]
    """

    keeps_constant = True  # a constant input gives a constant output

    def __init__(self, pool: nn.Module, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        _kind_of(pool)  # refuses any other module
        self.pool: Any = pool
        self.register_memory("total", None)

    def multi_step_forward(self, x_seq: Tensor, *more: Tensor) -> Tensor:
        """Run all steps; an input that is constant in time needs plain max-pooling only."""
        return self.pool(x_seq) if self.is_constant(x_seq) else super().multi_step_forward(x_seq)

    def materialize_states(
        self, inputs: tuple[object, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[object, ...]:
        """Start from an empty total after a reset."""
        x = first_step(inputs, step_mode)
        total = states[0]
        if total is None:
            total = torch.zeros_like(x, dtype=state_dtype(x.dtype))
        check_state_shape(self, total, x, "totals")
        return (total,)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """One step on explicit state ``(total,)``."""
        (x,), (total,) = inputs, states
        spatial = _kind_of(self.pool).dimensions
        out, total = functional.gated_pool_step(x, total, self._pool_with_indices, spatial)
        return (out,), (total,)

    def _pool_with_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Not the module with another option: hooks on it see the maxima alone.
        options = {name: getattr(self.pool, name) for name in self.pool.__constants__}
        return _kind_of(self.pool).function(x, **options | {"return_indices": True})


def average_pool(pool: Any) -> nn.Module:
    """The average-pooling module of the same geometry; padding does not count.

    Args:
        pool: a max-pooling module.

    Raises:
        TypeError: if ``pool`` is no max-pooling module.
        ValueError: if it is dilated: torch has no dilated average-pooling.

    Example:
        >>> average_pool(nn.MaxPool2d(3, stride=2, padding=1))
        AvgPool2d(kernel_size=3, stride=2, padding=1)
    """
    average = _kind_of(pool).average
    if hasattr(pool, "output_size"):  # adaptive
        return average(pool.output_size)
    if torch.as_tensor(pool.dilation).ne(1).any():
        raise ValueError(
            f'max_pool="average" cannot replace {pool}: average-pooling has no dilation; '
            'use "lateral_inhibition"'
        )
    return average(
        pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode, count_include_pad=False
    )


def _same(pool: nn.Module) -> nn.Module:
    return pool


POOLING_RULES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "lateral_inhibition": LIPool,
    "gated": GatedPool,
    "spike": _same,
    "average": average_pool,
}


def spiking_pool(pool: nn.Module, rule: str) -> nn.Module:
    """What stands for a max-pooling module in a spiking network.

    Args:
        pool: a max-pooling module.
        rule: ``"lateral_inhibition"`` (exact in the limit), ``"gated"``, ``"spike"`` (plain maximum
            of the spikes of one step; never converges) or ``"average"``.

    Raises:
        ValueError: for an unknown rule, or one that has no such geometry.

    Example:
        >>> type(spiking_pool(nn.MaxPool2d(2), "lateral_inhibition")).__name__
        'LIPool'
    """
    if rule not in POOLING_RULES:
        raise ValueError(f"max_pool must be one of {list(POOLING_RULES)}, got {rule!r}")
    return POOLING_RULES[rule](pool)
