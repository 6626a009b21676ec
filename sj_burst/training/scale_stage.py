"""Stage 2 of training for fast inference: the scale of the thresholds."""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..utils.checks import check_count, check_network, check_positive, check_range
from ..utils.copying import copied
from ..utils.inference import device_of
from ..utils.inputs import Inputs, call
from .candidates import Candidate, non_dominated
from .epoch import Writer, labelled, train_epoch
from .rate_loss import rate_inference_loss
from .rate_measure import measured_rates, record_rates
from .rate_norm import lock_max, rate_norms, share_scale
from .run import Run, fingerprints

__all__ = ["train_threshold_scale"]


def train_threshold_scale(
    model: nn.Module,
    teacher: nn.Module,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    *,
    lam: float = 0.1,
    acc_tolerance: float = 0.1,
    share_scale: bool = True,
    epochs: int = 50,
    lr: float = 1e-3,
    momentum: float = 0.9,
    checkpoint: str | os.PathLike[str] | None = None,
    writer: Writer | None = None,
    progress: bool = True,
) -> list[Candidate]:
    """Stage 2: lock M, freeze the weights, and train the scale p alone by the rate inference loss.

    SGD whose learning rate falls to a tenth along a cosine. After every epoch accuracy and Ω are
    measured; training ends when the accuracy is below the best one less ``acc_tolerance``.

    Args:
        model: a network with rate norm layers, trained in stage 1; stays as it is.
        teacher: usually ``model`` too; a frozen copy of it is used.
        train_loader: ``(input, label)`` batches of training images.
        val_loader: training images held out, on which candidates are measured.
        lam: λ ≥ 0, weight of Ω against the agreement with the teacher.
        acc_tolerance: the accuracy that may be given up, in [0, 1].
        share_scale: one scale for all layers, as recommended, else one for each.
        epochs: at most so many passes over ``train_loader``.
        lr: learning rate at the start.
        momentum: of SGD.
        checkpoint: file written after every epoch; if it exists, the run goes on from there, with the
            networks that it was started from.
        writer: TensorBoard writer, or anything with ``add_scalar``.
        progress: show a progress bar.

    Returns:
        The non-dominated candidates by falling Ω, ``model`` being among those considered, with the mean
        of its scales for all layers if ``share_scale``.
        ``model.load_state_dict(candidate.state_dict)`` gives the network to convert with
        ``threshold="trained"``.

    Raises:
        ValueError: if the loss becomes NaN, the network has no rate norm layer, no label of
            ``val_loader`` is of a class, or the checkpoint is of another run or network.
        TypeError: for a loader without labels.

    Source: Ding et al., IJCAI 2021. In the published script teacher and student are one network, so
    that the cosine has no gradient; here the teacher is frozen, as the article has it.

    Example:
        >>> from sj_burst.training import RateNorm
        >>> net = nn.Sequential(nn.Linear(2, 4), RateNorm(), nn.Linear(4, 2))
        >>> data = [(torch.rand(8, 2), torch.randint(2, (8,)))]
        >>> found = train_threshold_scale(net, net, data, data, epochs=2, progress=False)
        >>> found[0].name.startswith("lam0.1_acc")
        True
    """
    check_network(model=model, teacher=teacher)
    check_count(epochs=epochs)
    check_positive(lr=lr)
    check_range(0, math.inf, lam=lam)
    check_range(0, 1, momentum=momentum, acc_tolerance=acc_tolerance)
    teacher = copied(teacher).eval().requires_grad_(False)
    student, scales = _student(model, share_scale)
    optimizer = torch.optim.SGD(scales, lr, momentum)
    schedule = CosineAnnealingLR(optimizer, epochs, eta_min=lr / 10)
    settings = dict(
        **dict(stage=2, lam=lam, acc_tolerance=acc_tolerance, share_scale=share_scale),
        **dict(epochs=epochs, lr=lr, momentum=momentum),
    )
    start = fingerprints(nn.ModuleDict({"model": student, "teacher": teacher}).state_dict())
    run = Run(checkpoint, settings, train_loader, student, optimizer, schedule, start)
    frozen = {name: value.detach().clone() for name, value in student.state_dict().items()}
    candidates = [Candidate(**kept) for kept in run.extra.get("candidates", [])]

    def measure(epoch: int) -> float:
        """Accuracy now; the network becomes a candidate."""
        nonlocal candidates
        accuracy, omegas = measured_rates(student, val_loader, "val_loader")
        new = Candidate(lam, accuracy, sum(omegas) / len(omegas), epoch, _snapshot(student, frozen))
        candidates = non_dominated([*candidates, new])
        if writer is not None:
            writer.add_scalar("stage2/accuracy", accuracy, epoch)
            writer.add_scalar("stage2/omega", new.omega, epoch)
        return accuracy

    def save(epoch: int, finished: bool) -> None:
        run.save(epoch, candidates=[vars(c) for c in candidates], finished=finished)

    def loss_of(x: Inputs, _: Tensor) -> Tensor:
        with record_rates(student) as rates:
            logits = call(student, x.value)
        return rate_inference_loss(logits, call(teacher, x.value), rates, lam)

    if not candidates:
        measure(0)
        save(0, finished=False)
    while run.epoch < epochs and not run.extra["finished"]:
        epoch = run.epoch + 1
        pairs = labelled(train_loader, "train_loader", device_of(student))
        train_epoch(pairs, loss_of, optimizer, f"scale {epoch}/{epochs}", progress)
        schedule.step()
        lost = measure(epoch) < max(c.accuracy for c in candidates) - acc_tolerance
        save(epoch, finished=lost)
    return candidates


def _student(model: nn.Module, shared: bool) -> tuple[nn.Module, list[nn.Parameter]]:
    """A copy in eval mode of which only the scales learn."""
    student = copied(model).eval().requires_grad_(False)
    share_scale(lock_max(student), shared)
    unique = {id(m.scale_logit): m.scale_logit for m in rate_norms(student).values()}
    for scale in unique.values():
        scale.requires_grad_(True)
    return student, list(unique.values())


def _snapshot(student: nn.Module, frozen: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict; tensors that stage 2 does not change are not copied again."""
    state = student.state_dict()
    return {
        name: state[name].detach().clone() if name.endswith("scale_logit") else value
        for name, value in frozen.items()
    }
