"""Firing thresholds from calibration activations: the rules that fit them to statistics."""

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from .statistics import ActivationStatistics
from .transfer import Transfer

__all__ = [
    "THRESHOLD_RULES",
    "fit_threshold",
    "gaussian_fixed_point",
    "gaussian_threshold",
    "max_threshold",
    "mse_threshold",
    "parse_percentile",
    "percentile_threshold",
    "trained_threshold",
]


def max_threshold(statistics: ActivationStatistics, transfer: Transfer) -> Tensor:
    """θ = the largest activation seen: a running maximum, not a moving average.

    What a leaky activation saw below zero only has to fit into Γθ.

    Source: Diehl et al., "Fast-classifying, high-accuracy spiking deep networks through weight and
    threshold balancing", IJCNN 2015.

    Example:
        >>> statistics = ActivationStatistics()
        >>> statistics.update(torch.tensor([[1.0], [10.0], [2.0]]))
        >>> max_threshold(statistics, Transfer(8)).item()
        10.0
    """
    return torch.maximum(statistics.positive, statistics.maximum / transfer.max_spikes)


def percentile_threshold(statistics: ActivationStatistics, percent: float) -> Tensor:
    """θ = the given percentile of the activations, zeros included.

    Where that is zero, as of a channel which is rarely active, it is that of the positive ones. Exact
    within one bin of the histogram, at most 0.1 % of the maximum.

    Source: Rueckauer et al., Frontiers in Neuroscience 2017.

    Example:
        >>> statistics = ActivationStatistics()
        >>> statistics.update(torch.arange(1000.0).unsqueeze(1))
        >>> abs(percentile_threshold(statistics, 50.0).item() - 500) < 1
        True
    """
    below = statistics.histogram.cumsum(1)
    positive = below[:, -1:]
    wanted = percent / 100 * statistics.samples - (statistics.samples - positive)
    wanted = torch.where(wanted > 0, wanted, percent / 100 * positive)
    first = (below >= wanted).int().argmax(1, keepdim=True)
    edge = statistics.centres.gather(1, first).squeeze(1) + statistics.range / statistics.BINS / 2
    return edge.clamp(max=statistics.maximum)


def mse_threshold(statistics: ActivationStatistics, transfer: Transfer) -> Tensor:
    r"""θ that minimises the squared error of the neuron's own transfer function.

    .. math::
        \theta^* = \arg\min_\theta \Big\| \tfrac{\theta}{T}
        \mathrm{clip}\big(\lfloor (aT + v_0)/\theta \rfloor, 0, \Gamma T\big) - a \Big\|^2

    searched per channel on a coarse, then a fine grid of (0, max a / Γ], with the same T, Γ and v0
    that will run (published searches leave out v0).

    Source: after Li et al., "A free lunch from ANN", ICML 2021; Γ as in Wang et al., 2025.

    Example:
        >>> statistics = ActivationStatistics()
        >>> statistics.update(torch.tensor([[0.25], [0.5], [1.0]]))
        >>> theta = mse_threshold(statistics, Transfer(time_steps=4, max_spikes=1))
        >>> 0.99 < theta.item() <= 1.0
        True
    """
    largest = statistics.maximum / transfer.max_spikes
    few = transfer.levels <= statistics.BINS / 4
    error = error_by_levels(statistics, transfer) if few else error_by_bins(statistics, transfer)

    def best(fractions: Tensor) -> Tensor:
        """The fraction of ``largest`` with the least error, per channel; fractions ``[K, C]``."""
        errors = [error((largest * fraction).clamp_min(1e-30)) for fraction in fractions]
        return fractions.gather(0, torch.stack(errors).argmin(0, keepdim=True)).squeeze(0)

    grid = torch.linspace(0.01, 1.0, 100, device=largest.device, dtype=largest.dtype)
    coarse = best(grid.unsqueeze(1).expand(-1, len(largest)))
    offsets = torch.linspace(-0.01, 0.01, 21, device=largest.device, dtype=largest.dtype).unsqueeze(1)
    return largest * best((coarse + offsets).clamp(1e-3, 1.0))


def error_by_bins(statistics: ActivationStatistics, transfer: Transfer) -> Callable[[Tensor], Tensor]:
    """Σ (φ(a) − a)² over the histogram, as a function of θ ``[C]``."""
    a, weight = statistics.centres, statistics.histogram
    return lambda theta: ((transfer(a, theta.unsqueeze(1)) - a).square() * weight).sum(1)


