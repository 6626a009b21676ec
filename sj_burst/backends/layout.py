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
    "by_stride",
    "check_pool_input",
    "flat_parameters",
    "flat_state",
    "float_dtype",
    "image_order",
    "memory_order",
    "pool_dim",
    "pool_geometry",
    "restore",
    "samples_first",
    "state_dtype",
]


def _reorder(x_seq: Tensor, order: list[int]) -> tuple[Tensor, list[int]]:
    """``x_seq [T, ...]`` with the dimensions of a step in ``order``, where that is memory order.

    A step that has holes is copied, and keeps its order; a time axis that was expanded stays so.
    """
    x = x_seq[0]
    if not x.permute(order).is_contiguous():
        order = list(range(x.dim()))
        x_seq = x.contiguous().expand_as(x_seq) if x_seq.stride(0) == 0 else x_seq.contiguous()
    return x_seq.permute(0, *[d + 1 for d in order]), order


def memory_order(x_seq: Tensor) -> tuple[Tensor, list[int]]:
    """A sequence with the dimensions of a step in memory order, and that order.

    Example:
        >>> x = torch.empty(2, 3, 4, 4).to(memory_format=torch.channels_last)
        >>> memory_order(x.expand(5, 2, 3, 4, 4))[1]
        [0, 2, 3, 1]
    """
    return _reorder(x_seq, by_stride(x_seq.stride()[1:]))


def by_stride(strides: Sequence[int]) -> list[int]:
    """Dimensions by falling stride, as they lie in memory.

    By hand: torch.compile sorts no numbers that may change.

    Example:
        >>> by_stride(torch.empty(2, 3, 4).mT.stride())
        [0, 2, 1]
    """
    order: list[int] = []
    for d, stride in enumerate(strides):
        place = len(order)
        while place and strides[order[place - 1]] < stride:
            place -= 1
        order.insert(place, d)
    return order


def samples_first(x_seq: Tensor) -> tuple[Tensor, list[int]]:
    """As :func:`memory_order`, with one sample after the other: a sequence that is not so is copied.

    Example:
        >>> samples_first(torch.empty(5, 4, 3).transpose(1, 2))[1]
        [0, 1]
    """
    moved, order = memory_order(x_seq)
    if order[0] == 0:
        return moved, order
    if x_seq.shape[1] == 1:  # wherever it lies
        return _reorder(x_seq, [0, *(d for d in order if d)])
    return _reorder(x_seq, list(range(x_seq.dim() - 1)))


def image_order(x_seq: Tensor) -> tuple[Tensor, list[int]]:
    """As :func:`memory_order` for images ``[T, N, C, H, W]``: contiguous or channels last.

    Example:
        >>> image_order(torch.empty(5, 2, 3, 4, 4))[1]
        [0, 1, 2, 3]
    """
    x = x_seq[0]
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return _reorder(x_seq, [0, 2, 3, 1] if last else [0, 1, 2, 3])


def _flat_parameter(
    value: Tensor, shape: Sequence[int], order: list[int], dtype: torch.dtype
) -> tuple[Tensor, int]:
    full = value.to(dtype).expand(shape)
    moves = [size > 1 and stride != 0 for size, stride in zip(full.shape, full.stride(), strict=True)]
    if not any(moves) and full.numel() and not needs_grad(value):  # one for all, as most are
        return full.as_strided((1,), (1,)), 1
    full, moving = full.permute(order), [d for d, before in enumerate(order) if moves[before]]
    if not needs_grad(value):  # a gradient is wanted for every neuron
        first, end = (moving[0], moving[-1] + 1) if moving else (0, 0)
        own = full[tuple(slice(None if first <= d < end else 1) for d in range(full.dim()))]
        if own.is_contiguous():
            return own.reshape(-1), math.prod(full.shape[end:]) if moving else 1
    return full.reshape(-1), 1


