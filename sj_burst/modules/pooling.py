"""Max-pooling of spikes over time: lateral inhibition, gated, plain and average."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..backends import dispatch
from ..backends.layout import state_dtype
from .temporal import TemporalModule

__all__ = [
    "MAX_POOLS",
    "POOLING_RULES",
    "GatedAdaptiveMaxPool1d",
    "GatedAdaptiveMaxPool2d",
    "GatedAdaptiveMaxPool3d",
    "GatedMaxPool1d",
    "GatedMaxPool2d",
    "GatedMaxPool3d",
    "GatedPool",
    "LIAdaptiveMaxPool1d",
    "LIAdaptiveMaxPool2d",
    "LIAdaptiveMaxPool3d",
    "LIMaxPool1d",
    "LIMaxPool2d",
    "LIMaxPool3d",
    "LIPool",
    "average_pool",
    "spiking_pool",
]

_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_ADAPTIVE_MAX_POOLS = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_AVG_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_AVG_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
MAX_POOLS = _MAX_POOLS + _ADAPTIVE_MAX_POOLS


def _spatial(pool: nn.Module) -> int:
    """Number of dimensions that a pooling module pools over."""
    return int(type(pool).__name__[-2])


class LIPool(TemporalModule):
    r"""Lateral-inhibition pooling with the geometry of a given max-pooling module.

    .. math::
        \text{out}(t) = \mathrm{maxpool}\Big(\sum_{s \le t} x(s)\Big)
                      - \mathrm{maxpool}\Big(\sum_{s \le t-1} x(s)\Big)

    Σ out = maxpool(Σ x) at every T, so the pooled rate converges to the ANN's pooled activation.

    Args:
        pool: any of torch's ``MaxPool1d/2d/3d`` and ``AdaptiveMaxPool1d/2d/3d``.
        step_mode: ``"s"`` for input ``[N, C, ...]``, ``"m"`` for ``[T, N, C, ...]``.

    Raises:
        TypeError: if ``pool`` is no max-pooling module.

    Source: Li & Zeng, IJCAI 2022; closed form derived here.

    Example:
        >>> pool = LIMaxPool1d(2, step_mode="m")
        >>> pool(torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]])).flatten().tolist()
        [1.0, 1.0]
    """

    keeps_constant = True  # a constant input gives a constant output

    def __init__(self, pool: nn.Module, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        if not isinstance(pool, MAX_POOLS):
            raise TypeError(f"pool must be a max-pooling module, got {type(pool).__name__}")
        self.pool = pool
        self.register_memory("total", None)
        self.register_memory("pooled", None)

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """What ``backend`` may be; adaptive and 3d pooling have no kernels."""
        has_kernel = isinstance(self.pool, dispatch.POOLS_WITH_KERNELS)
        return dispatch.BACKENDS if has_kernel else ("torch",)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Run all steps; an input that is constant in time needs plain max-pooling only."""
        return self.pool(x_seq) if self.is_constant(x_seq) else super().multi_step_forward(x_seq)

    def materialize_states(
        self, inputs: tuple[object, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[object, ...]:
        """Start from empty totals after a reset."""
        x = inputs[0] if step_mode == "s" else inputs[0][0]  # type: ignore[index]
        assert isinstance(x, Tensor)
        total, pooled = states
        if total is None:
            total = torch.zeros_like(x, dtype=state_dtype(x.dtype))
            pooled = torch.zeros_like(self.pool(total))
        _check_state(self, total, x)
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
        >>> pool = GatedMaxPool1d(2, step_mode="m")
        >>> pool(torch.tensor([[[[2.0, 0.0]]], [[[0.0, 1.0]]]])).flatten().tolist()
        [2.0, 0.0]
    """

    keeps_constant = True  # a constant input gives a constant output

    def __init__(self, pool: nn.Module, step_mode: str = "s") -> None:
        super().__init__(step_mode)
        if not isinstance(pool, MAX_POOLS):
            raise TypeError(f"pool must be a max-pooling module, got {type(pool).__name__}")
        self.pool = pool
        self.spatial = _spatial(pool)
        self.register_memory("total", None)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Run all steps; an input that is constant in time needs plain max-pooling only."""
        return self.pool(x_seq) if self.is_constant(x_seq) else super().multi_step_forward(x_seq)

    def _pool_with_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        functional_pool = getattr(nn.functional, _FUNCTIONAL_NAMES[type(self.pool)])
        options = {name: getattr(self.pool, name) for name in self.pool.__constants__}
        return functional_pool(x, **options | {"return_indices": True})

    def materialize_states(
        self, inputs: tuple[object, ...], states: tuple[object, ...], step_mode: str
    ) -> tuple[object, ...]:
        """Start from an empty total after a reset."""
        x = inputs[0] if step_mode == "s" else inputs[0][0]  # type: ignore[index]
        assert isinstance(x, Tensor)
        total = states[0]
        if total is None:
            total = torch.zeros_like(x, dtype=state_dtype(x.dtype))
        _check_state(self, total, x)
        return (total,)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """One step on explicit state ``(total,)``."""
        (x,), (total,) = inputs, states
        out, total = functional.gated_pool_step(x, total, self._pool_with_indices, self.spatial)
        return (out,), (total,)


_FUNCTIONAL_NAMES = {
    nn.MaxPool1d: "max_pool1d",
    nn.MaxPool2d: "max_pool2d",
    nn.MaxPool3d: "max_pool3d",
    nn.AdaptiveMaxPool1d: "adaptive_max_pool1d",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.AdaptiveMaxPool3d: "adaptive_max_pool3d",
}


def _check_state(module: nn.Module, total: object, x: Tensor) -> None:
    if isinstance(total, Tensor) and total.shape != x.shape:
        raise ValueError(
            f"{type(module).__name__} holds the totals of an input of shape {tuple(total.shape)} "
            f"but got {tuple(x.shape)}; call functional.reset_net(net) between batches"
        )


def average_pool(pool: Any) -> nn.Module:
    """The average-pooling module of the same geometry; padding does not count.

    Args:
        pool: a max-pooling module.

    Raises:
        ValueError: if ``pool`` is dilated: torch has no dilated average-pooling.

    Example:
        >>> average_pool(nn.MaxPool2d(3, stride=2, padding=1))
        AvgPool2d(kernel_size=3, stride=2, padding=1)
    """
    if isinstance(pool, _ADAPTIVE_MAX_POOLS):
        return _ADAPTIVE_AVG_POOLS[_spatial(pool) - 1](pool.output_size)
    assert isinstance(pool, _MAX_POOLS)
    if torch.as_tensor(pool.dilation).ne(1).any():
        raise ValueError(
            f'max_pool="average" cannot replace {pool}: average-pooling has no dilation; '
            'use "lateral_inhibition"'
        )
    module: Any = _AVG_POOLS[_spatial(pool) - 1]
    return module(
        pool.kernel_size,
        pool.stride,
        pool.padding,
        ceil_mode=pool.ceil_mode,
        count_include_pad=False,
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


# The geometries under their usual names: arguments are those of torch's module of that name
# (MaxPool2d for LIMaxPool2d, …) plus step_mode.


class LIMaxPool1d(LIPool):
    """:class:`LIPool` with the arguments of ``torch.nn.MaxPool1d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.MaxPool1d(*args, **kwargs), step_mode)


class LIMaxPool2d(LIPool):
    """:class:`LIPool` with the arguments of ``torch.nn.MaxPool2d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.MaxPool2d(*args, **kwargs), step_mode)


class LIMaxPool3d(LIPool):
    """:class:`LIPool` with the arguments of ``torch.nn.MaxPool3d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.MaxPool3d(*args, **kwargs), step_mode)


class LIAdaptiveMaxPool1d(LIPool):
    """:class:`LIPool` with the arguments of ``torch.nn.AdaptiveMaxPool1d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.AdaptiveMaxPool1d(*args, **kwargs), step_mode)


class LIAdaptiveMaxPool2d(LIPool):
    """:class:`LIPool` with the arguments of ``torch.nn.AdaptiveMaxPool2d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.AdaptiveMaxPool2d(*args, **kwargs), step_mode)


class LIAdaptiveMaxPool3d(LIPool):
    """:class:`LIPool` with the arguments of ``torch.nn.AdaptiveMaxPool3d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.AdaptiveMaxPool3d(*args, **kwargs), step_mode)


