"""What the numba loops share: neurons in blocks, spread parameters, threads side by side.

Importing this module imports numba.
"""

import numba
import numpy as np
from torch import Tensor

from .team import threads_here

__all__ = ["BLOCK", "divide", "has_nan", "jit", "repeats", "rows_of", "spread"]

BLOCK = 1024  # neurons whose state stays in the first-level cache through all time steps
GRAIN = 1 << 15  # inputs per thread below which another thread costs more than it saves

jit = numba.njit(nogil=True, cache=True, error_model="numpy")


@jit
def spread(target, values, inner, first):  # type: ignore[no-untyped-def]
    """Write the parameter of the neurons from ``first`` on to ``target``; see :mod:`.layout`."""
    filled, size, period = 0, len(target), len(values)
    if period == 1:
        target[:] = values[0]
        filled = size
    while filled < size:
        neuron = first + filled
        index = neuron // inner % period
        if inner > 1:
            run = min(size - filled, inner - neuron % inner)
            target[filled : filled + run] = values[index]
        elif filled < period:
            run = min(size - filled, period - index)
            target[filled : filled + run] = values[index : index + run]
        else:  # it repeats: twice as much every time
            back = filled // period * period
            run = min(size - filled, back)
            target[filled : filled + run] = target[filled - back : filled - back + run]
        filled += run


@jit
def has_nan(values):  # type: ignore[no-untyped-def]
    """Whether a row has a NaN in it."""
    found = False
    for j in range(len(values)):
        found |= values[j] != values[j]
    return found


@jit
def repeats(values, inner):  # type: ignore[no-untyped-def]
    """Whether a parameter is the same in every block: then it need be spread once."""
    return BLOCK % (inner * len(values)) == 0


def divide(work: int, unit: int, cost: int) -> tuple[int, int]:
    """Into how many parts ``range(work)`` falls, and the size of each, a multiple of ``unit``."""
    parts = max(1, min(threads_here(), cost // GRAIN))
    size = max(-(-work // (parts * unit)), 1) * unit
    return max(1, -(-work // size)), size


def rows_of(x_seq: Tensor) -> tuple[np.ndarray, int]:
    """All elements of ``[T, ...]`` in memory order, and how many lie between two steps."""
    stride = x_seq.stride(0)
    size = x_seq[0].numel()
    return x_seq.as_strided(((len(x_seq) - 1) * stride + size,), (1,)).numpy(), stride
