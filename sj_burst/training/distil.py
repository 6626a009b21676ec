"""Distillation: thresholds, currents and weights that make the quantised ANN answer as the ANN does."""

import copy
import math
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ..graph.quantised import quantised
from ..graph.readout import ReadOut
from ..modules.neuron import BurstIFNode
from ..modules.rate import RateNeuron
from ..network import SpikingNetwork
from ..utils.checks import check_count, check_network, check_positive, check_range
from ..utils.inference import evaluate
from ..utils.inputs import call
from ..utils.loader import batches, check_loader
from ..utils.outputs import tensors_of
from .epoch import Writer, step
from .run import Run, started_from

__all__ = ["distil", "distillation_loss"]


def distillation_loss(out: Any, wanted: Any, scores: bool = True) -> Tensor:
    r"""How far answers are from those of the teacher, whatever their scale.

    For class scores, one tensor ``[N, C]``, the divergence of the distributions
    :math:`p = \mathrm{softmax}`,

    .. math::
        L = \frac1N \sum_n \mathrm{KL}(p(q_n) \,\|\, p(o_n)),

    for outputs of any other kind the sum over the tensors of :math:`\|o - q\|^2 / \|q - \bar q\|^2`, q̄
    the mean over the batch.

    Args:
        out: o, of the student: a tensor, or any nesting of tensors.
        wanted: q, of the teacher, of the same nesting.
        scores: one tensor ``[N, C]`` holds class scores; else it is of another kind.

    Returns:
        A scalar.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015.

    Example:
        >>> distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2)).item()
        0.0
        >>> round(distillation_loss(torch.zeros(1, 2), torch.tensor([[3.0, 0.0]])).item(), 3)
        0.502
    """
    pairs = list(zip(tensors_of(out).values(), tensors_of(wanted).values(), strict=True))
    o, q = pairs[0]
    if scores and len(pairs) == 1 and q.dim() == 2 and q.shape[1] > 1:
        return F.kl_div(o.log_softmax(1), q.log_softmax(1), log_target=True, reduction="batchmean")
    total = o.new_zeros(())
    for o, q in pairs:
        if q.is_floating_point():
            spread = (q - q.mean(0)).square().sum()
            total = total + (o - q).square().sum() / spread.clamp_min(1e-12)
    return total