def error_by_levels(statistics: ActivationStatistics, transfer: Transfer) -> Callable[[Tensor], Tensor]:
    r"""The same less Σ a², from how many activations reach each level, and their sum.

    .. math::
        \sum_i (\phi(a_i) - a_i)^2 - a_i^2 = \frac{\theta}{T} \sum_k \Big[
        \frac{(2k - 1)\,\theta}{T} N_k - 2 A_k \Big], \qquad
        N_k = |\{i: \phi(a_i) \ge k\theta/T\}|, \quad A_k = \sum_{\phi(a_i) \ge k\theta/T} a_i

    A staircase of ΓT levels then costs ΓT look-ups, not one for each bin.
    """
    reached = levels_reached(statistics, transfer)
    level = torch.arange(1, transfer.levels + 1, device=statistics.range.device, dtype=torch.float64)

    def error(theta: Tensor) -> Tensor:
        quantum = theta.double().unsqueeze(1) / transfer.time_steps
        count, total = reached(theta)
        return quantum.squeeze(1) * ((2 * level - 1) * quantum * count - 2 * total).sum(1)

    return error


def levels_reached(
    statistics: ActivationStatistics, transfer: Transfer
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """How many activations reach each level, and their sum ``[C, ΓT]``, as a function of θ ``[C]``.

    The spikes of all activations in T steps are the sum of the numbers over the levels.
    """
    level = torch.arange(1, transfer.levels + 1, device=statistics.range.device, dtype=torch.float64)
    count, total = _tail_sums(statistics.histogram, statistics.centres)
    width = (statistics.range / statistics.BINS).double().clamp_min(1e-300).unsqueeze(1)

    def reached(theta: Tensor) -> tuple[Tensor, Tensor]:
        quantum = theta.double().unsqueeze(1) / transfer.time_steps
        # The first bin whose centre reaches level k.
        first = ((level - transfer.potential) * quantum / width - 0.5).ceil()
        first = first.clamp(0, statistics.BINS).long()
        return count.gather(1, first), total.gather(1, first)

    return reached


def _tail_sums(histogram: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """How many activations lie in the bins from each on, and their sum ``[C, BINS + 1]``."""
    both = torch.stack([histogram, histogram * centres])
    tails = both.flip(-1).cumsum(-1).flip(-1)
    count, total = torch.nn.functional.pad(tails, (0, 1))
    return count, total


def gaussian_threshold(statistics: ActivationStatistics, transfer: Transfer) -> Tensor:
    r"""θ with the least mean squared error if the pre-activation is N(μ, σ²): a fixed point.

    With n = ΓT levels and :math:`u_i = ((2i-1)\theta_{max}/(2n) - \mu)/(\sqrt2\sigma)`, iterate
    :math:`\theta_{max} \leftarrow k\,\theta_{max}` with

    .. math::
        k = \frac{\mu}{\theta_{max}} \frac{1 - \frac1n \sum \mathrm{erf}(u_i)}{D}
          + \frac{\sigma}{\theta_{max}\sqrt{\pi/2}} \frac{\frac1n \sum e^{-u_i^2}}{D}, \qquad
        D = 1 - \sum \frac{2i-1}{n^2} \mathrm{erf}(u_i)

    until k = 1; then θ = θ_max / Γ. Needs mean and variance only. It is that of a ReLU and
    :math:`v_0 = \theta/2`, as published; other potentials and slopes are not in it.

    Source: Huang et al., "Differential coding for training-free ANN-to-SNN conversion", 2025.

    Example:
        >>> round(gaussian_fixed_point(torch.tensor(0.0), torch.tensor(1.0), 4).item(), 3)
        2.135
    """
    levels = int(transfer.levels)
    theta_max = gaussian_fixed_point(statistics.mean, statistics.std, levels)
    theta_max = theta_max.clamp(max=min(statistics.upper, torch.finfo(theta_max.dtype).max))
    return (theta_max / transfer.max_spikes).to(statistics.maximum.dtype)


def gaussian_fixed_point(mean: Tensor, std: Tensor, levels: int) -> Tensor:
    """θ_max of :func:`gaussian_threshold` for N(mean, std²) and n = ``levels``."""
    mean, std = mean.double().unsqueeze(-1), std.double().clamp_min(1e-12).unsqueeze(-1)
    odd = 2 * torch.arange(1, levels + 1, device=mean.device, dtype=torch.float64) - 1

    def update(theta: Tensor) -> Tensor:
        u = (odd * theta / (2 * levels) - mean) / (math.sqrt(2) * std)
        denominator = 1 - (odd / levels**2 * u.erf()).sum(-1, keepdim=True)
        by_mean = mean * (1 - u.erf().mean(-1, keepdim=True))
        by_std = std / math.sqrt(math.pi / 2) * (-u.square()).exp().mean(-1, keepdim=True)
        return (by_mean + by_std) / denominator.clamp_min(1e-12)

    theta = (mean + 3 * std).clamp_min(std)
    for _ in range(200):
        # It converges linearly, the slower the more levels there are: extrapolate (Aitken's Δ²),
        # forward and not far, so that no other fixed point is reached.
        first = update(theta)
        second = update(first)
        step = second - first
        jump = -step.square() / (second - 2 * first + theta)
        forward = jump.isfinite() & (jump.sign() == step.sign())
        limit = 0.05 * second
        jump = torch.where(forward, jump, 0.0).clamp(-limit, limit)
        previous, theta = theta, second + jump
        if torch.allclose(theta, previous, rtol=1e-9, atol=0):
            break
    return theta.squeeze(-1)


def trained_threshold(statistics: ActivationStatistics, transfer: Transfer) -> Tensor:
    r"""θ = k/Γ for an activation with an upper bound k: what training has fitted is taken as it is.

    Source: Ding et al., "Optimal ANN-SNN conversion for fast and accurate inference in deep spiking
    neural networks", IJCAI 2021; Bu et al. (QCFS), ICLR 2022.

    Example:
        >>> statistics = ActivationStatistics(channel_wise=False, upper=6.0)
        >>> statistics.update(torch.tensor([[1.0], [2.0]]))
        >>> trained_threshold(statistics, Transfer(8, max_spikes=2)).tolist()
        [3.0]
    """
    if math.isinf(statistics.upper):
        raise ValueError(
            "threshold='trained' wants activations with an upper bound (RateNorm, QCFS, ReLU6, "
            "Hardtanh(0, k), clamp(0, k)), and this one has none; use threshold='mse' for a plain ReLU"
        )
    return torch.full_like(statistics.maximum, statistics.upper / transfer.max_spikes)


THRESHOLD_RULES: dict[str, Callable[[ActivationStatistics, Transfer], Tensor]] = {
    "max": max_threshold,
    "mse": mse_threshold,
    "gaussian": gaussian_threshold,
    "trained": trained_threshold,
}


def parse_percentile(rule: str) -> float | None:
    """The number in a rule such as ``"99.9%"``, else None."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", rule)
    return float(match[1]) if match and 0 < float(match[1]) <= 100 else None


def fit_threshold(statistics: ActivationStatistics, rule: str, transfer: Transfer) -> Tensor:
    """Apply a rule by name; a bounded activation and dead channels get what they need.

    ReLU6 and the like saturate at k, so θ ≤ k/Γ keeps their clip exactly. A channel that never
    fired in calibration gets the median threshold of the layer's other channels (1 if there are
    none): finite, positive, and on the scale of its neighbours.

    Args:
        statistics: of the layer's activations.
        rule: a key of ``THRESHOLD_RULES`` or a percentile such as ``"99.9%"``.
        transfer: T, Γ and v0 that will run.

    Returns:
        θ per channel ``[C]``, or ``[1]`` for the layer.

    Raises:
        ValueError: for a bounded activation at Γ = ∞, and an unbounded one with ``"trained"``.

    Example:
        >>> statistics = ActivationStatistics()
        >>> statistics.update(torch.tensor([[2.0, -1.0, 4.0]]))
        >>> fit_threshold(statistics, "max", Transfer(8)).tolist()
        [2.0, 2.0, 4.0]
    """
    if math.isinf(transfer.max_spikes) and math.isfinite(statistics.upper):
        raise ValueError(
            f"max_spikes=inf never saturates, but the activation does, at {statistics.upper:.4g}; give "
            "it a finite one, as in max_spikes={'layer': 4, '*': math.inf}"
        )
    percent = parse_percentile(rule)
    if percent is not None:
        theta = percentile_threshold(statistics, percent)
    else:
        theta = THRESHOLD_RULES[rule](statistics, transfer)
    if rule == "trained":
        return theta  # also for channels that calibration did not reach
    theta = theta.clamp(max=statistics.upper / transfer.max_spikes)
    alive = theta[(theta > 0) & ~statistics.dead]
    fallback = alive.median() if len(alive) else theta.new_tensor(1.0)
    return torch.where((theta > 0) & ~statistics.dead, theta, fallback)
