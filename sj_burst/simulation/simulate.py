"""Run a spiking network over a data set and record what it answers after every time step."""

import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn
from tqdm import tqdm

from ..modules.neuron import BurstIFNode
from ..network import Presentation, SpikingNetwork
from ..utils.checks import check_count, check_network, check_range
from ..utils.inference import device_of, eval_mode, evaluate
from ..utils.inputs import Inputs
from ..utils.loader import batches, check_loader, check_time_dim
from ..utils.outputs import select_output, steps_of
from .answers import Answers, AnswerTotals
from .early_exit import confidence_margin
from .plan import plan_run
from .result import SimulationResult
from .spikes import count_spikes
from .steps import RunningAnswer, present
from .synops import count_operations
from .values import values_of
from .walk import pool_units

__all__ = ["simulate"]


@torch.no_grad()
def simulate(
    snn: nn.Module,
    loader: Iterable[Any],
    time_steps: int,
    *,
    chunk: int | None = None,
    early_exit: float | None = None,
    reference: nn.Module | None = None,
    output: Any = None,
    time_dim: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> SimulationResult:
    r"""Present every sample for T steps and record the answer after each of them.

    The answer after t steps is that of the mean output so far,
    :math:`r(\frac1t\sum_{s\le t} o(s))`, where the read-out r is what comes after the last neuron and is
    no affine map, a softmax say; mostly there is none. State is reset before every batch and after the
    last. Steps run in chunks, so memory does not grow with T, and what comes before the first neuron is
    computed once per batch. In the processes of a ``torchrun``, each simulates its own batches and all
    return the result over all of them.

    With ``time_dim`` every step is shown a frame of its own, T of them, and all layers run at every
    step. Rates then follow the mean over the frames: the ANN of a sequence is the ANN of its mean
    frame. Before the first neuron there must be affine layers and max-pooling only; other functions
    would act on single frames, of which the mean frame does not tell.

    Args:
        snn: a converted network; other SpikingJelly networks run step by step.
        loader: batches ``(input, target)`` or inputs ``[N, ...]``. Samples with the label −100 do not
            count, nor do pixels whose label is no class (255, say). For a network that takes several,
            the input is a tuple or list of tensors, or a dict by the names of its arguments:
            ``((x1, x2), target)``, or ``((x1, x2),)`` without a target.
        time_steps: T ≥ 1.
        chunk: time steps per forward pass; ``None`` chooses: on a CPU what stays in its caches, on
            a CUDA device what fits into a quarter of its free memory, and 1 with ``early_exit``.
        early_exit: a sample leaves at the end of a chunk once its confidence margin, the difference
            of the two largest class probabilities, is at least this; it keeps its answer. They are the
            softmax of the mean output, before a read-out that keeps its shape. See
            :func:`sj_burst.fit_early_exit`. ``None`` for never.
        reference: the ANN, to record the output's error against it.
        output: which tensor is the answer, if the network returns several: a key or an index, or a
            tuple of them.
        time_dim: for inputs that change from step to step, which of their dimensions is time: 0 for
            ``[T, N, ...]``, 1 for ``[N, T, ...]``, as a DataLoader collates SpikingJelly's event data
            sets with ``split_by="number"``; ``None`` for inputs that are held.
        device: where to run, and where the network is then; ``None`` for where it is.
        progress: show a progress bar.

    Returns:
        A :class:`SimulationResult`.

    Raises:
        ValueError: if T or the chunk is below 1, ``early_exit`` not in [0, 1] or used with a network
            that was not converted by ``sj_burst``, or sequences are not of T steps or meet a function
            that is not affine before the first neuron, or the loader is empty, or inputs are NaN, or
            targets or the reference do not fit the output, or answers differ in size from batch to
            batch; or for a network of others in step mode "m".
        TypeError: for a network without neurons, a reference that is no ANN, or a loader that does not
            yield tensors or (input, target) tuples.

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> snn = convert(ann, [torch.rand(64, 3)], progress=False)
        >>> data = [(torch.rand(8, 3), torch.zeros(8, dtype=torch.long))]
        >>> simulate(snn, data, time_steps=4, progress=False).accuracy.shape
        torch.Size([4])
    """
    _check(snn, loader, time_steps, chunk, early_exit, reference)
    check_time_dim(time_dim)
    device = device_of(snn) if device is None else torch.device(device)
    snn = snn.to(device)
    totals, seconds = AnswerTotals(time_steps), 0.0
    try:
        with eval_mode(snn):
            pairs = batches(loader, "loader", time_dim, time_steps)
            head = next(pairs)
            example = head[0].to(device)
            values, units = {}, {}
            if isinstance(snn, SpikingNetwork):
                snn.check_input(example.one_frame())
                values = values_of(snn, example[:1])
                units = pool_units(snn.graph, values)
            plan = plan_run(example, values, time_steps, chunk, early_exit)
            with count_spikes(snn, time_steps, units) as counter:
                pairs = chain([head], pairs)
                for batch in tqdm(pairs, "simulate", disable=not progress, leave=False):
                    for x, target, wanted in _parts(batch, reference, output, device, plan.samples):
                        running = RunningAnswer(snn, output)
                        answers = Answers(len(x), time_steps, target, wanted, running)
                        counter.restart()
                        seconds += _follow(snn, x, answers, plan.chunk, early_exit)
                        totals.add(answers)
            result = totals.result(counter, seconds)
            if isinstance(snn, SpikingNetwork):
                snn.measured = (time_steps, sum(n.sum().item() for n in result.spikes.values()))
                if counter.comparable():
                    result.operations = count_operations(
                        snn,
                        values,
                        counter.totals(),
                        result.samples,
                        time_steps,
                        example.sequence,
                        result.average_steps,
                    )
            return result
    finally:
        reset_net(snn)


def _parts(
    batch: tuple[Inputs, Any],
    reference: nn.Module | None,
    output: Any,
    device: torch.device,
    samples: int,
) -> Iterator[tuple[Inputs, Tensor | None, Tensor | None]]:
    """Inputs, targets and the reference's outputs of at most ``samples`` at a time."""
    x, target = batch
    _check_target(target)
    x = x.to(device)
    target = None if target is None else target.to(device)
    wanted = None
    if reference is not None:  # it stays where it is
        answer = evaluate(reference, x.to(device_of(reference)).picture())
        wanted = select_output(answer, output).to(device)
    for first in range(0, len(x), samples):
        rows = slice(first, first + samples)
        yield x[rows], None if target is None else target[rows], None if wanted is None else wanted[rows]


def _follow(snn: nn.Module, x: Inputs, answers: Answers, chunk: int, early_exit: float | None) -> float:
    """Take one batch through its steps; returns the seconds of the forward passes."""
    seconds, start = 0.0, time.perf_counter()
    with present(snn, x) as shown:
        for returned in shown.chunks(answers.time_steps, chunk):
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            seconds += time.perf_counter() - start
            for out in steps_of(returned):
                answers.step(out)
            if early_exit is not None and answers.steps < answers.time_steps:
                stay = confidence_margin(answers.running.scores) < early_exit
                if not stay.any():
                    break
                if not stay.all():
                    assert isinstance(shown, Presentation)
                    answers.keep(stay)
                    shown.keep(stay)
            start = time.perf_counter()
    answers.finish()
    return seconds


def _check(
    snn: nn.Module,
    loader: Any,
    time_steps: object,
    chunk: object,
    early_exit: float | None,
    reference: nn.Module | None,
) -> None:
    check_network(snn=snn)
    check_count(time_steps=time_steps, chunk=1 if chunk is None else chunk)
    if reference is not None:
        check_network(reference=reference)
    if isinstance(reference, SpikingNetwork):
        raise TypeError("reference must be the ANN, got a converted network")
    if not isinstance(snn, SpikingNetwork):
        _check_spiking(snn)
    if early_exit is not None:
        check_range(0, 1, early_exit=early_exit)
        if not isinstance(snn, SpikingNetwork):
            raise ValueError(
                f"early_exit needs a network converted with BurstRecipe, got {type(snn).__name__}; "
                "leave it out"
            )
    if not hasattr(loader, "__next__"):  # it is read only once here
        check_loader(loader)


def _check_spiking(snn: nn.Module) -> None:
    modes = {m.step_mode for m in snn.modules() if isinstance(m, BurstIFNode | neuron.BaseNode)}
    if not modes:
        raise TypeError(
            f"simulate wants a spiking network, and there is no neuron in this {type(snn).__name__}; "
            "convert it"
        )
    if modes != {"s"}:
        raise ValueError(
            "simulate runs the networks of others step by step, and this one is in step_mode='m'; call "
            "spikingjelly's functional.set_step_mode(net, 's')"
        )


def _check_target(target: Any) -> None:
    if target is not None and not isinstance(target, Tensor):
        raise TypeError(
            f"loader yields targets of type {type(target).__name__}; they must be tensors, one label a "
            "sample, or left out"
        )
    if target is not None and target.dim() == 0:
        raise ValueError("loader yields a target that is a single number; they must be [N, ...]")
