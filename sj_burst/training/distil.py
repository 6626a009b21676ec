"""Distillation: fit a spiking network to the answers of its ANN, with the gradients of its rates."""

import copy
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ..graph.quantised import quantised
from ..modules.pooling import MAX_POOLS
from ..modules.rate import RateNeuron
from ..modules.temporal import TemporalModule, time_sum
from ..network import SpikingNetwork, check_converted
from ..options import check_energy_budget
from ..utils.checks import check_count, check_network, check_positive, check_range
from ..utils.inference import evaluate
from ..utils.inputs import Inputs, call
from ..utils.loader import batches, check_loader, length_of
from ..utils.outputs import tensors_of
from .energy import EnergyPenalty
from .epoch import Writer, step
from .outcome import adapted, check_adaptable, check_sound
from .run import Run, fingerprints, started_from

__all__ = ["distil", "distillation_loss"]


def distillation_loss(out: Any, wanted: Any, kind: str = "kl") -> Tensor:
    r"""How far answers are from those of the teacher, whatever their scale.

    ``"kl"`` is for class scores, one tensor ``[N, C, ...]``: the divergence of the distributions
    :math:`p = \mathrm{softmax}`, ``"mse"`` for outputs of any kind: the sum over the tensors of relative
    squared errors, with q̄ the mean over the batch (0 for a batch of one),

    .. math::
        L = \frac1N \sum_n \mathrm{KL}(p(q_n) \,\|\, p(o_n)), \qquad
        L = \sum \|o - q\|^2 / \|q - \bar q\|^2.

    Args:
        out: o, of the student: a tensor, or any nesting of tensors.
        wanted: q, of the teacher, of the same nesting.
        kind: ``"kl"`` or ``"mse"``.

    Returns:
        A scalar.

    Raises:
        ValueError: for another kind, other shapes, or ``"kl"`` of what are no class scores.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015.

    Example:
        >>> distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2)).item()
        0.0
        >>> round(distillation_loss(torch.zeros(1, 2), torch.tensor([[3.0, 0.0]])).item(), 3)
        0.502
    """
    check_loss(kind)
    outs, targets = tensors_of(out), tensors_of(wanted)
    shapes, others = ({k: list(t.shape) for k, t in found.items()} for found in (outs, targets))
    if shapes != others:
        raise ValueError(
            f"answers have shapes {list(shapes.values())}, the teacher's {list(others.values())}; pass "
            "the network that snn was converted from"
        )
    pairs = list(zip(outs.values(), targets.values(), strict=True))
    if kind == "mse" and not any(q.is_floating_point() for _, q in pairs):
        raise ValueError(
            f"loss='mse' is for real numbers, and the network returns {pairs[0][1].dtype}, which has no "
            "gradient; distil a network that returns what these are made of"
        )
    if kind == "mse":
        return sum((_relative_error(o, q) for o, q in pairs), torch.zeros(()))
    o, q = pairs[0]
    if len(pairs) > 1 or q.dim() < 2 or q.shape[1] < 2:
        raise ValueError(
            "loss='kl' is for class scores, one tensor [N, C, ...], and the network returns "
            f"{[list(part.shape) for _, part in pairs]}; use loss='mse'"
        )
    divergence = F.kl_div(o.log_softmax(1), q.log_softmax(1), log_target=True, reduction="none")
    return divergence.sum(1).mean()


def _relative_error(o: Tensor, q: Tensor) -> Tensor:
    if not q.is_floating_point():
        return torch.zeros((), device=q.device)
    spread = q - q.mean(0) if len(q) > 1 else q
    return (o - q).square().sum() / spread.square().sum().clamp_min(1e-12)


def check_loss(kind: object) -> None:
    """Raise unless it is a loss.

    Raises:
        ValueError: names the losses.
    """
    if kind not in ("kl", "mse"):
        raise ValueError(f"loss must be 'kl' (class scores) or 'mse' (anything else), got {kind!r}")


