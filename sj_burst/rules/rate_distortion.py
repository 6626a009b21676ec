"""Thresholds by rate and distortion: spikes are spent where they matter for the answer."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .statistics import ActivationStatistics
from .threshold import error_by_levels, levels_reached
from .transfer import Transfer

__all__ = ["Candidates", "allocate", "candidates", "spikes_and_errors"]

_CANDIDATES = 96  # thresholds that a channel may get, in steps of a few percent


@dataclass(frozen=True)
class Candidates:
    """Thresholds that the channels of a layer may get, with what each costs and loses per sample.

    Attributes:
        threshold: ``[K, C]``; those that the layer has come first.
        max_spikes: Γ that goes with each ``[K]``; all channels have to take the same.
        cost: operations that the spikes of all steps cause ``[K, C]``.
        loss: how much the errors of the activations change the answer ``[K, C]``.
    """

    threshold: Tensor
    max_spikes: list[float]
    cost: Tensor
    loss: Tensor

    def best(self, price: float) -> Tensor:
        """Which has the least loss + price · cost, by channel ``[1, C]``."""
        total = self.loss + price * self.cost
        found = []
        for most in sorted(set(self.max_spikes)):
            rows = torch.tensor([k for k, gamma in enumerate(self.max_spikes) if gamma == most])
            least, row = total[rows.to(total.device)].min(0, keepdim=True)
            found.append((least.sum().item(), rows.to(total.device)[row]))
        return min(found, key=lambda pair: pair[0])[1]


def candidates(
    statistics: ActivationStatistics,
    transfer: Transfer,
    threshold: Tensor,
    samples: float,
    weight: Tensor,
    fan_out: Tensor,
    expected: bool = False,
) -> Candidates:
    r"""What the thresholds of a layer would cost and lose, from the histogram of its activations.

    For an activation a the neuron sends :math:`\phi(a)\,T/\theta` spikes, and errs by φ(a) − a:

    .. math::
        R_c(\theta) = F_c \frac{T}{\theta} \sum_i \phi(a_i), \qquad
        D_c(\theta) = \frac{g_c}{2} \sum_i (\phi(a_i) - a_i)^2

    summed over the positions of a sample. With ``expected`` the spikes are |φ(a)T/θ − rT|, with the
    whole number r a step of which they are fewest. Where levels are fine, R ≈ F Σa/δ and D ≈ g n δ²/24
    with the level δ = θ/T and n active positions, and the least D + λR is at :math:`\delta \propto
    (\lambda F \sum a / g n)^{1/3}`; this also knows what coarse levels, and the ceiling Γθ, do. An
    activation with a bound keeps θ ≤ bound/Γ', with a Γ' ≤ Γ for the layer.

    Args:
        statistics: of the layer's activations.
        transfer: T, Γ and v0 that will run.
        threshold: θ that the layer has.
        samples: how many images the statistics are of.
        weight: g, mean of :math:`(\partial \ell/\partial a)^2` at active positions ``[C]``.
        fan_out: F, operations that a spike causes, on average ``[C]``.
        expected: spikes that the layers behind expect need not be sent.

    Source: derived here.
    """
    bounded = math.isfinite(statistics.upper)
    kinds = _halved(transfer.max_spikes) if bounded else [transfer.max_spikes]
    thresholds = [threshold.double().expand_as(statistics.maximum)]
    most_spikes = [transfer.max_spikes]
    found = [*spikes_and_errors(statistics, transfer, thresholds, expected)]
    for most in kinds:
        coarser = dataclasses.replace(transfer, max_spikes=most)
        tried = _tried(statistics, coarser)
        found += spikes_and_errors(statistics, coarser, tried, expected)
        thresholds += tried
        most_spikes += [most] * len(tried)
    spikes, errors = (torch.stack(part) / samples for part in zip(*found, strict=True))
    return Candidates(torch.stack(thresholds), most_spikes, fan_out * spikes, weight / 2 * errors)


def _halved(max_spikes: float) -> list[int]:
    """Γ, and its halves down to one.

    Example:
        >>> _halved(15)
        [15, 7, 3, 1]
    """
    found = [int(max_spikes)]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def _tried(statistics: ActivationStatistics, transfer: Transfer) -> list[Tensor]:
    """Thresholds ``[C]``, in steps of a few percent, no larger than an upper bound allows.

    From a fiftieth of what Γ spikes can reach, to where the largest activation causes no spike.
    """
    first, last = math.log(0.02 / transfer.max_spikes), math.log(2.2 * transfer.time_steps)
    fractions = torch.linspace(first, last, _CANDIDATES, dtype=torch.float64).exp().tolist()
    largest = torch.where(statistics.maximum > 0, statistics.maximum.double(), 1.0)
    bound = torch.full_like(largest, statistics.upper / transfer.max_spikes)
    thresholds = [torch.minimum(fraction * largest, bound) for fraction in fractions]
    # Beyond the bound all rows are alike.
    return [theta for i, theta in enumerate(thresholds) if i == 0 or (thresholds[i - 1] < bound).any()]


def spikes_and_errors(
    statistics: ActivationStatistics,
    transfer: Transfer,
    thresholds: list[Tensor],
    expected: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each θ ``[C]`` the spikes of all activations seen, in T steps, and the squared error.

    With ``expected``, the spikes that differ from the best whole number of them in every step.
    """
    a, count = statistics.centres.double(), statistics.histogram
    if transfer.levels > statistics.BINS / 4:
        for theta in thresholds:
            phi = transfer(a, theta.unsqueeze(1))
            numbers = transfer.time_steps / theta.unsqueeze(1) * phi
            spikes = (numbers * count).sum(1)
            if expected:
                spikes = torch.minimum(spikes, _beside_median(numbers, statistics, transfer.time_steps))
            yield spikes, ((phi - a).square() * count).sum(1)
        return
    # A staircase of few levels costs few look-ups.
    reached, error = levels_reached(statistics, transfer), error_by_levels(statistics, transfer)
    squares = (a.square() * count).sum(1)
    for theta in thresholds:
        found = reached(theta)[0]
        spikes = found.sum(1)
        if expected:  # one more is right for those that reach it, and wrong for the others
            more = (statistics.samples - 2 * found).cumsum(1)[
                :, transfer.time_steps - 1 :: transfer.time_steps
            ]
            spikes = spikes + more.amin(1).clamp_max(0)
        yield spikes, (error(theta) + squares).clamp_min(0)


