"""Samples of folded batches ``[T·N, ...]``, or ``[N, ...]``, with their layout in memory kept."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import is_dense

__all__ = ["join_samples", "some_samples"]


def join_samples(values: Sequence[Tensor], samples: Sequence[int]) -> Tensor:
    """The rows of several batches, in all steps, as those of one.

    Args:
        values: ``[T·N, ...]`` or ``[N, ...]`` of each.
        samples: N of each.

    Example:
        >>> join_samples([torch.tensor([1, 5]), torch.tensor([2, 3, 6, 7])], [1, 2])  # two steps
        tensor([1, 2, 3, 5, 6, 7])
    """
    if len(values) == 1:
        return values[0]
    steps, total = len(values[0]) // samples[0], sum(samples)
    joined = _empty(values[0], steps * total)
    start = 0
    for value, count in zip(values, samples, strict=True):
        _steps(joined, steps)[:, start : start + count].copy_(_steps(value, steps))
        start += count
    return joined


def some_samples(value: Tensor, samples: int, wanted: range) -> Tensor:
    """The rows of some of the samples of a batch, in all steps.

    Args:
        value: ``[T·N, ...]`` or ``[N, ...]``.
        samples: N.
        wanted: which.

    Example:
        >>> some_samples(torch.tensor([1, 2, 3, 5, 6, 7]), 3, range(1, 3))  # two steps
        tensor([2, 3, 6, 7])
    """
    steps, part = len(value) // samples, slice(wanted.start, wanted.stop)
    if steps == 1:
        return value[part]
    some = _empty(value, steps * len(wanted))
    _steps(some, steps).copy_(_steps(value, steps)[:, part])
    return some


def _steps(value: Tensor, steps: int) -> Tensor:
    return value.unflatten(0, (steps, -1))


def _empty(like: Tensor, rows: int) -> Tensor:
    """Room for so many rows, each of which lies in memory like those of another tensor."""
    row = like[0] if is_dense(like[0]) else like[0].contiguous()
    strides = (math.prod(row.shape), *row.stride())
    return torch.empty_strided((rows, *row.shape), strides, dtype=like.dtype, device=like.device)
