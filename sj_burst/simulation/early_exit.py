"""Leaving early: samples whose answer is clear need no more time steps."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor

from ..network import SpikingNetwork, check_converted
from ..utils import distributed
from ..utils.checks import check_count, check_range
from ..utils.inference import eval_mode
from ..utils.inputs import Inputs
from ..utils.labels import IGNORED, check_labels, is_label
from ..utils.loader import batches, check_loader
from ..utils.outputs import steps_of
from .plan import steps_at_once
from .steps import RunningAnswer

__all__ = ["confidence_margin", "fit_early_exit"]

_MARGINS = torch.linspace(0, 1, 401)


def confidence_margin(output: Tensor) -> Tensor:
    r"""Difference of the two largest class probabilities.

    .. math::
        p_{(1)} - p_{(2)}, \qquad p = \mathrm{softmax}(\bar o)

    Args:
        output: mean output so far ``[N, classes]``, as logits.

    Returns:
        ``[N]``, in [0, 1].

    Raises:
        ValueError: if the output is not ``[N, classes]`` with at least two classes.

    Example:
        >>> confidence_margin(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).tolist()
        [0.0, 1.0]
    """
    if output.dim() != 2 or output.shape[1] < 2:
        raise ValueError(
            f"early exit needs class scores [N, classes ≥ 2], the network returns "
            f"{tuple(output.shape)}; leave early_exit out"
        )
    best = output.float().softmax(1).topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


@torch.no_grad()
def fit_early_exit(
    snn: SpikingNetwork,
    loader: Iterable[Any],
    time_steps: int,
    max_loss: float = 0.1,
    *,
    output: Any = None,
    time_dim: int | None = None,
) -> float:
    r"""The smallest confidence margin at which leaving costs no more than ``max_loss`` points.

    A sample leaves after the first step t at which :func:`confidence_margin` reaches the margin; the
    loss is the accuracy (percent) after T steps less the accuracy with exits. The margin is that of the
    mean output before the read-out, if it has the answer's shape. Every larger margin
    loses no more than ``max_loss`` either, so the choice is not a lucky dip. Our own rule.

    Args:
        snn: a converted network; its state is reset before and after.
        loader: training batches ``(input, target)``; not the test data.
        time_steps: T.
        max_loss: points of accuracy that may be lost.
        output: which tensor is the answer, as for :func:`sj_burst.simulate`.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`.

    Returns:
        A margin in [0, 1] for ``simulate(..., early_exit=margin)``; 1 if only that is safe.

    Raises:
        ValueError: if T < 1, the loader is empty, a batch has no targets, or labels of no class,
            ``max_loss`` is negative, or the output is no class score.
        TypeError: for a network that was not converted, or a loader that cannot be read.

    Example:
        >>> from sj_burst import convert
        >>> ann = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> data = [(torch.rand(16, 3), torch.zeros(16, dtype=torch.long))]
        >>> snn = convert(ann, data, progress=False)
        >>> 0 <= fit_early_exit(snn, data, time_steps=8) <= 1
        True
    """
    check_loader(loader)
    check_converted(snn, "fit_early_exit", folded=True)
    check_count(time_steps=time_steps)
    check_range(0, math.inf, max_loss=max_loss)
    early, full, samples = torch.zeros(len(_MARGINS)), torch.zeros(()), torch.zeros(())
    try:
        with eval_mode(snn):
            for x, target in batches(loader, "loader", time_dim, time_steps):
                if not is_label(target, (len(x),)):
                    raise ValueError("fit_early_exit needs (input, class labels [N]) batches")
                answers, margins = _running(snn, x.to(snn.device), time_steps, output)
                check_labels(target, answers.shape[2])
                hits = (answers.argmax(2) == target.to(answers.device)).float().cpu()  # [T, N]
                early += _hits_with_exits(hits, margins)
                full += hits[-1].sum()
                samples += (target != IGNORED).sum().cpu()
    finally:
        reset_net(snn)
    early, full, samples = (distributed.total(v) for v in (early, full, samples))
    safe = 100 * (full - early) / samples.clamp_min(1) <= max_loss
    safe[-1] = True
    unsafe = (~safe).nonzero()
    return _MARGINS[int(unsafe[-1]) + 1 if len(unsafe) else 0].item()


def _running(snn: SpikingNetwork, x: Inputs, time_steps: int, output: Any) -> tuple[Tensor, Tensor]:
    """Answers ``[T, N, ...]`` and confidence margins ``[T, N]`` after every step."""
    running, answers, margins = RunningAnswer(snn, output), [], []
    with snn.present(x) as shown:
        for returned in shown.chunks(time_steps, steps_at_once(len(x))):
            for out in steps_of(returned):
                running.add(out)
                answers.append(running.value)
                margins.append(confidence_margin(running.scores))
    return torch.stack(answers), torch.stack(margins).cpu()


def _hits_with_exits(hits: Tensor, margins: Tensor) -> Tensor:
    """Number of right answers for every margin in the grid, given both after every step ``[T, N]``."""
    reached = margins.unsqueeze(0) >= _MARGINS.view(-1, 1, 1)  # [margins, T, N]
    reached[:, -1] = True
    exits = reached.int().argmax(1, keepdim=True)
    return hits.expand(len(_MARGINS), -1, -1).gather(1, exits).sum((1, 2))