class GatedMaxPool1d(GatedPool):
    """:class:`GatedPool` with the arguments of ``torch.nn.MaxPool1d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.MaxPool1d(*args, **kwargs), step_mode)


class GatedMaxPool2d(GatedPool):
    """:class:`GatedPool` with the arguments of ``torch.nn.MaxPool2d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.MaxPool2d(*args, **kwargs), step_mode)


class GatedMaxPool3d(GatedPool):
    """:class:`GatedPool` with the arguments of ``torch.nn.MaxPool3d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.MaxPool3d(*args, **kwargs), step_mode)


class GatedAdaptiveMaxPool1d(GatedPool):
    """:class:`GatedPool` with the arguments of ``torch.nn.AdaptiveMaxPool1d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.AdaptiveMaxPool1d(*args, **kwargs), step_mode)


class GatedAdaptiveMaxPool2d(GatedPool):
    """:class:`GatedPool` with the arguments of ``torch.nn.AdaptiveMaxPool2d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.AdaptiveMaxPool2d(*args, **kwargs), step_mode)


class GatedAdaptiveMaxPool3d(GatedPool):
    """:class:`GatedPool` with the arguments of ``torch.nn.AdaptiveMaxPool3d``."""

    def __init__(self, *args: Any, step_mode: str = "s", **kwargs: Any) -> None:
        super().__init__(nn.AdaptiveMaxPool3d(*args, **kwargs), step_mode)
