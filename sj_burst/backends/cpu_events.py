"""The numba loops that count events: of what a neuron loop has just made, and of a layer's outputs.

As :mod:`.events`; whole numbers, which have the same sum in any order, in integers.
"""

import math

import numba
import numpy as np
import torch
from torch import Tensor

from .cpu_blocks import BLOCK, divide, jit, rows_of, spread
from .events import ACCOUNTINGS, SpikeCounts
from .layout import flat_parameters, restore, samples_first
from .team import side_by_side

__all__ = ["Tally", "add_block", "add_counts", "add_spikes", "count_outputs", "counts_spikes"]

MOST = 1 << 24  # up to which float32 has all whole numbers


def counts_spikes(max_spikes: float, time_steps: int) -> bool:
    """Whether the loops can count bursts of up to Γ spikes in T steps.

    Example:
        >>> counts_spikes(4, 8), counts_spikes(float("inf"), 8)
        (True, False)
    """
    return max_spikes * max(BLOCK, time_steps) <= MOST


# Whole numbers, whose sums are the same in any order.
@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def add_spikes(numbers, fired, halvings):  # type: ignore[no-untyped-def]
    """Add the events of a row of neurons to ``fired [1 or 3, BLOCK]``; returns Σ|n| and Σn.

    ``numbers``, in floating point, are overwritten; none is as large as 2^(halvings + 1).
    """
    kind, size = numbers.dtype.type, len(numbers)
    total, net, one = kind(0), kind(0), kind(1)
    unary = fired[0, :size]
    if halvings == 0:  # single spikes: one row
        for j in range(len(numbers)):
            net += numbers[j]
            total += abs(numbers[j])
            unary[j] += abs(numbers[j])
        return total, net
    binary, graded = fired[1, :size], fired[2, :size]
    for j in range(len(numbers)):
        spikes = abs(numbers[j])
        net += numbers[j]
        total += spikes
        unary[j] += spikes
        graded[j] += min(spikes, one)
        eighth = np.floor(spikes * kind(0.125))
        binary[j] += spikes - np.floor(spikes * kind(0.5)) - np.floor(spikes * kind(0.25)) - eighth
        numbers[j] = eighth
    for _ in range(halvings - 3):
        for j in range(len(numbers)):
            numbers[j] = np.floor(numbers[j] * kind(0.5))
            binary[j] -= numbers[j]
    return total, net


@jit
def add_counts(ns, fired):  # type: ignore[no-untyped-def]
    """As :func:`add_spikes`, of counts in int8, which stay, to events in bytes ``[1 or 3, BLOCK]``."""
    total, net = np.int32(0), np.int32(0)
    for j in range(len(ns)):
        net += np.int32(ns[j])
        total += abs(np.int32(ns[j]))
    unary = fired[0]
    if len(fired) == 1:  # single spikes
        for j in range(len(ns)):
            unary[j] += np.uint8(abs(np.int16(ns[j])))
        return total, net
    binary, graded = fired[1], fired[2]
    for j in range(len(ns)):
        size = np.uint8(abs(np.int16(ns[j])))
        unary[j] += size
        graded[j] += np.uint8(size != 0)
        ones = np.uint8(size - ((size >> np.uint8(1)) & np.uint8(0x55)))  # of every two bits
        ones = np.uint8((ones & np.uint8(0x33)) + ((ones >> np.uint8(2)) & np.uint8(0x33)))
        binary[j] += np.uint8((ones & np.uint8(0x0F)) + (ones >> np.uint8(4)))
    return total, net


@jit
def add_block(fired, first, size, totals):  # type: ignore[no-untyped-def]
    """Add the events of the neurons from ``first`` on, sample after sample, to those of one sample."""
    of_sample = totals.shape[1]
    done, place = 0, first % of_sample
    while done < size:
        run = min(size - done, of_sample - place)
        for kind in range(len(totals)):
            row, target = fired[kind, done : done + run], totals[kind, place : place + run]
            for j in range(run):
                target[j] += row[j]
        done += run
        place = 0


