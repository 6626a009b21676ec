"""Fine-tuning of a converted network by surrogate gradients (temporal efficient training)."""

import copy
import math
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based.functional import reset_net, set_step_mode
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..graph.readout import ReadOut
from ..modules.neuron import MOST_LEVELS
from ..network import SpikingNetwork, check_converted
from ..simulation.steps import RunningAnswer
from ..utils.checks import check_count, check_positive, check_range
from ..utils.inputs import Inputs, call
from ..utils.labels import IGNORED, check_labels
from ..utils.loader import check_time_dim, length_of
from ..utils.outputs import map_tensors, select_output
from .epoch import Writer, has_class, labelled, train_epoch
from .outcome import adapted, check_adaptable, check_sound
from .run import Run, started_from

__all__ = ["finetune", "tet_loss"]


def tet_loss(out_seq: Tensor, target: Tensor, lam: float = 0.05, phi: float = 1.0) -> Tensor:
    r"""Cross entropy of the answer at every step, not of the mean answer.

    .. math::
        L = (1-\lambda) \frac1T \sum_t \mathrm{CE}(o(t), y)
          + \lambda \frac1T \sum_t \mathrm{MSE}(o(t), \varphi)

    Args:
        out_seq: o, logits of every step ``[T, N, C]``.
        target: y, class labels ``[N]``; −100 does not count, and NaN results if there is no other.
        lam: λ in [0, 1], weight of the regularisation.
        phi: φ, what it pulls the logits to.

    Returns:
        A scalar.

    Raises:
        ValueError: if λ is not in [0, 1], or the shapes do not fit.

    Source: Deng et al., "Temporal efficient training of spiking neural network via gradient
    re-weighting", ICLR 2022.

    Example:
        >>> round(tet_loss(torch.zeros(2, 1, 4), torch.tensor([3]), lam=0.0).item(), 4)
        1.3863
    """
    check_range(0, 1, lam=lam)
    check_range(-math.inf, math.inf, phi=phi)
    if out_seq.dim() != 3 or out_seq.shape[1:2] != target.shape:
        raise ValueError(
            f"out_seq must be [T, N, C] and target [N], got {tuple(out_seq.shape)} and "
            f"{tuple(target.shape)}; a network in step mode 'm', or snn.run(x, T), gives such outputs"
        )
    check_labels(target, out_seq.shape[2])
    known = target != IGNORED
    out_seq, target = out_seq[:, known], target[known].long()
    entropy = F.cross_entropy(out_seq.flatten(0, 1), target.repeat(len(out_seq)))
    return (1 - lam) * entropy + lam * (out_seq - phi).square().mean()


class _Scales(nn.Module):
    """Scales e^s > 0 of thresholds and initial potentials; the neurons keep plain buffers."""

    def __init__(self, snn: SpikingNetwork) -> None:
        super().__init__()
        self.nodes = list(snn.neurons().values())
        self.start = [
            (node.threshold.detach().clone(), node.v_init.detach().clone()) for node in self.nodes
        ]
        self.logs = nn.ParameterList([torch.zeros_like(theta) for theta, _ in self.start])

    def apply_to_nodes(self) -> None:
        """Set θ = θ₀·e^s and v(0) = v₀·e^s, as functions of s while gradients are on."""
        for node, (theta, v_init), log in zip(self.nodes, self.start, self.logs, strict=True):
            node.threshold, node.v_init = theta * log.exp(), v_init * log.exp()