def _beside_median(numbers: Tensor, statistics: ActivationStatistics, time_steps: int) -> Tensor:
    """By how many spikes activations differ from T times the median of a step; ``numbers [C, bins]``."""
    count = statistics.histogram
    zeros = statistics.samples - count.sum(1, keepdim=True)
    first = (zeros + count.cumsum(1) >= statistics.samples / 2).int().argmax(1, keepdim=True)
    median = numbers.gather(1, first) * (zeros < statistics.samples / 2)
    median = time_steps * (median / time_steps).round()
    return ((numbers - median).abs() * count).sum(1) + (zeros * median).squeeze(1)


def allocate(
    layers: Mapping[str, Candidates], cost: float
) -> tuple[dict[str, tuple[Tensor, float]], float]:
    """The thresholds of all layers with the least loss for a cost, by bisection on its price.

    Args:
        layers: what each may choose from.
        cost: operations per sample that may be spent; the finest thresholds are taken if they cost less.

    Returns:
        Thresholds ``[C]`` and Γ of every layer, and what they cost.
    """

    def spent(price: float) -> float:
        found = ((layer.cost, layer.best(price)) for layer in layers.values())
        return sum(costs.gather(0, best).sum().item() for costs, best in found)

    low, high = -80.0, 80.0  # logarithms of the price
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(math.exp(middle)) > cost else (low, middle)
    price = math.exp(high)
    chosen = {}
    for name, layer in layers.items():
        best = layer.best(price)
        most = layer.max_spikes[int(best[0, 0])]  # the same for all channels
        chosen[name] = (layer.threshold.gather(0, best)[0], most)
    return chosen, spent(price)
