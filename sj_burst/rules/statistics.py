"""Streaming statistics of activations: maximum, histogram, and moments of the pre-activation."""

import math
from collections.abc import Callable
from itertools import repeat

import torch
from torch import Tensor

from ..functional import per_channel
from ..utils import distributed

__all__ = ["ActivationStatistics"]


_VALUES_AT_ONCE = 2**18  # what is done to them stays in the processor's cache
_PIECE = 2**16  # values of a channel whose sum loses nothing that matters


class ActivationStatistics:
    r"""Running statistics of one layer: maximum, histogram, and moments of the pre-activation.

    The histogram covers [0, R], where R doubles whenever a larger activation arrives, so one pass
    in bounded memory serves every rule. A percentile read from it is exact within R/2048, at most 0.1 %
    of the maximum.

    Args:
        channel_wise: one set of statistics per channel (dimension 1), else one for the layer.
        upper: largest value the activation lets pass (6 for ReLU6), ``inf`` for ReLU.
        negative_slope: a of a leaky activation, one or ``[C]``; ``None`` for ReLU. Negative values count
            by their size then, and a² times: an error e of the current is one of a·e there.

    Example:
        >>> statistics = ActivationStatistics(channel_wise=True)
        >>> statistics.update(torch.tensor([[1.0, -1.0], [3.0, -2.0]]))
        >>> statistics.maximum.tolist(), statistics.dead.tolist()
        ([3.0, 0.0], [False, True])
    """

    BINS = 2048

    def __init__(
        self,
        channel_wise: bool = True,
        upper: float = math.inf,
        negative_slope: float | Tensor | None = None,
    ) -> None:
        self.channel_wise = channel_wise
        self.upper = upper
        self.negative_slope = negative_slope
        self.samples = 0  # values seen per channel, zeros included
        self.maximum = torch.empty(0)
        self.positive = torch.empty(0)  # the same over positive values only
        self.range = torch.empty(0)
        self.histogram = torch.empty(0)  # counts of positive activations, [C, BINS]
        self._sum = torch.empty(0)
        self._square = torch.empty(0)

    def update(self, z: Tensor) -> None:
        """Take in the pre-activations ``[N, C, ...]`` of one batch.

        Raises:
            ValueError: if a value is NaN or infinite.
        """
        z = z.detach().to(torch.promote_types(z.dtype, torch.float32))
        weight = None if self.negative_slope is None else self._rows(self._weight(z))
        z = self._rows(z)
        total = _sum(z)
        if not total.isfinite().all():  # as soon as one value is not
            raise ValueError("NaN or infinite values")
        if self.samples == 0:
            zeros = z.new_zeros(len(z))
            self.maximum, self.positive, self.range = zeros, zeros, zeros
            self._sum, self._square = zeros.double(), zeros.double()
            self.histogram = z.new_zeros(len(z), self.BINS, dtype=torch.float64)
        self.samples += z.shape[1]
        self._sum = self._sum + total
        self._square = self._square + _sum(z, torch.square)
        self.positive = torch.maximum(self.positive, z.amax(1).clamp(0, self.upper))
        if weight is not None:
            z = torch.where(weight > 0, z.abs(), 0.0)
        self.maximum = self.positive if weight is None else torch.maximum(self.maximum, z.amax(1))
        self._widen(self.maximum)
        together = max(1, _VALUES_AT_ONCE // z.shape[1])  # channels
        weights = repeat(None) if weight is None else weight.split(together)
        parts = zip(*(x.split(together) for x in (z, self.range, self.histogram)), strict=True)
        for (part, scale, histogram), weight in zip(parts, weights, strict=False):
            self._count(part, scale, histogram, weight)

    def _rows(self, z: Tensor) -> Tensor:
        """Values by channel ``[C, ...]``, or ``[1, ...]`` for the layer."""
        return z.movedim(1, 0).flatten(1) if self.channel_wise and z.dim() > 1 else z.reshape(1, -1)

    def _weight(self, z: Tensor) -> Tensor:
        """What a squared error of each current weighs in that of a leaky activation; zeros nothing."""
        slope = torch.as_tensor(self.negative_slope, dtype=z.dtype, device=z.device)
        return torch.where(z < 0, per_channel(slope, z.dim()).square(), (z > 0).to(z.dtype))

    def _widen(self, maximum: Tensor) -> None:
        """Double the range of each channel, merging pairs of bins, until ``maximum`` fits.

        Ranges are powers of two, so that the bins of any two histograms can be brought together.
        """
        needed = torch.where(maximum > 0, maximum.log2().ceil().exp2(), maximum)
        self.range = torch.where(self.range > 0, self.range, needed)
        while (narrow := self.range < maximum).any():
            merged = self.histogram[narrow].unflatten(1, (-1, 2)).sum(-1)
            self.histogram[narrow] = torch.nn.functional.pad(merged, (0, self.BINS // 2))
            self.range = torch.where(narrow, 2 * self.range, self.range)

    def _count(self, z: Tensor, scale: Tensor, histogram: Tensor, weight: Tensor | None) -> None:
        """Add the positive values of some channels to their histograms."""
        scale = torch.where(scale > 0, scale, 1.0).unsqueeze(1)
        z = z.clamp(0, self.upper)
        level = (z / scale).mul_(self.BINS).clamp_(max=self.BINS - 1)
        first = torch.arange(len(z), device=z.device, dtype=torch.int32) * self.BINS
        index = level.int().add_(first.unsqueeze(1)).flatten()
        weights = None if weight is None else weight.flatten()
        counts = torch.bincount(index, weights, minlength=histogram.numel())
        histogram += counts.view_as(histogram)
        if weight is None:
            zeros = z.shape[1] - _sum(z, torch.sign)
            histogram[:, 0] -= zeros  # counted with the others, which is faster

    @property
    def dead(self) -> Tensor:
        """Channels in which no activation was positive."""
        return self.maximum <= 0

    @property
    def centres(self) -> Tensor:
        """Activation that each bin stands for ``[C, BINS]``."""
        steps = torch.arange(self.BINS, device=self.range.device) + 0.5
        return self.range.unsqueeze(1) / self.BINS * steps

    @property
    def mean(self) -> Tensor:
        """Mean of the pre-activation per channel."""
        return self._sum / self.samples

    @property
    def std(self) -> Tensor:
        """Standard deviation of the pre-activation per channel."""
        return (self._square / self.samples - self.mean.square()).clamp_min(0).sqrt()

    def all_reduce(self) -> None:
        """Merge the statistics of all processes of the default ``torch.distributed`` group.

        Bins and maxima come out as if one process had seen everything.
        """
        self.maximum = distributed.maximum(self.maximum)
        self.positive = distributed.maximum(self.positive)
        self._widen(torch.maximum(distributed.maximum(self.range), self.maximum))
        self.histogram = distributed.total(self.histogram)
        self._sum, self._square = distributed.total(self._sum), distributed.total(self._square)
        self.samples = int(distributed.total(torch.tensor(self.samples)))


def _sum(values: Tensor, of: Callable[[Tensor], Tensor] = Tensor.detach) -> Tensor:
    """Σ of a function of the values ``[C, ...]`` in double precision.

    Of pieces in single precision, which is ten times as fast and counts exactly.
    """
    total = torch.zeros(len(values), dtype=torch.float64, device=values.device)
    for piece in values.split(_PIECE, 1):
        total += of(piece).sum(1)
    return total
