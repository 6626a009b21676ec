"""The numba loop of counting neurons: integers in and out, the state in cache.

As :mod:`.cpu`, it does functional.py's operations in its order, without fused multiply-add.
"""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from .cpu_blocks import BLOCK, divide, has_nan, jit, repeats, rows_of, spread
from .cpu_events import Tally, add_block, add_counts, counts_spikes
from .layout import flat_parameters, memory_order, restore, samples_first
from .result import BurstResult
from .team import side_by_side

__all__ = ["count_multi_step"]


# Zeros of either sign are the same number of spikes.
@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz"})
def _fire(  # type: ignore[no-untyped-def]
    xs, scales, ys, others, shifts, vs, sents, least, most, ns
):
    """One step of a row of neurons: the counts ``ns``, and the state ``vs`` and ``sents`` after it."""
    one = vs.dtype.type(1)
    for j in range(len(vs)):
        m = vs[j] + scales[j] * (one * xs[j])
        if ys is not None:
            m = m + others[j] * (one * ys[j])
        m = m + shifts[j]
        n = np.floor(m)
        n = least if n < least else n
        n = most if n > most else n
        if sents is not None:
            n = -sents[j] if n < -sents[j] else n
            sents[j] += n
        vs[j] = m - n
        ns[j] = np.int8(np.int32(n))


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
    least, most = bounds[0], bounds[1]
    scale_block, shift_block = np.empty(BLOCK, v.dtype), np.empty(BLOCK, v.dtype)
    other_block = np.empty(BLOCK, v.dtype)
    fired_block = np.empty((1 if totals is None else len(totals), BLOCK), np.uint8)
    room = 255 // int(most)  # steps whose events a byte holds
    for first in range(start, stop, BLOCK):
        size = min(BLOCK, stop - first)
        scales, shifts, others = scale_block[:size], shift_block[:size], other_block[:size]
        vs = v[first : first + size]
        spread(vs, v_before, inner[0], first)
        if first == start or not repeats(shift, inner[2]):
            spread(shift_block, shift, inner[2], first)
        if first == start or not repeats(x_scale, inner[3]):
            spread(scale_block, x_scale, inner[3], first)
        if y is not None and (first == start or not repeats(y_scale, inner[4])):
            spread(other_block, y_scale, inner[4], first)
        sents = None if sent is None else sent[first : first + size]
        if sent is not None:
            spread(sents, sent_before, inner[1], first)
        if counts is not None:
            fired_block[:] = 0
        for t in range(len(out)):
            xs = x[t * x_stride + first : t * x_stride + first + size]
            ys = None if y is None else y[t * y_stride + first : t * y_stride + first + size]
            ns = out[t, first : first + size]
            _fire(xs, scales, ys, others, shifts, vs, sents, least, most, ns)
            if counts is not None:
                total, net = add_counts(ns, fired_block)
                counts[0, t] += total
                counts[1, t] += net
                if (t + 1) % room == 0 or t + 1 == len(out):
                    add_block(fired_block, first, size, totals)
                    fired_block[:] = 0
        if counts is not None and has_nan(vs):  # of which no count tells
            counts[:] = np.nan
            totals[:] = np.nan


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
    given, order = (samples_first if count else memory_order)(terms[0].detach())
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
    count = count and counts_spikes(max_spikes, steps)
    tally = Tally(parts, steps, len(v), neurons, max_spikes) if count else None

    def work(part: int) -> None:
        counts = (None, None) if tally is None else tally.of(part)[1:]
        _count(part * size, min((part + 1) * size, neurons), *arrays, *counts)

    side_by_side(work, parts)
    spikes = None if tally is None else tally.result(v.shape, order, True)
    return BurstResult(
        restore(torch.from_numpy(out), v.shape, order),
        restore(torch.from_numpy(v_out), v.shape, order),
        None if sent_out is None else restore(torch.from_numpy(sent_out), v.shape, order),
        spikes,
    )