def distil(
    snn: SpikingNetwork,
    ann: nn.Module,
    loader: Iterable[Any],
    time_steps: int | None = None,
    *,
    epochs: int = 3,
    lr: float = 3e-3,
    weight_lr: float = 1e-3,
    loss: str = "kl",
    energy_budget: float | None = None,
    time_dim: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    writer: Writer | None = None,
    progress: bool = True,
) -> SpikingNetwork:
    r"""Fit a copy of a converted network to the answers of its ANN, by gradients and without labels.

    Forward, all T steps run in spikes, without gradients, and the mean output r of every neuron is
    noted. Backward, a neuron is the function φ of its mean current
    (:class:`~sj_burst.modules.rate.RateNeuron`): its value is r, its gradient that of φ, whose floor
    lets gradients through,

    .. math::
        r + \varphi(\bar z) - \mathrm{stop}(\varphi(\bar z)),

    so that the loss is that of the spikes, and a backward pass costs that of one step. Thresholds
    :math:`\theta_0 e^s`, a constant current in units of θ₀ for every neuron, biases, and with
    ``weight_lr`` weights, frozen ones too, are trained by Adam on :func:`distillation_loss`. The
    learning rate rises over a tenth of the steps, then falls to zero along a cosine.

    Args:
        snn: a converted network; stays as it is, but for its reset state.
        ann: the network it was converted from; stays as it is.
        loader: training images, as for :func:`sj_burst.convert`; labels are not looked at. A few hundred
            will do, better shuffled and augmented.
        time_steps: T; ``None`` for the T that the network was fitted for.
        epochs: number of passes over the loader.
        lr: of thresholds and currents, relative to θ, and of biases, relative to their size, or to that
            of the weights where all biases are zero.
        weight_lr: of weights, relative to the size of those of their layer; 0 leaves them alone, and
            less than the default is safer with a few hundred images.
        loss: ``"kl"`` for class scores, ``"mse"`` for anything else, as for :func:`distillation_loss`.
        energy_budget: what a sample may cost, as a share of the ANN's energy (bursts in unary, what is
            taken back not counted); ``None`` for as much as the answers need. See
            :class:`~sj_burst.training.energy.EnergyPenalty`.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`; the ANN
            answers to their mean frame.
        checkpoint: file written after every epoch; if it exists, the run goes on from there, with the
            ``snn`` and ``ann`` that it was started from.
        writer: TensorBoard writer, or anything with ``add_scalar``.
        progress: show a progress bar.

    Returns:
        The network, fitted for ``time_steps``, in eval mode.

    Raises:
        TypeError: for a network that was not converted, or a loader that cannot be read.
        ValueError: for a bad value, a loss that becomes NaN, or a checkpoint of another run or network.

    Source: gradients after Yu et al., "Advancing training efficiency of deep spiking neural networks
    through rate-based backpropagation", NeurIPS 2024, of which the forward in spikes and the backward in
    rates is taken; the loss of Hinton et al., 2015.

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(16, 3)]
        >>> snn = convert(ann, data, max_spikes=1, progress=False)
        >>> fitted = distil(snn, ann, data, epochs=2, progress=False)
        >>> torch.equal(fitted.neurons()["1"].threshold, snn.neurons()["1"].threshold)
        False
    """
    check_converted(snn, "distil")
    check_network(ann=ann)
    check_loader(loader)
    check_loss(loss)
    steps = snn.options.time_steps if time_steps is None else time_steps
    check_count(epochs=epochs, time_steps=steps)
    check_positive(lr=lr)
    _check_weight_lr(weight_lr, snn.options.weight_bits)
    if energy_budget is not None:
        check_energy_budget(energy_budget)
    check_adaptable(snn, loader, time_dim)
    student = _Student(snn, steps)
    energy: EnergyPenalty | None = None
    optimizer = torch.optim.Adam(_groups(student.rates, lr, weight_lr))
    count = length_of(loader)
    count = sum(1 for _ in loader) if count is None else count
    total = max(1, epochs * count)  # an empty loader is told of below
    schedule = LambdaLR(optimizer, lambda i: min(1.0, 10 * (i + 1) / total) * _cosine(i / total))
    settings = dict(time_steps=steps, epochs=epochs, lr=lr, weight_lr=weight_lr, loss=loss)
    settings |= {} if time_dim is None else {"time_dim": time_dim}
    settings |= {} if energy_budget is None else {"energy_budget": energy_budget}
    start = started_from(snn) | fingerprints({f"ann.{k}": v for k, v in ann.state_dict().items()})
    run = Run(checkpoint, settings, loader, student.rates, optimizer, schedule, start)
    if energy_budget is not None:
        example = snn.example(frames=steps if time_dim is not None else None)
        energy = EnergyPenalty(snn, student.rates, example, energy_budget, steps, total)
        energy.price = run.extra.get("price", energy.price)
    for epoch in range(run.epoch + 1, epochs + 1):
        losses = []
        found = batches(loader, "loader", time_dim, steps)
        for x, _ in tqdm(found, f"distil {epoch}/{epochs}", disable=not progress, leave=False):
            x = x.to(snn.device)
            answer = student.answer(x)
            with torch.no_grad():
                wanted = evaluate(ann, x.picture())
            distance = distillation_loss(answer, wanted, loss)
            losses.append(step(distance if energy is None else distance + energy(), optimizer))
            schedule.step()
        if writer is not None:
            writer.add_scalar("distil/loss", sum(losses) / len(losses), epoch)
        check_sound(student.written())
        run.save(epoch, **({} if energy is None else {"price": energy.price}))
    if energy is not None:
        energy.warn_of_excess()
    return adapted(student.finish(), loader, steps, time_dim)


