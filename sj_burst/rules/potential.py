"""Initial membrane potentials that remove the mean of the conversion error."""

from collections.abc import Callable

import torch
from torch import Tensor

from .statistics import ActivationStatistics
from .transfer import Transfer

__all__ = ["POTENTIAL_FRACTIONS", "POTENTIAL_RULES", "ann_potential", "half_potential", "zero_potential"]


def zero_potential(statistics: ActivationStatistics, transfer: Transfer, threshold: Tensor) -> Tensor:
    """v0 = 0."""
    return torch.zeros_like(threshold)


def half_potential(statistics: ActivationStatistics, transfer: Transfer, threshold: Tensor) -> Tensor:
    """v0 = θ/2: zero expected error for every T when z is uniform within a quantum.

    Source: Bu et al., "Optimized potential initialization for low-latency spiking neural
    networks", AAAI 2022.
    """
    return threshold / 2


def ann_potential(statistics: ActivationStatistics, transfer: Transfer, threshold: Tensor) -> Tensor:
    r"""v0 ∈ [0, θ) for which the neuron's mean output equals the mean activation.

    .. math::
        \mathbb{E}\Big[\tfrac{\theta}{T}\mathrm{clip}\big(\lfloor (aT+v_0)/\theta \rfloor,
        0, \Gamma T\big)\Big] = \mathbb{E}[a]

    The left side grows with v0, so it is bisected on the histogram of the ANN's activations; no
    spiking network is run. A leaky activation gets θ/2: as rounding to the nearest count is even on
    both sides of zero, so is its mean error. Derived here from the error equation of the IC-SNN
    article, whose Algorithm 1 ("based on a trained ANN") is printed as a figure.

    Source: after Li et al., "IC-SNN: optimal ANN2SNN conversion at low latency", 2023.

    Example:
        >>> statistics = ActivationStatistics()
        >>> statistics.update(torch.linspace(0, 1, 1001).unsqueeze(1))
        >>> v0 = ann_potential(statistics, Transfer(4), torch.tensor([1.0]))
        >>> abs(v0.item() - 0.5) < 0.01
        True
    """
    if statistics.negative_slope is not None:
        return threshold / 2
    a, weight = statistics.centres, statistics.histogram
    theta = threshold.expand(len(a)).unsqueeze(1)
    target = (a * weight).sum(1)
    low, high = torch.zeros_like(theta), theta.clone()
    for _ in range(30):
        middle = (low + high) / 2
        short = (transfer(a, theta, middle) * weight).sum(1, keepdim=True) < target.unsqueeze(1)
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    # A dead channel has no error to remove.
    return torch.where(statistics.dead, theta.squeeze(1) / 2, low.squeeze(1))


# v0 as a fraction of θ during the search for thresholds.
POTENTIAL_FRACTIONS = {"zero": 0.0, "half": 0.5, "shift": 0.5, "ann": 0.5, "data": 0.5}
POTENTIAL_RULES: dict[str, Callable[[ActivationStatistics, Transfer, Tensor], Tensor]] = {
    "zero": zero_potential,
    "half": half_potential,
    # "shift" delivers θ/2 in T parts, which is the same for a constant current.
    "shift": zero_potential,
    "ann": ann_potential,
    # "data" starts from θ/2 and is corrected layer by layer on the spiking prefix (conversion/fits.py).
    "data": half_potential,
}