class Tally:
    """Room for the spikes that the parts of a neuron loop count side by side.

    Args:
        parts: into which the neurons fall.
        steps: T.
        samples: N, one after the other.
        neurons: of all samples.
        max_spikes: Γ; bursts of single spikes have the same events by every accounting.
    """

    def __init__(self, parts: int, steps: int, samples: int, neurons: int, max_spikes: float) -> None:
        self._halvings = int(max_spikes).bit_length() - 1
        kinds = 1 if max_spikes == 1 else len(ACCOUNTINGS)
        enough = np.float32 if steps * samples * max_spikes <= MOST else np.float64
        self._counts = np.zeros((parts, 2, steps))
        self._totals = np.zeros((parts, kinds, neurons // samples), enough)

    def of(self, part: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Halvings of a burst, spikes by step, all and net ``[2, T]``, and by neuron ``[1 or 3, M]``."""
        return self._halvings, self._counts[part], self._totals[part]

    def result(self, shape: torch.Size, order: list[int], has_net: bool) -> SpikeCounts:
        """Their sums, for a step of this shape whose dimensions lay in this order."""
        per_step, net = torch.from_numpy(self._counts.sum(0))
        totals = torch.from_numpy(self._totals.sum(0, dtype=np.float64))
        per_neuron = restore(totals, shape[1:], [d - 1 for d in order[1:]])
        return SpikeCounts(
            per_step, per_neuron.expand(len(ACCOUNTINGS), *shape[1:]), net if has_net else None
        )


@jit
def _numbers(ys, units, whole, numbers):  # type: ignore[no-untyped-def]
    """How many spikes each value stands for; returns the largest."""
    high, zero, one = numbers.dtype.type(0), numbers.dtype.type(0), numbers.dtype.type(1)
    near = numbers.dtype.type(1e-3)
    for j in range(len(ys)):
        q = ys[j] / units[j]
        if not whole:
            q = q if abs(q) < np.inf else zero  # where no window is
        w = np.rint(q)
        if not whole:
            w = w if abs(q - w) <= near * max(abs(w), one) else q
        numbers[j] = w
        high = max(high, abs(w))
    return high


# Sums of whole numbers are exact, and those of parts of spikes are rounded anyway.
@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def _add_outputs(numbers, unary, binary, graded, high):  # type: ignore[no-untyped-def]
    """Add the events of a row of neurons to those by each accounting; returns Σ|n| and Σn.

    ``numbers``, none above ``high``, are overwritten.
    """
    kind = numbers.dtype.type
    total, net, one = 0.0, 0.0, kind(1)
    for j in range(len(numbers)):
        size = abs(numbers[j])
        net += numbers[j]
        total += size
        unary[j] += size
        graded[j] += min(np.ceil(size), one)
        half, fourth = np.floor(size * kind(0.5)), np.floor(size * kind(0.25))
        ones = np.float64(size) - np.float64(half) - np.float64(fourth)
        binary[j] += max(ones, np.float64(min(np.ceil(size), one)))  # no less than one, for a part
        numbers[j] = fourth
    while 8 <= high < np.inf:
        high /= 2
        for j in range(len(numbers)):
            numbers[j] = np.floor(numbers[j] * kind(0.5))
            binary[j] -= numbers[j]
    return total, net


@jit
def _count_numbers(start, stop, y, y_stride, samples, counts, events):  # type: ignore[no-untyped-def]
    """As :func:`_count_outputs`, of numbers of spikes in int8."""
    neurons = events.shape[1]
    fired = np.zeros((3, BLOCK), np.uint8)
    for first in range(start, stop, BLOCK):
        size = min(BLOCK, stop - first)
        held = 0  # the most that a byte may hold already
        for t in range(counts.shape[1]):
            for sample in range(samples):
                place = t * y_stride + sample * neurons + first
                row = y[place : place + size]
                high = _largest(row)
                if held + high > 255:
                    add_block(fired, first, size, events)
                    fired[:] = 0
                    held = 0
                held += high
                total, net = add_counts(row, fired)
                counts[0, t] += total
                counts[1, t] += net
        add_block(fired, first, size, events)
        fired[:] = 0


@jit
def _largest(ns):  # type: ignore[no-untyped-def]
    """The largest size of whole numbers."""
    high, low = np.int8(0), np.int8(0)
    for j in range(len(ns)):
        high = max(high, ns[j])
        low = min(low, ns[j])
    return max(np.int32(high), -np.int32(low))


@jit
def _count_outputs(  # type: ignore[no-untyped-def]
    start, stop, y, y_stride, samples, unit, inner, whole, counts, events
):
    """Spikes of the neurons from ``start`` to ``stop`` of every sample.

    Adds those of every step, and their net number, to ``counts [2, T]``, and the events of every neuron
    to ``events [3, M]``.
    """
    neurons = events.shape[1]
    numbers, units = np.empty(BLOCK, unit.dtype), np.empty(BLOCK, unit.dtype)
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        size = end - first
        unary, binary, graded = events[0, first:end], events[1, first:end], events[2, first:end]
        spread(units[:size], unit, inner, first)
        for t in range(counts.shape[1]):
            for sample in range(samples):
                place = t * y_stride + sample * neurons + first
                row = y[place : place + size]
                high = _numbers(row, units[:size], whole, numbers[:size])
                total, net = _add_outputs(numbers[:size], unary, binary, graded, high)
                counts[0, t] += total
                counts[1, t] += net


def count_outputs(y_seq: Tensor, unit: Tensor | None, whole: bool) -> SpikeCounts:
    """Spikes in the outputs of a layer; see :func:`.events.count_outputs`.

    Args:
        y_seq: ``[T, N, ...]`` on the CPU, float32, float64 or int8.
        unit: what a spike weighs; broadcasts to a step of one sample. ``None`` for 1.
        whole: outputs stand for whole spikes.
    """
    y_seq, order = samples_first(y_seq.detach())
    steps, samples, *moved = y_seq.shape
    neurons = math.prod(moved)
    dtype = torch.float64 if y_seq.dtype == torch.float64 else torch.float32
    shape = [moved[order[1:].index(d + 1)] for d in range(len(moved))]
    counted = unit is None and y_seq.dtype == torch.int8
    unit = torch.ones(()) if unit is None else unit
    (units, *_), (inner, *_) = flat_parameters((1, *shape), order, dtype, unit.detach())
    assert units is not None
    y, stride = rows_of(y_seq)
    parts, size = divide(neurons, BLOCK, steps * samples * neurons)
    counts = np.zeros((parts, 2, steps))
    events = np.zeros((len(ACCOUNTINGS), neurons))

    def work(part: int) -> None:
        given = (part * size, min((part + 1) * size, neurons), y, stride, samples)
        if counted:
            _count_numbers(*given, counts[part], events)
        else:
            _count_outputs(*given, units.numpy(), inner, whole, counts[part], events)

    side_by_side(work, parts)
    per_step, net = torch.from_numpy(counts.sum(0))
    per_neuron = restore(torch.from_numpy(events), shape, [d - 1 for d in order[1:]])
    return SpikeCounts(per_step, per_neuron, net)