def flat_parameters(
    shape: Sequence[int], order: list[int], dtype: torch.dtype, *values: Tensor | None
) -> tuple[list[Tensor | None], list[int]]:
    """Parameters that broadcast to ``shape`` as flat tensors, and the ``inner`` of each.

    Example:
        >>> theta = torch.ones(3, 1, 1)
        >>> flat_parameters((2, 3, 4, 4), [0, 1, 2, 3], torch.float32, theta, None)
        ([tensor([1., 1., 1.]), None], [16, 1])
    """
    pairs = [(None, 1) if p is None else _flat_parameter(p, shape, order, dtype) for p in values]
    return [p for p, _ in pairs], [inner for _, inner in pairs]


def flat_state(value: Tensor, order: list[int], dtype: torch.dtype) -> Tensor:
    """A state ``[N, ...]`` as a row in memory order.

    Example:
        >>> flat_state(torch.tensor([[1, 2], [3, 4]]), [1, 0], torch.float32)
        tensor([1., 3., 2., 4.])
    """
    return value.to(dtype).permute(order).reshape(-1).contiguous()  # it may be expanded


def restore(flat: Tensor, shape: Sequence[int], order: list[int]) -> Tensor:
    """Undo the flattening of ``[M]`` or ``[T, M]``; the layout in memory stays.

    Example:
        >>> restore(torch.tensor([1, 3, 2, 4]), (2, 2), [1, 0])
        tensor([[1, 2],
                [3, 4]])
    """
    time = flat.dim() - 1
    stored = flat.view(*flat.shape[:time], *[shape[d] for d in order])
    back = [order.index(d) + time for d in range(len(order))]
    return stored.permute(*range(time), *back)


def pool_dim(pool: nn.Module) -> int:
    """Dimensions of the sequence that the loops pool: 5 for images, 4 for signals, with their channels.

    Example:
        >>> pool_dim(nn.MaxPool2d(2))
        5
    """
    return 5 if isinstance(pool, nn.MaxPool2d) else 4


def check_pool_input(x_seq: Tensor, pool: nn.Module) -> None:
    """Raise unless a loop can pool ``x_seq``: without a channel dimension it would run out of bounds.

    Raises:
        ValueError: names the shape.

    Example:
        >>> check_pool_input(torch.ones(2, 3, 4, 4), nn.MaxPool2d(2))
        Traceback (most recent call last):
        ValueError: MaxPool2d wants a sequence of 5 dimensions, got [2, 3, 4, 4]; use the torch backend
    """
    if x_seq.dim() != pool_dim(pool):
        raise ValueError(
            f"{type(pool).__name__} wants a sequence of {pool_dim(pool)} dimensions, got "
            f"{list(x_seq.shape)}; use the torch backend"
        )


def pool_geometry(pool: nn.Module) -> list[int]:
    """Kernel, stride, padding and dilation of a ``MaxPool1d`` or ``MaxPool2d``, each as two numbers.

    Example:
        >>> pool_geometry(nn.MaxPool1d(3, 2, 1))
        [1, 3, 1, 2, 0, 1, 1, 1]
    """
    images = isinstance(pool, nn.MaxPool2d)
    options = ((pool.kernel_size, 1), (pool.stride, 1), (pool.padding, 0), (pool.dilation, 1))
    return [n for value, neutral in options for n in _pair(value, neutral, images)]  # type: ignore[arg-type]


def _pair(value: int | tuple[int, ...], neutral: int, images: bool) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value, value) if images else (neutral, value)
    return tuple(value) if images else (neutral, *value)


def float_dtype(value: "float | Tensor") -> torch.dtype:
    """Precision of a number that becomes a tensor: its own, or torch's default.

    Example:
        >>> float_dtype(torch.ones(1, dtype=torch.float64)), float_dtype(1)
        (torch.float64, torch.float32)
    """
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.dtype
    return torch.get_default_dtype()


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of membrane potentials and totals for an input of ``dtype``.

    Example:
        >>> state_dtype(torch.float16)
        torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32