def finetune(
    snn: SpikingNetwork,
    loader: Iterable[Any],
    time_steps: int,
    *,
    epochs: int = 1,
    lr: float = 1e-4,
    lam: float = 0.05,
    phi: float = 1.0,
    train_thresholds: bool = True,
    step_mode: str = "m",
    output: Any = None,
    time_dim: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    writer: Writer | None = None,
    progress: bool = True,
) -> SpikingNetwork:
    r"""Train a copy of a converted network for T steps by :func:`tet_loss`.

    Gradients pass the neurons by their surrogate functions and lateral-inhibition pooling exactly,
    back through time. Adam's learning rate falls to zero along a cosine (epoch by epoch if the loader
    has no length). All weights are trained, frozen ones too. Batches of which all labels are −100 are
    left out. Thresholds are trained as :math:`\theta = \theta_0 e^s`, positive by construction, and the
    initial potentials keep their ratio to them; both are buffers again in the network that is returned,
    so that ``save`` and ``load`` work as before. BatchNorm that is not fused stays in eval mode.
    Weights of ``weight_bits`` are rounded again in the end, to the nearest.

    The loss is that of the outputs before the network's read-out: a softmax or log-softmax that ends
    the network is in the cross entropy, and does not come twice. So a read-out may scale the class
    scores, each sample's by an increasing function, but not make scores of something else.

    Args:
        snn: a converted network with finite Γ; stays as it is, but for its reset state.
        loader: training batches ``(input, label)``; each input is presented for T steps, or shown frame
            by frame.
        time_steps: T ≥ 1 to train for.
        epochs: number of passes over the loader.
        lr: Adam's learning rate at the start.
        lam: λ of the loss.
        phi: φ of the loss.
        train_thresholds: train thresholds, too.
        step_mode: ``"m"`` runs all steps at once; ``"s"`` one after the other, with the same result.
        output: which tensor is the answer, as for :func:`sj_burst.simulate`.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`.
        checkpoint: file written after every epoch; if it exists, the run goes on from there, with the
            ``snn`` that it was started from: keep that one by :func:`sj_burst.save`.
        writer: TensorBoard writer, or anything with ``add_scalar``.
        progress: show a progress bar.

    Returns:
        The fine-tuned network, which is one for ``time_steps`` now, in eval mode, with its state reset.

    Raises:
        ValueError: for a bad value, if the loss becomes NaN, no label is of a class, Γ is infinite, the
            read-out changes which class is largest, or the checkpoint is of another run or network.
        TypeError: for another network, or a loader without labels.

    Source: Deng et al., ICLR 2022.

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [(torch.rand(16, 3), torch.randint(2, (16,)))]
        >>> snn = convert(ann, data, max_spikes=1, progress=False)
        >>> tuned = finetune(snn, data, time_steps=2, progress=False)
        >>> torch.equal(tuned.graph.get_submodule("0").weight, snn.graph.get_submodule("0").weight)
        False
    """
    check_converted(snn, "finetune")
    if step_mode not in ("s", "m"):
        raise ValueError(f"step_mode must be 's' or 'm', got {step_mode!r}")
    check_count(time_steps=time_steps, epochs=epochs)
    check_positive(lr=lr)
    check_time_dim(time_dim)
    _check_levels(snn)
    check_adaptable(snn, loader, time_dim)
    reset_net(snn)
    net = copy.deepcopy(snn).eval().requires_grad_(True)
    set_step_mode(net, step_mode)
    scales = _Scales(net)
    parameters = [*net.parameters(), *(scales.logs if train_thresholds else [])]
    optimizer = torch.optim.Adam(parameters, lr)
    batches = length_of(loader)
    schedule = CosineAnnealingLR(optimizer, epochs * (batches or 1))
    settings = dict(
        **dict(time_steps=time_steps, epochs=epochs, lr=lr, lam=lam, phi=phi),
        **dict(train_thresholds=train_thresholds, output=repr(output), time_dim=time_dim),
    )
    trained = nn.ModuleList([net, scales])
    run = Run(checkpoint, settings, loader, trained, optimizer, schedule, started_from(snn))

    def loss_of(x: Inputs, target: Tensor) -> Tensor | None:
        if not has_class(target):
            return None
        reset_net(net)
        scales.apply_to_nodes()
        returned = _outputs(net, x, time_steps, step_mode)
        _check_readout(net, returned, output)
        return tet_loss(select_output(returned, output), target, lam, phi)

    for epoch in range(run.epoch + 1, epochs + 1):
        pairs, title = (
            labelled(loader, "loader", net.device, time_dim, time_steps),
            f"tune {epoch}/{epochs}",
        )
        per_batch = None if batches is None else schedule
        loss = train_epoch(pairs, loss_of, optimizer, title, progress, per_batch)
        if batches is None:
            schedule.step()
        with torch.no_grad():
            scales.apply_to_nodes()
        check_sound(net)
        if writer is not None:
            writer.add_scalar("tet/loss", loss, epoch)
        run.save(epoch)
    reset_net(net)
    set_step_mode(net, snn.step_mode)
    return adapted(net, loader, time_steps, time_dim)


def _check_levels(snn: SpikingNetwork) -> None:
    most = {name: node.max_spikes for name, node in snn.neurons().items()}
    if large := [name for name in most if most[name] > MOST_LEVELS]:
        raise ValueError(
            f"max_spikes={most[large[0]]} of {large[0]!r}: gradients are of bursts of up to "
            f"{MOST_LEVELS}; convert with fewer, or use distil, whose gradients are those of rates"
        )


def _outputs(net: SpikingNetwork, x: Inputs, time_steps: int, step_mode: str) -> Any:
    """Outputs of every step ``[T, N, ...]``."""
    if step_mode == "m":
        return net.run(x, time_steps)
    net.present(x)  # checks that it fits
    shown = [x.frames(t, 1) if x.sequence else x.value for t in range(time_steps)]
    steps = [call(net, frame) for frame in shown]
    return map_tensors(lambda *outputs: torch.stack(outputs), *steps)


@torch.no_grad()
def _check_readout(net: SpikingNetwork, returned: Any, output: Any) -> None:
    """Raise unless the class of the largest output is that of the answer."""
    if not isinstance(net.readout, ReadOut):
        return
    running = RunningAnswer(net, output)
    running.add(returned)
    answer, scores = running.value, running.scores
    kept = scores is not answer and answer.dim() > 1
    if not kept or not answer.gather(1, scores.argmax(1, True)).ge(answer.amax(1, True)).all():
        raise ValueError(
            f"finetune takes the loss of the outputs before the read-out, and this {net.readout!r} "
            "makes other class scores of them; finetune a network that ends in what the loss is for, "
            "converted with output='spikes', and apply the rest to its answer"
        )
