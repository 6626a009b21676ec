"""Rates of rate norm layers: recorded in a forward pass, measured over a loader."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.inference import device_of, eval_mode, forward_hooks
from ..utils.inputs import call
from ..utils.labels import correct_share
from .epoch import NO_CLASS, fitting, labelled
from .rate_loss import EPSILON, output_rate
from .rate_norm import rate_norms

__all__ = ["evaluate_rates", "measured_rates", "record_rates"]


@contextmanager
def record_rates(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the rate y/θ of every rate norm layer, in the order of execution.

    The list grows with each forward pass: clear it between two.

    Raises:
        ValueError: if there is no rate norm layer.

    Example:
        >>> from sj_burst.training import RateNorm
        >>> net = nn.Sequential(RateNorm(), RateNorm())
        >>> with record_rates(net) as rates:
        ...     _ = net(torch.tensor([-1.0, 4.0]))
        >>> [rate.tolist() for rate in rates]
        [[0.0, 1.0], [0.0, 1.0]]
    """
    rates: list[Tensor] = []

    def keep(name: str, layer: Any, x: Any, out: Tensor) -> None:
        rates.append(out / layer.bound)

    with forward_hooks(rate_norms(model), keep):
        yield rates


@torch.no_grad()
def evaluate_rates(model: nn.Module, loader: Iterable[Any]) -> tuple[float, list[float]]:
    """Accuracy in [0, 1], and Ω of every layer over the whole loader, the output last.

    Labels of no class (−100, say) do not count in the accuracy.

    Args:
        model: a network with rate norm layers, which runs in eval mode where it is.
        loader: ``(input, label)`` batches.

    Raises:
        ValueError: for an empty loader, one without a label of a class, or a network without rate
            norm layers.
        TypeError: for a loader without labels.

    Example:
        >>> from sj_burst.training import RateNorm
        >>> data = [(torch.tensor([[0.0, 9.0]]), torch.tensor([1]))]
        >>> accuracy, omegas = evaluate_rates(nn.Sequential(RateNorm()), data)
        >>> accuracy, [round(o, 3) for o in omegas]
        (1.0, [1.0, 1.0])
    """
    return measured_rates(model, loader, "loader")


def measured_rates(model: nn.Module, loader: Iterable[Any], name: str) -> tuple[float, list[float]]:
    """:func:`evaluate_rates` with a loader that its caller knows by another name."""
    correct, samples = 0.0, 0
    sums: Any = 0.0  # Σ r and Σ r² of each layer
    with eval_mode(model), record_rates(model) as rates:
        for x, target in labelled(loader, name, device_of(model)):
            rates.clear()
            logits = call(model, x.value)
            right, known = correct_share(logits, fitting(target, logits))
            correct, samples = correct + right.sum().item(), samples + int(known.sum())
            layers = [rate.double() for rate in (*rates, output_rate(logits))]
            sums = sums + torch.stack([torch.stack([r.sum(), r.square().sum()]) for r in layers])
    if samples == 0:
        raise ValueError(NO_CLASS.format(name=name))
    return correct / samples, (sums[:, 0] / (sums[:, 1] + EPSILON)).tolist()
