"""The events that bursts cost, by three accountings, and their sums over samples and steps."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.outputs import at_least_single
from .layout import by_stride

__all__ = ["ACCOUNTINGS", "SpikeCounts", "count_events", "count_outputs"]

# How the spikes n of a neuron in one step may travel: as |n| unit events; as popcount(|n|) events of
# weights θ, 2θ, 4θ, …; as one event that carries the number.
ACCOUNTINGS = ("unary", "binary", "graded")
AT_ONCE = 1 << 18  # outputs, on a CPU, where what is made on the way stays in the caches


def count_events(numbers: Tensor) -> Tensor:
    r"""The events of bursts ``[...]`` by each of ``ACCOUNTINGS`` ``[3, ...]``.

    .. math::
        |n|, \qquad \mathrm{popcount}(|n|) = |n| - \sum_{k \ge 1} \lfloor |n| / 2^k \rfloor, \qquad
        [n \ne 0]

    Args:
        numbers: n, of any type; integers become float64. Parts of a spike, as averages send, are an
            event at least.

    Example:
        >>> count_events(torch.tensor([0.0, 5.0, -3.0])).tolist()
        [[0.0, 5.0, 3.0], [0.0, 2.0, 2.0], [0.0, 1.0, 1.0]]
    """
    sizes = (numbers if numbers.is_floating_point() else numbers.double()).abs()
    return torch.stack(_events(sizes, sizes.max().item() if sizes.numel() else 0.0))


def _events(sizes: Tensor, most: float) -> list[Tensor]:
    """:func:`count_events` of sizes up to ``most``; all lie in memory as these do."""
    binary, half, graded = sizes.clone(), sizes.clone(), sizes.sign()
    for _ in range(int(most).bit_length() - 1 if 2 <= most < math.inf else 0):
        half.mul_(0.5).floor_()
        binary -= half
    return [sizes, torch.maximum(binary, graded), graded]  # no less than one


class SpikeCounts(NamedTuple):
    """Spikes of a multi-step forward; a burst of n counts n, a negative spike 1.

    Attributes:
        per_step: ``[T]``, over all neurons.
        per_neuron: ``[3, ...]``, over all samples and steps, by each of ``ACCOUNTINGS``.
        net: ``[T]``, as ``per_step`` with negative spikes taken off; ``None`` if the backend does not
            tell, or for a leaky neuron, whose total may rightly be negative.
    """

    per_step: Tensor
    per_neuron: Tensor
    net: Tensor | None = None

    @classmethod
    def of_totals(cls, totals: Sequence[Tensor]) -> "SpikeCounts":
        """Spikes of T steps from the net counts sent before, and after each of them.

        Example:
            >>> SpikeCounts.of_totals([torch.zeros(2), torch.tensor([3.0, -1.0])]).per_step
            tensor([4.], dtype=torch.float64)
        """
        each = [count_events((after - before).detach()) for before, after in itertools.pairwise(totals)]
        per_step = torch.stack([events[0].sum(dtype=torch.float64) for events in each])
        return cls(per_step, sum(events.double().sum(1) for events in each))  # type: ignore[arg-type]


def count_outputs(y_seq: Tensor, unit: Tensor | None, whole: bool) -> SpikeCounts:
    """Spikes in the outputs of a layer.

    Args:
        y_seq: ``[T, N, ...]``.
        unit: what a spike weighs; broadcasts to one step. ``None`` for 1.
        whole: outputs stand for whole spikes, but for rounding errors; else for parts of spikes too, and
            where the unit is 0 for none.

    Example:
        >>> count_outputs(torch.tensor([[[1.0, 0.25]], [[-1.5, 0.0]]]), torch.tensor(0.5), True)
        SpikeCounts(per_step=tensor([2., 3.], dtype=torch.float64), per_neuron=tensor([[5., 0.],
                [3., 0.],
                [2., 0.]], dtype=torch.float64), net=tensor([ 2., -3.], dtype=torch.float64))
    """
    unit = None if unit is None else unit.detach()
    steps, samples, *shape = y_seq.shape
    sums = y_seq.new_zeros(2, steps, dtype=torch.float64)
    per_neuron = y_seq.new_zeros(len(ACCOUNTINGS), *shape, dtype=torch.float64)
    rows = samples
    if y_seq.device.type == "cpu":
        rows = max(1, AT_ONCE * samples // max(1, y_seq[0].numel()))
    for t, y in enumerate(y_seq):
        for part in y.split(max(1, rows)):
            numbers = _numbers(part.detach(), unit, whole)
            sums[1, t] += numbers.sum(dtype=torch.float64)
            sizes = numbers.abs_()
            most = sizes.max().item() if sizes.numel() else 0.0
            single = sizes.dtype == torch.float32 and len(part) * most < 2**24
            if whole and most <= 1:  # all events are single spikes
                per_neuron += (total := _sum_over_samples(sizes, single))
                sums[0, t] += total.sum()
                continue
            for kind, events in enumerate(_events(sizes, most)):
                per_neuron[kind] += (total := _sum_over_samples(events, single))
                sums[0, t] += total.sum() if kind == 0 else 0
    return SpikeCounts(sums[0], per_neuron, sums[1])


def _numbers(y: Tensor, unit: Tensor | None, whole: bool) -> Tensor:
    """How many spikes each value stands for."""
    y = at_least_single(y)
    numbers = y.clone() if unit is None else y / at_least_single(unit)
    if whole:
        return numbers.round_()
    numbers.masked_fill_(~numbers.isfinite(), 0)  # where no window is
    rounded = numbers.round()
    near = (numbers - rounded).abs_() <= 1e-3 * rounded.abs().clamp_min_(1)
    return torch.where(near, rounded, numbers)


def _sum_over_samples(x: Tensor, single: bool) -> Tensor:
    """Σ over ``[N, ...]``; where single precision will do, a product with ones is much faster."""
    fast = single and x.device.type == "cpu" and x.numel() > 0
    if not fast or torch.is_autocast_enabled("cpu"):
        return x.sum(0, dtype=torch.float64)
    order = [d + 1 for d in by_stride(x.stride()[1:])]
    rows = x.permute(0, *order)
    flat = rows.reshape(len(x), -1)
    total = (flat.new_ones(1, len(x)) @ flat).double()
    return total.view(rows.shape[1:]).permute([order.index(d) for d in range(1, x.dim())])
