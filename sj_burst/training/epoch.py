"""One pass over a loader of labelled batches, with guarded steps of the optimizer."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..utils.inputs import Inputs
from ..utils.labels import IGNORED, check_labels
from ..utils.loader import batches, check_loader

__all__ = ["NO_CLASS", "Writer", "fitting", "has_class", "labelled", "step", "train_epoch"]

NO_CLASS = (
    "no label that {name} yields is of a class; nothing can be learned or measured from −100 or labels "
    "outside of the classes"
)


class Writer(Protocol):
    """Anything with ``add_scalar``, such as TensorBoard's ``SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Record one number."""


def labelled(
    loader: Iterable[Any],
    name: str,
    device: torch.device | str,
    time_dim: int | None = None,
    time_steps: int | None = None,
) -> Iterator[tuple[Inputs, Tensor]]:
    """Inputs and class labels of all batches, on a device.

    Raises:
        TypeError: if the loader can be read only once, or yields no labels.
        ValueError: if there is no batch.
    """
    check_loader(loader, name)
    for x, target in batches(loader, name, time_dim, time_steps):
        if not isinstance(target, Tensor) or target.is_floating_point():
            raise TypeError(f"{name} must yield (input, class labels) batches; the labels are missing")
        yield x.to(device), target.to(device).long()


def fitting(target: Tensor, out: Any) -> Tensor:
    """Labels ``[N, ...]`` for scores ``[N, C, ...]``, with −100 for pixels of no class.

    Raises:
        TypeError: if the network returns no tensor.
        ValueError: names both shapes, or the range of labels.
    """
    if not isinstance(out, Tensor):
        raise TypeError(
            f"the network returns a {type(out).__name__}; train one that returns class scores "
            "[N, C, ...] alone, in a module that takes them from its outputs"
        )
    if out.dim() < 2 or out[:, 0].shape != target.shape:
        raise ValueError(
            f"labels {list(target.shape)} do not fit the output {list(out.shape)}; the network must "
            "return class scores [N, C, ...] and the loader yield labels [N, ...]"
        )
    check_labels(target, out.shape[1])
    return target.where((target >= 0) & (target < out.shape[1]), IGNORED)


def has_class(target: Tensor) -> bool:
    """Whether any of the labels counts."""
    return bool((target != IGNORED).any())


def step(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """One step of the optimizer; returns the loss.

    Raises:
        ValueError: if the loss or a gradient is NaN or infinite, before anything is changed.
    """
    optimizer.zero_grad()
    loss.backward()
    # Spikes hide a NaN current from the loss, but not from the gradient.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, math.inf)
    if not (loss.isfinite() and norm.isfinite()):
        raise ValueError(
            f"the loss is {loss.item()} and the norm of its gradient {norm.item()}; lower lr, and "
            "check that the images have no NaN. The network that was passed in is as it was"
        )
    optimizer.step()
    return loss.item()


def train_epoch(
    pairs: Iterable[tuple[Inputs, Tensor]],
    loss_of: Callable[[Inputs, Tensor], Tensor | None],
    optimizer: torch.optim.Optimizer,
    title: str,
    progress: bool,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> float:
    """One step for every batch that has a loss; returns the mean loss.

    Args:
        pairs: inputs and labels, see :func:`labelled`.
        loss_of: the loss of a batch; ``None`` leaves out a batch of which no label is of a class.
        optimizer: what makes the steps.
        title: of the progress bar.
        progress: show it.
        schedule: of the learning rate, if it changes from step to step.

    Raises:
        ValueError: if a loss becomes NaN, or no batch has one.
    """
    losses, due = [], 0
    for x, target in tqdm(pairs, title, disable=not progress, leave=False):
        loss = loss_of(x, target)
        if loss is not None:
            losses.append(step(loss, optimizer))
        due += 1
        if schedule is not None and losses:  # the optimizer comes first
            for _ in range(due):
                schedule.step()
            due = 0
    if not losses:
        raise ValueError(NO_CLASS.format(name="loader"))
    return sum(losses) / len(losses)
