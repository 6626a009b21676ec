"""Two-stage training for fast inference: weights first, then the scale of the thresholds."""

import copy
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..utils.checks import check_count, check_network, check_positive, check_range
from ..utils.labels import correct_share
from .rate_norm import RateNorm, lock_max, rate_norms, share_scale
from .run import Run, Writer, fitting, labelled, step

__all__ = [
    "Candidate",
    "evaluate_rates",
    "non_dominated",
    "omega",
    "output_rate",
    "rate_inference_loss",
    "record_rates",
    "train_rates",
    "train_threshold_scale",
]

EPSILON = 1e-5


def omega(rate: Tensor) -> Tensor:
    r"""How slowly a layer's rates are reached: the smaller Ω, the faster the inference.

    .. math::
        \Omega = \frac{\sum r}{\sum r^2 + 10^{-5}}, \qquad K(t) \ge 1 - \Omega / t

    with the fit K(t) of the spiking rates after t steps to the rates r. Ω ≥ 1, and Ω = 1 when every
    neuron that fires does so at each step.

    Args:
        rate: firing rates in [0, 1], any shape.

    Source: Ding et al., IJCAI 2021.

    Example:
        >>> round(omega(torch.tensor([0.0, 0.5, 0.5])).item(), 3)
        2.0
    """
    return rate.sum() / (rate.square().sum() + EPSILON)


def output_rate(logits: Tensor) -> Tensor:
    """ReLU(logits) relative to each sample's largest, ``[N, C]`` in [0, 1].

    Example:
        >>> output_rate(torch.tensor([[-1.0, 1.0, 2.0]])).tolist()
        [[0.0, 0.5, 1.0]]
    """
    positive = logits.relu()
    return positive / positive.amax(1, keepdim=True).clamp_min(EPSILON)


def rate_inference_loss(
    logits: Tensor, teacher_logits: Tensor, rates: Sequence[Tensor], lam: float = 0.1
) -> Tensor:
    r"""Rate inference loss: answer as the teacher does, at rates that are reached fast.

    .. math::
        L = 1 - \cos(o_\text{teacher}, o) + \lambda \frac1{|l|} \sum_l \Omega_l

    The layers are the hidden ones and the output, whose rate is :func:`output_rate`. The teacher is
    a frozen network; with one network as teacher and student the cosine would have no gradient.

    Args:
        logits: o, ``[N, C]``.
        teacher_logits: of the frozen teacher, ``[N, C]``.
        rates: of each rate norm layer, as :func:`record_rates` collects them.
        lam: λ ≥ 0, weight of Ω.

    Returns:
        A scalar.

    Raises:
        ValueError: if the logits differ in shape.

    Source: Ding et al., IJCAI 2021.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0]])
        >>> round(rate_inference_loss(logits, logits, [torch.ones(1, 3)]).item(), 3)
        0.1
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"the teacher returns {list(teacher_logits.shape)}, the network {list(logits.shape)}; both "
            "must answer the same classes"
        )
    cosine = F.cosine_similarity(teacher_logits.detach().flatten(1), logits.flatten(1), dim=1).mean()
    omegas = torch.stack([omega(rate) for rate in (*rates, output_rate(logits))])
    return 1 - cosine + lam * omegas.mean()


@contextmanager
def record_rates(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the rate y/θ of every rate norm layer, in the order of execution.

    The list grows with each forward pass: clear it between two.

    Raises:
        ValueError: if there is no rate norm layer.

    Example:
        >>> net = nn.Sequential(RateNorm(), RateNorm())
        >>> with record_rates(net) as rates:
        ...     _ = net(torch.tensor([-1.0, 4.0]))
        >>> [rate.tolist() for rate in rates]
        [[0.0, 1.0], [0.0, 1.0]]
    """
    rates: list[Tensor] = []

    def keep(layer: Any, _: Any, out: Tensor) -> None:
        rates.append(out / layer.bound)

    handles = [layer.register_forward_hook(keep) for layer in rate_norms(model).values()]
    try:
        yield rates
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def evaluate_rates(
    model: nn.Module, loader: Iterable[Any], device: torch.device | str = "cpu"
) -> tuple[float, list[float]]:
    """Accuracy in [0, 1], and Ω of every layer over the whole loader, the output last.

    Args:
        model: a network with rate norm layers, in eval mode, on ``device``.
        loader: ``(input, label)`` batches.
        device: where the network is.

    Raises:
        ValueError: for an empty loader, or a network without rate norm layers.

    Example:
        >>> data = [(torch.tensor([[0.0, 9.0]]), torch.tensor([1]))]
        >>> accuracy, omegas = evaluate_rates(nn.Sequential(RateNorm()), data)
        >>> accuracy, [round(o, 3) for o in omegas]
        (1.0, [1.0, 1.0])
    """
    correct, samples = 0.0, 0
    sums: Any = 0.0  # Σ r and Σ r² of each layer
    with record_rates(model) as rates:
        for x, target in labelled(loader, "val_loader", device):
            rates.clear()
            logits = model(x)
            right, known = correct_share(logits, fitting(target, logits))
            correct, samples = correct + right.sum().item(), samples + int(known.sum())
            layers = [rate.double() for rate in (*rates, output_rate(logits))]
            sums = sums + torch.stack([torch.stack([r.sum(), r.square().sum()]) for r in layers])
    return correct / max(samples, 1), (sums[:, 0] / (sums[:, 1] + EPSILON)).tolist()


