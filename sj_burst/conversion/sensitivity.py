"""How much a network's answer depends on each of its activations, and how large these are."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..graph.trace import activation_names
from ..modules.pooling import MAX_POOLS
from ..utils import distributed
from ..utils.inputs import Inputs, bind
from ..utils.outputs import tensors_of
from .assemble import slope_below_zero

__all__ = ["Sensitivity", "measure_sensitivity"]

_TEMPERATURE = 4.0
_LABELS_SEED = 0  # of the labels and projections that are drawn


@dataclass
class Sensitivity:
    r"""What calibration images tell of every activation a of a network.

    Attributes:
        size: mean of \|a\| over the samples ``[1, ...]``; of what max-pooling returns, too. Of leaky
            activations the mean of \|z\|, which their spikes stand for.
        weight: mean of :math:`(\partial \ell / \partial a)^2` where a is not zero, by channel ``[C]`` or
            of the layer ``[1]``.
        samples: how many images there were.
    """

    size: dict[str, Tensor] = field(default_factory=dict)
    weight: dict[str, Tensor] = field(default_factory=dict)
    samples: int = 0


def measure_sensitivity(
    gm: fx.GraphModule,
    inputs: Iterable[Inputs],
    device: torch.device | str,
    *,
    channel_wise: bool = True,
) -> Sensitivity:
    r"""One forward and one backward pass over the images of all processes.

    ℓ is the log-likelihood of a label that is drawn from the network's own answer at a temperature of
    four (at one, training images are nearly certain, and the few that are not decide alone), so that

    .. math::
        \mathbb{E}\Big(\frac{\partial \ell}{\partial a}\Big)^2

    is the Fisher information: what an error of a costs in divergence from that answer. If the answer is
    not one tensor of class scores ``[N, C, ...]``, ℓ is its product with random signs.

    Args:
        gm: a standardized graph, with an activation module for each neuron.
        inputs: batches of images.
        device: where the graph runs.
        channel_wise: one weight per channel.

    Raises:
        ValueError: if the outputs take no gradient.

    Source: after Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018,
    which weighs errors so; the use for thresholds is derived here.
    """
    names = activation_names(gm)
    pools = [name for name, module in gm.named_modules() if isinstance(module, MAX_POOLS)]
    generator = torch.Generator().manual_seed(_LABELS_SEED)
    found, squares, active = Sensitivity(), dict[str, Any](), dict[str, Any]()
    for x in inputs:
        found.samples += len(x)
        with torch.enable_grad(), _Probed(gm, names, pools) as (values, sizes, probes):
            answer = gm(*bind(gm, x.to(device).value).values())
            likelihood = log_likelihood(answer, generator)
        if not likelihood.requires_grad:
            raise ValueError(
                "threshold='rate_distortion' and burst_allocation='sensitivity' take gradients, and the "
                "network's outputs have none (detached?); use other options, or return them undetached"
            )
        asked = [probes[name] for name in names]
        gradients = torch.autograd.grad(likelihood, asked, allow_unused=True)
        for name, size in sizes.items():
            found.size[name] = found.size.get(name, 0) + size.double().sum(0, keepdim=True)
        for name, gradient in zip(names, gradients, strict=True):
            on = values[name] != 0
            square = torch.zeros_like(on, dtype=torch.float64)
            square = square if gradient is None else torch.where(on, gradient.double().square(), square)
            squares[name] = squares.get(name, 0) + _total(square, channel_wise)
            active[name] = active.get(name, 0) + _total(on.double(), channel_wise)
    found.samples = int(distributed.total(torch.tensor(found.samples)))
    total = distributed.total
    found.size = {name: total(size) / found.samples for name, size in found.size.items()}
    found.weight = {name: _ratio(total(squares[name]), total(active[name])) for name in names}
    if not any(weight.any() for weight in found.weight.values()):  # a network sure of all its answers
        found.weight = {name: torch.ones_like(weight) for name, weight in found.weight.items()}
    return found


class _Probed(ExitStack):
    """While open, activations are noted, and get a zero added whose gradient is theirs."""

    def __init__(self, gm: fx.GraphModule, names: list[str], pools: list[str]) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}
        self.sizes: dict[str, Tensor] = {}  # of what spikes stand for
        self.probes: dict[str, Tensor] = {}
        for name in (*names, *pools):
            hook = self._hook(name, probe=name in names)
            self.callback(gm.get_submodule(name).register_forward_hook(hook).remove)

    def _hook(self, name: str, probe: bool) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, inputs: Any, out: Tensor) -> Tensor | None:
            leaky = slope_below_zero(module) is not None
            self.sizes[name] = (inputs[0] if leaky else out).detach().abs()
            self.values[name] = out.detach()
            if not probe:
                return None
            self.probes[name] = torch.zeros_like(out, requires_grad=True)
            return out + self.probes[name]

        return hook

    def __enter__(self) -> Any:
        super().__enter__()
        return self.values, self.sizes, self.probes


def log_likelihood(answer: Any, generator: torch.Generator) -> Tensor:
    """ℓ of :func:`measure_sensitivity`, summed over the samples.

    Example:
        >>> scores = torch.zeros(1, 2)  # both labels are as likely
        >>> round(log_likelihood(scores, torch.Generator()).item(), 3)
        -0.693
    """
    outs = [t for t in tensors_of(answer).values() if t.is_floating_point()]
    if len(outs) == 1 and outs[0].dim() > 1 and outs[0].shape[1] > 1:
        scores = outs[0].movedim(1, -1).flatten(0, -2) / _TEMPERATURE
        chances = scores.detach().softmax(-1).double().cpu()
        labels = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        return -F.cross_entropy(scores, labels.to(scores.device), reduction="sum")
    total = torch.zeros(())
    for out in outs:
        signs = 2 * torch.randint(0, 2, out.shape, generator=generator) - 1
        total = total.to(out.device) + (out * signs.to(out)).sum()
    return total


def _total(x: Tensor, channel_wise: bool) -> Tensor:
    """Sum of the values of every channel ``[C]``, or of all ``[1]``."""
    return x.movedim(1, 0).flatten(1).sum(1) if channel_wise else x.sum().view(1)


_PRIOR = 0.01  # share of a layer's mean in that of each channel, for those that are hardly ever active


def _ratio(squares: Tensor, active: Tensor) -> Tensor:
    mean, weight = squares.sum() / active.sum().clamp_min(1), _PRIOR * active.mean().clamp_min(1e-30)
    return (squares + weight * mean) / (active + weight)
