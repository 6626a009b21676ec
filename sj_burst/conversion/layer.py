"""What a fit sees of one layer."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.neuron import BurstIFNode, mean_output
from ..modules.temporal import TimeFold, time_mean

__all__ = ["Layer", "add_bias", "channel_sum"]


@dataclass
class Layer:
    """One layer during the sweep: what reaches it, and what the ANN has in its place.

    Attributes:
        name: of the neuron, or of the affine module that ends the network.
        neuron: ``None`` for the last affine module.
        affine: the module whose output is the neuron's input (but for a residual), if it has no
            other use; the sweep evaluates it again after its parameters changed.
        evaluate: returns per batch the input current ``[T·N, ...]``, or ``[N, ...]`` if constant in
            time, of the affine module as it is now.
        inputs: per batch the mean over T of ``affine``'s input ``[N, ...]``.
        wanted: per batch what ``affine`` should return for it: the ANN's pre-activation less the
            mean of the residual ``[N, ...]``.
        residuals: per batch that mean, or a zero.
        targets: per batch the ANN's activation ``[N, ...]``.
        time_steps: T.
        device: where the network runs; the values above are on the CPU.
        bounded: whether the activation has an upper bound, which fixes the threshold.
        clipped: whether what is below zero is as good as zero: a ReLU of the read-out follows.
        unit: what a count of ``affine``'s input weighs; ``None`` if it is not made of counts.
        gram: of ``affine``'s inputs, once it was asked for.
    """

    name: str
    neuron: BurstIFNode | None
    affine: Any
    evaluate: Callable[[], Sequence[Tensor]]
    inputs: Sequence[Tensor]
    wanted: Sequence[Tensor]
    residuals: Sequence[Tensor]
    targets: Sequence[Tensor]
    time_steps: int
    device: torch.device
    bounded: bool = False
    clipped: bool = False
    unit: Tensor | None = None
    gram: Tensor | None = None

    @property
    def one_sided(self) -> bool:
        """Whether only what is above zero counts; a leaky activation tells its input on either side."""
        return self.clipped if self.neuron is None else self.neuron.negative_slope is None

    def rates(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean weighted output over T, and the ANN's activation, of every batch."""
        for z, a in zip(self.evaluate(), self.targets, strict=True):
            z, fold = z.to(self.device), TimeFold(self.time_steps, len(a))
            rate = time_mean(z, fold) if self.neuron is None else mean_output(self.neuron, z, fold)
            a = a.to(self.device)
            yield (rate.relu(), a.relu()) if self.clipped else (rate, a)

    def mean_error(self, dim: int = 1, images: float = math.inf) -> Tensor:
        """Mean of target minus rate, of each channel.

        Args:
            dim: that of the channels.
            images: how many are enough, of the first.
        """
        total: Any = 0.0
        values = seen = 0
        for phi, a in self.rates():
            error = a - phi
            total = total + channel_sum(error, dim)
            values += a.numel() // total.numel()
            seen += len(a)
            if seen >= images:
                break
        return (total / values).to(error.dtype)


def channel_sum(x: Tensor, dim: int = 1) -> Tensor:
    """Sum over everything but the channels ``[C]``, in single precision or better; of ``[N]`` a scalar.

    At once: in channels-last memory a sum over the samples alone takes tens of times as long.
    """
    others = [0, *(d for d in range(1, x.dim()) if d != dim % x.dim())]
    return x.sum(others, dtype=torch.promote_types(x.dtype, torch.float32))


def add_bias(module: Any, correction: Tensor) -> None:
    """Add to the bias of an affine module, which may have none yet."""
    bias = module.bias.detach() + correction if module.bias is not None else correction
    module.bias = nn.Parameter(bias.detach().clone())