@dataclass(frozen=True)
class Candidate:
    """A network found in stage 2: the more accurate of two has the larger Ω, or it would be dropped.

    Attributes:
        lam: λ it was trained with.
        accuracy: on the validation set, in [0, 1], of the clipped network (the limit for large T).
        omega: mean Ω of the layers on the validation set.
        epoch: after how many epochs of stage 2.
        state_dict: parameters and buffers; unchanged ones are shared among candidates.
    """

    lam: float
    accuracy: float
    omega: float
    epoch: int
    state_dict: dict[str, Tensor] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """λ, accuracy in percent and Ω, fit for a file name."""
        return f"lam{self.lam:g}_acc{100 * self.accuracy:.2f}_omega{self.omega:.3f}"


def non_dominated(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other beats in accuracy and Ω at once, by falling Ω.

    Example:
        >>> some = [Candidate(0.1, a, o, 0, {}) for a, o in ((0.9, 7.0), (0.8, 5.0), (0.8, 6.0))]
        >>> [c.omega for c in non_dominated(some)]
        [7.0, 5.0]
    """
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (-c.accuracy, c.omega, c.epoch)):
        if not kept or candidate.omega < kept[-1].omega:
            kept.append(candidate)
    return kept


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
        loader: ``(input, label)`` batches.
        epochs: number of passes over the loader.
        lr: learning rate at the start.
        momentum: of SGD.
        weight_decay: of SGD.
        checkpoint: file written after every epoch; if it exists, the run goes on from there.
        writer: TensorBoard writer, or anything with ``add_scalar``.
        progress: show a progress bar.

    Returns:
        A trained copy in eval mode, on the device of ``model``.

    Raises:
        ValueError: if the loss becomes NaN, or the checkpoint is of another run.
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
    net = copy.deepcopy(model).train()
    scales = {id(m.scale_logit) for m in net.modules() if isinstance(m, RateNorm)}
    parameters = [p for p in net.parameters() if p.requires_grad and id(p) not in scales]
    optimizer = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay)
    settings = dict(stage=1, epochs=epochs, lr=lr, momentum=momentum, weight_decay=weight_decay)
    run = Run(checkpoint, settings, loader, net, optimizer)
    device = parameters[0].device
    for epoch in range(run.epoch, epochs):
        passed = (epoch >= epochs / 2) + (epoch >= 3 * epochs / 4)
        _set_lr(optimizer, lr * 0.1**passed)
        losses = []
        pairs = labelled(loader, "loader", device)
        for x, target in tqdm(pairs, f"train {epoch + 1}/{epochs}", disable=not progress, leave=False):
            out = net(x)
            losses.append(step(F.cross_entropy(out, fitting(target, out)), optimizer))
        if writer is not None:
            writer.add_scalar("stage1/loss", sum(losses) / len(losses), epoch + 1)
        run.save(epoch + 1)
    return net.eval()


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
        checkpoint: file written after every epoch; if it exists, the run goes on from there.
        writer: TensorBoard writer, or anything with ``add_scalar``.
        progress: show a progress bar.

    Returns:
        The non-dominated candidates by falling Ω, ``model`` itself being among those considered.
        ``model.load_state_dict(candidate.state_dict)`` gives the network to convert with
        ``threshold="trained"``.

    Raises:
        ValueError: if the loss becomes NaN, the network has no rate norm layer, or the checkpoint
            is of another run.
        TypeError: for a loader without labels.

    Source: Ding et al., IJCAI 2021. In the published script teacher and student are one network, so
    that the cosine has no gradient; here the teacher is frozen, as the article has it.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 4), RateNorm(), nn.Linear(4, 2))
        >>> data = [(torch.rand(8, 2), torch.randint(2, (8,)))]
        >>> found = train_threshold_scale(net, net, data, data, epochs=2, progress=False)
        >>> found[0].name.startswith("lam0.1_acc")
        True
    """
    check_network(model=model, teacher=teacher)
    check_count(epochs=epochs)
    check_positive(lr=lr)
    check_range(0, math.inf, lam=lam, acc_tolerance=acc_tolerance)
    check_range(0, 1, momentum=momentum)
    teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
    student, scales = _student(model, share_scale)
    device = scales[0].device
    optimizer = torch.optim.SGD(scales, lr, momentum)
    settings = dict(
        stage=2,
        lam=lam,
        acc_tolerance=acc_tolerance,
        share_scale=share_scale,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
    )
    run = Run(checkpoint, settings, train_loader, student, optimizer)
    frozen = {name: value.detach().clone() for name, value in student.state_dict().items()}
    candidates = [Candidate(**kept) for kept in run.extra.get("candidates", [])]

    def measure(epoch: int) -> float:
        """Accuracy now; the network becomes a candidate."""
        nonlocal candidates
        accuracy, omegas = evaluate_rates(student, val_loader, device)
        new = Candidate(lam, accuracy, sum(omegas) / len(omegas), epoch, _snapshot(student, frozen))
        candidates = non_dominated([*candidates, new])
        if writer is not None:
            writer.add_scalar("stage2/accuracy", accuracy, epoch)
            writer.add_scalar("stage2/omega", new.omega, epoch)
        return accuracy

    def save(epoch: int, finished: bool) -> None:
        run.save(epoch, candidates=[vars(c) for c in candidates], finished=finished)

    if run.epoch == 0 and not candidates:
        measure(0)
        save(0, finished=False)
    while run.epoch < epochs and not run.extra["finished"]:
        epoch = run.epoch + 1
        _set_lr(optimizer, _cosine(lr, run.epoch / epochs))
        pairs = labelled(train_loader, "train_loader", device)
        with record_rates(student) as rates:
            for x, _ in tqdm(pairs, f"scale {epoch}/{epochs}", disable=not progress, leave=False):
                rates.clear()
                logits = student(x)
                step(rate_inference_loss(logits, teacher(x), rates, lam), optimizer)
        lost = measure(epoch) < max(c.accuracy for c in candidates) - acc_tolerance
        save(epoch, finished=lost)
    return candidates


def _student(model: nn.Module, shared: bool) -> tuple[nn.Module, list[nn.Parameter]]:
    """A copy in eval mode of which only the scales learn."""
    student = copy.deepcopy(model).eval().requires_grad_(False)
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


def _cosine(lr: float, progress: float) -> float:
    """From ``lr`` to a tenth of it."""
    return lr * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