def distil(
    snn: SpikingNetwork,
    ann: nn.Module,
    loader: Iterable[Any],
    time_steps: int | None = None,
    *,
    epochs: int = 6,
    lr: float = 3e-3,
    weight_lr: float = 0.0,
    time_dim: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    writer: Writer | None = None,
    progress: bool = True,
) -> SpikingNetwork:
    r"""Fit a copy of a converted network to the answers of its ANN, by gradients and without labels.

    In the rate domain, so that an image costs one forward and one backward pass, whatever T: every
    neuron is the function of its levels (:class:`~sj_burst.modules.rate.RateNeuron`), and the floor lets
    gradients through. Thresholds :math:`\theta_0 e^s`, a constant current in units of θ₀ for every
    neuron, and the biases of layers are trained by Adam on :func:`distillation_loss`; with
    ``weight_lr`` the weights too, which a few hundred images overfit easily. The learning rate rises
    over a tenth of the steps, then falls to zero along a cosine.

    Args:
        snn: a converted network with finite Γ; stays as it is, but for its reset state.
        ann: the network it was converted from; stays as it is.
        loader: training images, as for :func:`sj_burst.convert`; labels are not looked at. A few hundred
            will do, better shuffled and augmented.
        time_steps: T; ``None`` for the T that the network was fitted for.
        epochs: number of passes over the loader.
        lr: of thresholds and currents, relative to θ, and of biases, relative to their spread.
        weight_lr: of weights, relative to the spread of those of their layer; 0 leaves them alone.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`; their mean
            frame is looked at.
        checkpoint: file written after every epoch; if it exists, the run goes on from there, with the
            ``snn`` that it was started from.
        writer: TensorBoard writer, or anything with ``add_scalar``.
        progress: show a progress bar.

    Returns:
        The fitted network in eval mode.

    Raises:
        TypeError: for a network that was not converted, or a loader that cannot be read.
        ValueError: for a bad value, an infinite Γ, a loss that becomes NaN, or a checkpoint of another
            run or network.

    Source: after Li et al., "BRECQ", ICLR 2021, and Wei et al., "QDrop", ICLR 2022, which fit block by
    block; ours is end to end.

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(16, 3)]
        >>> snn = convert(ann, data, max_spikes=1, progress=False)
        >>> fitted = distil(snn, ann, data, epochs=2, progress=False)
        >>> torch.equal(fitted.neurons()["1"].threshold, snn.neurons()["1"].threshold)
        False
    """
    if not isinstance(snn, SpikingNetwork):
        raise TypeError(f"distil wants a network converted by BurstRecipe, got {type(snn).__name__}")
    check_network(ann=ann)
    check_loader(loader)
    check_count(epochs=epochs)
    check_positive(lr=lr)
    check_range(0, math.inf, weight_lr=weight_lr)
    steps = snn.options.time_steps if time_steps is None else time_steps
    check_count(time_steps=steps)
    _check_finite_levels(snn)
    net = quantised(snn.graph, steps).eval()
    optimizer = torch.optim.Adam(_groups(net, lr, weight_lr))
    total = epochs * sum(1 for _ in batches(loader, "loader", time_dim))
    schedule = LambdaLR(optimizer, lambda i: min(1.0, 10 * (i + 1) / total) * _cosine(i / total))
    settings = dict(time_steps=steps, epochs=epochs, lr=lr, weight_lr=weight_lr)
    run = Run(checkpoint, settings, loader, net, optimizer, schedule, started_from(snn))
    scores = not isinstance(snn.readout, ReadOut)
    for epoch in range(run.epoch + 1, epochs + 1):
        losses = []
        found = batches(loader, "loader", time_dim)
        for x, _ in tqdm(found, f"distil {epoch}/{epochs}", disable=not progress, leave=False):
            picture = x.to(snn.device).picture()
            answer = snn.readout(call(net, picture))
            with torch.no_grad():
                wanted = evaluate(ann, picture)
            losses.append(step(distillation_loss(answer, wanted, scores), optimizer))
            schedule.step()
        if writer is not None:
            writer.add_scalar("distil/loss", sum(losses) / len(losses), epoch)
        run.save(epoch)
    return _spiking(snn, net)


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def _check_finite_levels(snn: SpikingNetwork) -> None:
    infinite = [name for name, node in snn.neurons().items() if math.isinf(node.max_spikes)]
    if infinite:
        raise ValueError(
            f"distil fits the levels of neurons, and max_spikes is infinite in {infinite[:3]}; convert "
            "with a finite max_spikes"
        )


def _groups(net: fx.GraphModule, lr: float, weight_lr: float) -> list[dict[str, Any]]:
    """Learning rates that suit the scale of each parameter; what is not trained has no gradient."""
    groups = []
    for name, parameter in net.named_parameters():
        owner, _, kind = name.rpartition(".")
        if isinstance(net.get_submodule(owner), RateNeuron):
            rate = lr
        else:
            rate = (lr if kind == "bias" else weight_lr) * _size(parameter)
        parameter.requires_grad_(rate > 0)
        if rate > 0:
            groups.append({"params": [parameter], "lr": rate})
    return groups


def _size(parameter: Tensor) -> float:
    return parameter.detach().double().square().mean().sqrt().item()


@torch.no_grad()
def _spiking(snn: SpikingNetwork, net: fx.GraphModule) -> SpikingNetwork:
    """A copy of the spiking network with what was fitted."""
    fitted = copy.deepcopy(snn).eval()
    for name, source in net.named_modules():
        module: Any = fitted.graph.get_submodule(name)
        if isinstance(source, RateNeuron):
            assert isinstance(module, BurstIFNode)
            source.write_to(module)
        else:
            for key, parameter in source.named_parameters(recurse=False):
                getattr(module, key).copy_(parameter)
    return fitted
