"""Tensors of any layout as the flat rows that the fused loops take, and back.

A step ``[N, ...]`` becomes one row of neurons in memory order. A parameter becomes a flat tensor of
``count`` values with a number ``inner``: each value is shared by ``inner`` neighbouring neurons, and
the values repeat. A scalar has count 1; channels of ``[N, C, H, W]`` have inner H·W, those of a
channels-last tensor inner 1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..functional import needs_grad

__all__ = [
    "flat_parameters",
    "flat_state",
    "image_order",
    "memory_order",
    "pool_geometry",
    "restore",
]


def memory_order(x_seq: Tensor) -> tuple[Tensor, list[int]]:
    """``x_seq [T, N, ...]`` with the dimensions of a step in memory order, and that order.

    A step that has holes is copied; a time axis that was expanded stays so.
    """
    x = x_seq[0]
    order = sorted(range(x.dim()), key=lambda d: -x.stride(d))
    if not x.permute(order).is_contiguous():
        order = list(range(x.dim()))
        x_seq = x.contiguous().expand_as(x_seq) if x_seq.stride(0) == 0 else x_seq.contiguous()
    return x_seq.permute(0, *[d + 1 for d in order]), order


def flat_parameter(
    value: Tensor, shape: Sequence[int], order: list[int], dtype: torch.dtype
) -> tuple[Tensor, int]:
    """A parameter as a flat tensor and the number of neighbours that share a value of it."""
    full = value.to(dtype).expand(shape).permute(order)
    moving = [d for d in range(full.dim()) if full.shape[d] > 1 and full.stride(d) != 0]
    if not needs_grad(value):
        first, last = (moving[0], moving[-1] + 1) if moving else (0, 0)
        own = full[tuple(slice(None) if first <= d < last else slice(0, 1) for d in range(full.dim()))]
        if own.is_contiguous():
            return own.reshape(-1), math.prod(full.shape[last:]) if moving else 1
    return full.reshape(-1), 1


def flat_parameters(
    shape: Sequence[int], order: list[int], dtype: torch.dtype, *values: Tensor | None
) -> tuple[list[Tensor | None], list[int]]:
    pairs = [(None, 1) if p is None else flat_parameter(p, shape, order, dtype) for p in values]
    return [p for p, _ in pairs], [inner for _, inner in pairs]


def flat_state(value: Tensor | None, order: list[int], dtype: torch.dtype) -> Tensor | None:
    return None if value is None else value.to(dtype).permute(order).reshape(-1)


def restore(flat: Tensor, shape: Sequence[int], order: list[int]) -> Tensor:
    """Undo the flattening: ``[M]`` or ``[T, M]`` back to the order of dimensions of the module."""
    time = flat.dim() - 1
    stored = flat.view(*flat.shape[:time], *[shape[d] for d in order])
    back = [order.index(d) + time for d in range(len(order))]
    return stored.permute(*range(time), *back)


def image_order(x_seq: Tensor) -> tuple[Tensor, list[int]]:
    """Images ``[T, N, C, H, W]`` with the dimensions of a step in memory order, and that order."""
    x = x_seq[0]
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        order = [0, 2, 3, 1]
    else:
        order = [0, 1, 2, 3]
        if not x.is_contiguous():
            x_seq = x.contiguous().expand_as(x_seq) if x_seq.stride(0) == 0 else x_seq.contiguous()
    return x_seq.permute(0, *[d + 1 for d in order]), order


def pool_geometry(pool: nn.Module, images: bool) -> list[int]:
    """Kernel, stride, padding and dilation of a max-pooling, each as height and width."""

    def pair(value: int | tuple[int, ...], neutral: int) -> tuple[int, ...]:
        if isinstance(value, int):
            return (value, value) if images else (neutral, value)
        return tuple(value) if images else (neutral, *value)

    options = ((pool.kernel_size, 1), (pool.stride, 1), (pool.padding, 0), (pool.dilation, 1))
    return [n for value, neutral in options for n in pair(value, neutral)]  # type: ignore[arg-type]


