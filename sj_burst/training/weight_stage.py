"""Stage 1 of training for fast inference: the weights."""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from ..utils.checks import check_count, check_network, check_positive, check_range
from ..utils.copying import copied
from ..utils.inference import device_of
from ..utils.inputs import Inputs, call
from .epoch import Writer, fitting, has_class, labelled, train_epoch
from .rate_norm import RateNorm
from .run import Run, fingerprints

__all__ = ["train_rates"]


def train_rates(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    epochs: int = 100,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    checkpoint: str | os.PathLike[str] | None = None,
    writer: Writer | None = None,
    progress: bool = True,
) -> nn.Module:
    """Stage 1: train the weights by cross entropy while M runs and the scale p stays fixed.

    SGD whose learning rate falls to a tenth after half, and again after three quarters of the
    epochs. Networks of QCFS activations train as well, their bounds with the weights.

    Args:
        model: a network of bounded activations, see :func:`replace_relu`; stays as it is.
        loader: ``(input, label)`` batches; labels of no class (−100, say) do not count, but M
            moves with their images, too.
        epochs: number of passes over the loader.
        lr: learning rate at the start.
        momentum: of SGD.
        weight_decay: of SGD.
        checkpoint: file written after every epoch; if it exists, the run goes on from there, and the
            weights of ``model`` do not matter.
        writer: TensorBoard writer, or anything with ``add_scalar``.
        progress: show a progress bar.

    Returns:
        A trained copy in eval mode, on the device of ``model``.

    Raises:
        ValueError: if the loss becomes NaN, no label is of a class, or the checkpoint is of another
            run.
        TypeError: for a loader without labels.

    Source: Ding et al., IJCAI 2021.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 4), RateNorm(), nn.Linear(4, 2))
        >>> data = [(torch.rand(8, 2), torch.randint(2, (8,)))]
        >>> trained = train_rates(net, data, epochs=1, progress=False)
        >>> trained[1].maximum == net[1].maximum
        tensor(False)
    """
    check_network(model=model)
    check_count(epochs=epochs)
    check_positive(lr=lr)
    check_range(0, 1, momentum=momentum)
    check_range(0, math.inf, weight_decay=weight_decay)
    net = copied(model).train()
    scales = {id(m.scale_logit) for m in net.modules() if isinstance(m, RateNorm)}
    parameters = [p for p in net.parameters() if p.requires_grad and id(p) not in scales]
    optimizer = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)
    milestones = [math.ceil(epochs / 2), math.ceil(3 * epochs / 4)]
    schedule = MultiStepLR(optimizer, milestones, gamma=0.1)
    settings = dict(stage=1, epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay)
    start = fingerprints({"network": repr(net)})  # of its weights, those of the file count
    run = Run(checkpoint, settings, loader, net, optimizer, schedule, start)

    def loss_of(x: Inputs, target: Tensor) -> Tensor | None:
        out = call(net, x.value)
        target = fitting(target, out)
        return F.cross_entropy(out, target) if has_class(target) else None

    for epoch in range(run.epoch + 1, epochs + 1):
        pairs = labelled(loader, "loader", device_of(net))
        loss = train_epoch(pairs, loss_of, optimizer, f"train {epoch}/{epochs}", progress)
        schedule.step()
        if writer is not None:
            writer.add_scalar("stage1/loss", loss, epoch)
        run.save(epoch)
    return net.eval()
