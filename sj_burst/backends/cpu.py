"""The numba backend: one pass over the input on a CPU, with the state in cache.

The loops do functional.py's operations in its order, without fused multiply-add or reassociation, so
that results are equal bit for bit. Importing this module imports numba.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .cpu_blocks import BLOCK, divide, jit, repeats, rows_of, spread
from .cpu_events import Tally, add_block, add_spikes
from .layout import (
    check_pool_input,
    flat_parameters,
    image_order,
    memory_order,
    pool_geometry,
    restore,
    samples_first,
)
from .result import BurstResult
from .team import side_by_side

__all__ = ["burst_multi_step", "li_pool_multi_step"]


@jit
def _burst(  # type: ignore[no-untyped-def]
    start,
    stop,
    z,
    z_stride,
    v_before,
    sent_before,
    theta,
    shift,
    slope,
    inner,
    bounds,
    steps,
    y,
    sums,
    v,
    sent,
    halvings,
    counts,
    totals,
):
    """T steps of the neurons from ``start`` to ``stop``.

    Writes outputs ``y [T, M]`` or their ``sums [M]`` over the steps, and the state ``v`` and ``sent``
    after the last step. If asked for, adds the spikes of every step, and their net number, to
    ``counts [2, T]``, and the events of every neuron to ``totals``; see :class:`.cpu_events.Tally`.
    """
    neurons = len(v)
    least, most = bounds[0], bounds[1]
    theta_block, shift_block = np.empty(BLOCK, v.dtype), np.empty(BLOCK, v.dtype)
    below_block, zero = np.empty(BLOCK, v.dtype), v.dtype.type(0)
    number_block = np.empty(BLOCK, v.dtype)
    fired_block = np.empty((1 if totals is None else len(totals), BLOCK), v.dtype)
    for first in range(start, stop, BLOCK):
        size = min(BLOCK, stop - first)
        thetas, shifts, vs = theta_block[:size], shift_block[:size], v[first : first + size]
        spread(vs, v_before, inner[0], first)
        if first == start or not repeats(theta, inner[2]):
            spread(theta_block, theta, inner[2], first)
        if shift is not None and (first == start or not repeats(shift, inner[3])):
            spread(shift_block, shift, inner[3], first)
        if slope is not None:  # what a unit of the total weighs below zero
            belows = below_block[:size]
            spread(belows, slope, inner[4], first)
            for j in range(size):
                belows[j] = belows[j] * thetas[j]
        if sent is not None:
            sents = sent[first : first + size]
            spread(sents, sent_before, inner[1], first)
        if counts is not None:
            fired_block[:] = 0
            numbers = number_block[:size]
        if sums is not None:
            ys = sums[first : first + size]
            ys[:] = 0
        for t in range(steps):
            zs = z[t * z_stride + first : t * z_stride + first + size]
            if y is not None:
                ys = y[t * neurons + first : t * neurons + first + size]
            for j in range(size):
                m = vs[j] + zs[j]
                if shift is not None:
                    m = m + shifts[j]
                n = np.floor(m / thetas[j])
                n = least if n < least else n
                n = most if n > most else n
                if slope is not None:
                    before = max(sents[j], zero)
                    sents[j] += n
                    above = max(sents[j], zero) - before
                    out = thetas[j] * above + belows[j] * (n - above)
                elif sent is not None:
                    n = -sents[j] if n < -sents[j] else n
                    sents[j] += n
                    out = thetas[j] * n
                else:
                    out = thetas[j] * n
                if sums is not None:
                    ys[j] += out
                else:
                    ys[j] = out
                vs[j] = m - thetas[j] * n
                if counts is not None:
                    numbers[j] = n
            if counts is not None:
                total, net = add_spikes(numbers, fired_block, halvings)
                counts[0, t] += total
                counts[1, t] += net
        if counts is not None:
            add_block(fired_block, first, size, totals)


@jit
def _window_max(rows, first, last, step, start, best):  # type: ignore[no-untyped-def]
    """Raise ``best`` to the rows ``start``, ``start + step``, … of ``rows`` that exist."""
    best[:] = -np.inf
    for tap in range(first, last):
        row = rows[start + tap * step]
        for i in range(len(best)):
            # A NaN wins, as in torch.
            best[i] = row[i] if row[i] > best[i] or row[i] != row[i] else best[i]


@jit
def _valid(start, step, taps, size):  # type: ignore[no-untyped-def]
    """First and last tap of a window that lie inside."""
    first = 0 if start >= 0 else (-start + step - 1) // step
    return first, min(taps, max(first, (size - start + step - 1) // step))


@jit
def _li_pool(begin, end, x, x_stride, out, total, pooled, geometry):  # type: ignore[no-untyped-def]
    """T steps of the planes from ``begin`` to ``end``; state in place.

    ``total [outer, H, W, inner]``, ``pooled`` and ``out [T, …]`` likewise.
    """
    kernel_h, kernel_w, stride_h, stride_w = geometry[0], geometry[1], geometry[2], geometry[3]
    pad_h, pad_w, gap_h, gap_w = geometry[4], geometry[5], geometry[6], geometry[7]
    height, width, inner = total.shape[1:]
    out_height, out_width = pooled.shape[1:3]
    size = height * width * inner
    column = np.empty((width, inner), total.dtype)
    flat_column = column.reshape(-1)
    best = np.empty(inner, total.dtype)
    for plane in range(begin, end):
        totals = total[plane].reshape(height, width * inner)
        flat_totals = totals.reshape(-1)
        for t in range(len(out)):
            xs = x[t * x_stride + plane * size : t * x_stride + (plane + 1) * size]
            for i in range(size):
                flat_totals[i] += xs[i]
            for row in range(out_height):
                top = row * stride_h - pad_h
                first, last = _valid(top, gap_h, kernel_h, height)
                _window_max(totals, first, last, gap_h, top, flat_column)
                before, target = pooled[plane, row], out[t, plane, row]
                if inner == 1:
                    for place in range(out_width):
                        left = place * stride_w - pad_w
                        first, last = _valid(left, gap_w, kernel_w, width)
                        high = total.dtype.type(-np.inf)
                        for tap in range(first, last):
                            value = flat_column[left + tap * gap_w]
                            high = value if value > high or value != value else high
                        target[place, 0] = high - before[place, 0]
                        before[place, 0] = high
                else:
                    for place in range(out_width):
                        left = place * stride_w - pad_w
                        first, last = _valid(left, gap_w, kernel_w, width)
                        _window_max(column, first, last, gap_w, left, best)
                        for k in range(inner):
                            target[place, k] = best[k] - before[place, k]
                            before[place, k] = best[k]


def _copy(value: Tensor, order: list[int]) -> np.ndarray:
    """A state as a flat row in memory order that may be written to."""
    copy = value.detach().permute(order).clone(memory_format=torch.contiguous_format)
    return copy.view(-1).numpy()


def burst_multi_step(
    z_seq: Tensor,
    v: Tensor,
    threshold: Tensor,
    max_spikes: float = 1,
    *,
    shift: Tensor | None = None,
    sent: Tensor | None = None,
    negative_slope: Tensor | None = None,
    count: bool = False,
    summed: bool = False,
) -> BurstResult:
    """T steps of the burst neuron; see :func:`sj_burst.functional.burst_multi_step`.

    Args:
        z_seq: input current ``[T, N, ...]`` on the CPU, float32 or float64, any layout.
        v: membrane potential before the first step.
        threshold: θ; broadcasts to one step.
        max_spikes: Γ.
        shift: constant input current; broadcasts to one step.
        sent: spike count so far, ``None`` for unsigned spikes.
        negative_slope: weight of the total below zero; broadcasts to one step.
        count: whether to count spikes while they are emitted; see :func:`.cpu_events.counts_spikes`.
        summed: whether the outputs are added up over the steps, to ``[1, N, ...]``.

    Returns:
        Outputs, state after the last step, and the spikes of every step and every neuron if asked for.

    Source: as :func:`sj_burst.functional.burst_step`.
    """
    z_seq, order = (samples_first if count else memory_order)(z_seq.detach())
    steps, neurons = len(z_seq), v.numel()
    flat, inner = flat_parameters(v.shape, order, v.dtype, v, sent, threshold, shift, negative_slope)
    given = [None if p is None else p.detach().numpy() for p in flat]
    z, stride = rows_of(z_seq)
    y = np.empty((1 if summed else steps, neurons), z.dtype)
    flat_y, sums = (None, y[0]) if summed else (y.reshape(-1), None)
    v_out = np.empty(neurons, z.dtype)
    sent_out = None if sent is None else np.empty_like(v_out)
    bounds = np.array([0 if sent is None else -max_spikes, max_spikes], z.dtype)
    parts, size = divide(neurons, BLOCK, steps * neurons)
    tally = Tally(parts, steps, len(v), neurons, max_spikes) if count else None
    arrays = (z, stride, *given, np.array(inner), bounds, steps, flat_y, sums, v_out, sent_out)

    def work(part: int) -> None:
        counts = (0, None, None) if tally is None else tally.of(part)
        _burst(part * size, min((part + 1) * size, neurons), *arrays, *counts)

    side_by_side(work, parts)
    spikes = None if tally is None else tally.result(v.shape, order, negative_slope is None)
    return BurstResult(
        restore(torch.from_numpy(y), v.shape, order),
        restore(torch.from_numpy(v_out), v.shape, order),
        None if sent_out is None else restore(torch.from_numpy(sent_out), v.shape, order),
        spikes,
    )


def li_pool_multi_step(
    x_seq: Tensor, total: Tensor, pooled: Tensor, pool: nn.Module
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps of lateral-inhibition pooling; see :func:`sj_burst.functional.li_pool_multi_step`.

    Args:
        x_seq: weighted spikes ``[T, N, C, H, W]`` or ``[T, N, C, L]`` on the CPU.
        total: Σ x before the first step.
        pooled: maxpool(total), or zeros before the first step.
        pool: ``MaxPool2d`` or ``MaxPool1d`` of any geometry.

    Returns:
        Outputs, total and pooled total after the last step.

    Source: as :func:`sj_burst.functional.li_pool_step`.
    """
    check_pool_input(x_seq, pool)
    images = total.dim() == 4
    if not images:  # rows of pixels are images of height 1
        x_seq, total, pooled = (t.unsqueeze(-2) for t in (x_seq, total, pooled))
    x_seq, order = image_order(x_seq.detach())
    states = [_planes(_copy(state, order), state.shape, order) for state in (total, pooled)]
    x, stride = rows_of(x_seq)
    out = np.empty((len(x_seq), *states[1].shape), x.dtype)  # of counts in int8, too
    geometry = np.array(pool_geometry(pool))
    arrays = (x, stride, out, *states)
    parts, size = divide(len(states[0]), 1, states[0].size * len(out))

    def work(part: int) -> None:
        end = min((part + 1) * size, len(states[0]))
        _li_pool(part * size, end, *arrays, geometry)

    side_by_side(work, parts)
    total_out, pooled_out = (torch.from_numpy(state).view(-1) for state in states)
    results = [
        restore(torch.from_numpy(out).flatten(1), pooled.shape, order),
        restore(total_out, total.shape, order),
        restore(pooled_out, pooled.shape, order),
    ]
    out_seq, total, pooled = results if images else (r.squeeze(-2) for r in results)
    return out_seq, total, pooled


def _planes(state: np.ndarray, shape: Sequence[int], order: list[int]) -> np.ndarray:
    """``[outer, H, W, inner]`` of a flat state of images."""
    return state.reshape(-1, *shape[2:], shape[1] if order[-1] == 1 else 1)
