"""The numba loop of counting neurons: integers in and out, the state in cache.

As :mod:`.cpu`, it does functional.py's operations in its order, without fused multiply-add.
"""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from .cpu import BLOCK, divide, jit, jit_parallel, rows_of, spread, threads_for
from .layout import flat_parameters, memory_order, restore
from .result import BurstResult, SpikeCounts

__all__ = ["count_multi_step"]


@jit
def _count(  # type: ignore[no-untyped-def]
    start,
    stop,
    x,
    x_stride,
    x_scale,
    y,
    y_stride,
    y_scale,
    v_before,
    sent_before,
    shift,
    inner,
    bounds,
    out,
    v,
    sent,
    counts,
    totals,
):
    """T steps of the neurons from ``start`` to ``stop``.

    Terms ``x`` and ``y`` lie flat, their steps a stride apart. Writes the counts ``out [T, M]`` and the
    state ``v`` and ``sent`` after the last step; ``counts`` and ``totals`` are as in :mod:`.cpu`.
    """
    one, least, most = v.dtype.type(1), bounds[0], bounds[1]
    scale_block, shift_block = np.empty(BLOCK, v.dtype), np.empty(BLOCK, v.dtype)
    other_block = np.empty(BLOCK, v.dtype)
    for first in range(start, stop, BLOCK):
        size = min(BLOCK, stop - first)
        scales, shifts, others = scale_block[:size], shift_block[:size], other_block[:size]
        vs = v[first : first + size]
        spread(vs, v_before, inner[0], first)
        spread(shifts, shift, inner[2], first)
        spread(scales, x_scale, inner[3], first)
        if y is not None:
            spread(others, y_scale, inner[4], first)
        if sent is not None:
            sents = sent[first : first + size]
            spread(sents, sent_before, inner[1], first)
        if counts is not None:
            fired = totals[first : first + size]
            fired[:] = 0
        for t in range(len(out)):
            xs = x[t * x_stride + first : t * x_stride + first + size]
            if y is not None:
                ys = y[t * y_stride + first : t * y_stride + first + size]
            ns = out[t, first : first + size]
            spikes = 0
            for j in range(size):
                m = vs[j] + scales[j] * (one * xs[j])
                if y is not None:
                    m = m + others[j] * (one * ys[j])
                m = m + shifts[j]
                n = np.floor(m)
                n = least if n < least else n
                n = most if n > most else n
                if sent is not None:
                    n = -sents[j] if n < -sents[j] else n
                    sents[j] += n
                vs[j] = m - n
                ns[j] = np.int8(np.int32(n))
                if counts is not None:
                    spikes += np.int32(abs(n))  # type: ignore[assignment]
                    fired[j] += abs(n)
            if counts is not None:
                counts[t] += spikes


@jit_parallel
def _count_parts(parts, size, stop, arrays, counts, totals):  # type: ignore[no-untyped-def]
    """:func:`_count` in parts side by side; ``counts [parts, T]``."""
    for part in numba.prange(parts):
        count = None if counts is None else counts[part]
        _count(part * size, min((part + 1) * size, stop), *arrays, count, totals)


def _in_order(x_seq: Tensor, order: list[int]) -> Tensor:
    """A sequence ``[T, ...]`` with the dimensions of a step in this order, and steps without holes."""
    x_seq = x_seq.permute(0, *[d + 1 for d in order])
    if x_seq.stride(0) == 0:  # held
        return x_seq[0].contiguous().expand_as(x_seq)
    return x_seq if x_seq[0].is_contiguous() else x_seq.contiguous()


def count_multi_step(
    terms: Sequence[Tensor],
    v: Tensor,
    scales: Sequence[Tensor],
    max_spikes: int,
    shift: Tensor,
    sent: Tensor | None = None,
    count: bool = False,
) -> BurstResult:
    """T steps of the counting neuron; see :func:`sj_burst.functional.count_step`.

    Args:
        terms: one or two parts of the input current ``[T, N, ...]`` on the CPU, float32 or int8.
        v: membrane potential before the first step, float32.
        scales: what a unit of each term weighs; broadcast to one step.
        max_spikes: Γ ≤ 127.
        shift: constant input current; broadcasts to one step.
        sent: spike count so far, ``None`` for unsigned spikes.
        count: whether to count spikes while they are emitted.

    Returns:
        Counts in int8, state after the last step, and the spikes if asked for.

    Source: as :func:`sj_burst.functional.burst_step`.
    """
    given, order = memory_order(terms[0].detach())
    values = [rows_of(given), *(rows_of(_in_order(x.detach(), order)) for x in terms[1:])]
    steps, neurons = len(given), v.numel()
    flat, inner = flat_parameters(v.shape, order, v.dtype, v, sent, shift, *scales)
    v_before, sent_before, shifts, *weights = [None if p is None else p.numpy() for p in flat]
    flat_terms: list[Any] = [part for x, w in zip(values, weights, strict=True) for part in (*x, w)]
    if len(terms) == 1:
        flat_terms += [None, 0, None]
    out = np.empty((steps, neurons), np.int8)
    v_out = np.empty(neurons, np.float32)
    sent_out = None if sent is None else np.empty_like(v_out)
    bounds = np.array([0 if sent is None else -max_spikes, max_spikes], np.float32)
    state = (v_before, sent_before, shifts)
    arrays = (*flat_terms, *state, np.array(inner), bounds, out, v_out, sent_out)
    parts, size = divide(neurons, BLOCK, steps * neurons)
    counts = np.zeros((parts, steps), np.int64) if count else None
    totals = np.empty_like(v_out) if count else None
    if parts == 1:
        _count(0, neurons, *arrays, None if counts is None else counts[0], totals)
    else:
        with threads_for(parts):
            _count_parts(parts, size, neurons, arrays, counts, totals)
    spikes = None
    if counts is not None:
        per_neuron = restore(torch.from_numpy(totals), v.shape, order)
        spikes = SpikeCounts(torch.from_numpy(counts.sum(0)), per_neuron)
    return BurstResult(
        restore(torch.from_numpy(out), v.shape, order),
        restore(torch.from_numpy(v_out), v.shape, order),
        None if sent_out is None else restore(torch.from_numpy(sent_out), v.shape, order),
        spikes,
    )