def _check_weight_lr(weight_lr: float, bits: object) -> None:
    check_range(0, math.inf, weight_lr=weight_lr)
    if weight_lr and bits is not None:
        raise ValueError(
            f"weight_lr={weight_lr} would move the weights of weight_bits={bits} off their integers; "
            "pass weight_lr=0: they are rounded again to the thresholds that are found"
        )


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def _groups(net: fx.GraphModule, lr: float, weight_lr: float) -> list[dict[str, Any]]:
    """Learning rates that suit the scale of each parameter; what is not trained has no gradient."""
    groups = []
    for name, parameter in net.named_parameters():
        owner, _, kind = name.rpartition(".")
        if isinstance(net.get_submodule(owner), RateNeuron):
            rate = lr
        else:
            size = _size(parameter)
            if kind == "bias" and size == 0:
                size = _size(getattr(net.get_submodule(owner), "weight", parameter))
            rate = (lr if kind == "bias" else weight_lr) * size
        parameter.requires_grad_(bool(rate > 0))
        if rate > 0:
            groups.append({"params": [parameter], "lr": rate})
    return groups


def _size(parameter: Tensor) -> float:
    return parameter.detach().double().square().mean().sqrt().item()


class _Student:
    """A spiking network, and the same as functions of rates, whose weights are one.

    Attributes:
        spiking: a copy of the network.
        rates: what gradients pass.
    """

    def __init__(self, snn: SpikingNetwork, time_steps: int) -> None:
        self.time_steps = time_steps
        self.rates = quantised(snn.graph, time_steps).eval()
        self.spiking = copy.deepcopy(snn).eval()
        self._measured: dict[str, Tensor] = {}
        self._hooks = []
        for name, rate in self.rates.named_modules():
            module = self.spiking.graph.get_submodule(name)
            if isinstance(module, (TemporalModule, *MAX_POOLS)):
                self._hooks.append(module.register_forward_hook(self._measure(name)))
                rate.register_forward_hook(self._replace(name))
            else:
                module._parameters.update(rate._parameters)

    def _measure(self, name: str) -> Callable[..., None]:
        def keep(_: Any, __: Any, out: Tensor) -> None:
            fold = self.spiking.temporal_modules()[0].time_fold
            assert fold is not None
            self._measured[name] = time_sum(out, fold) / fold.steps

        return keep

    def _replace(self, name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            return self._measured[name] + (out - out.detach())

        return hook

    def answer(self, x: Inputs) -> Any:
        """The answer after all steps, with the gradients of rates."""
        with torch.no_grad():
            self.written().run(x, self.time_steps)
        return self.spiking.readout(call(self.rates, x.picture()))

    def written(self) -> SpikingNetwork:
        """The spiking network as it is now."""
        for name, rate in self.rates.named_modules():
            if isinstance(rate, RateNeuron):
                rate.write_to(self.spiking.graph.get_submodule(name))  # type: ignore[arg-type]
        return self.spiking

    def finish(self) -> SpikingNetwork:
        """The spiking network, for itself."""
        self.written()
        for hook in self._hooks:
            hook.remove()
        reset_net(self.spiking)
        return self.spiking.requires_grad_(True)
