"""Run a spiking network over a data set and record what it answers after every time step."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn
from tqdm import tqdm

from . import distributed
from .checks import check_count, check_network, check_range
from .early_exit import confidence_margin
from .energy import Operations, count_operations, count_outputs
from .functional import per_channel
from .graph.check import evaluate
from .graph.network import SpikingNetwork
from .graph.presentation import Presentation
from .graph.trace import record
from .loader import batches, check_labels, check_loader
from .neuron import BurstIFNode
from .temporal import Window

__all__ = ["SimulationResult", "simulate"]


@dataclass
class SimulationResult:
    """What :func:`simulate` measured.

    Attributes:
        accuracy: ``[T]``, share of samples whose mean output so far has its maximum at the target,
            after every step; ``None`` without targets.
        error: ``[T]``, root of the mean squared difference between the mean output so far and the
            reference, relative to the reference; ``None`` without one.
        output: ``[samples, ...]``, output averaged over the steps that a sample took (logits of a
            classifier), for the samples of this process.
        spikes: for every layer of neurons ``[T]``, spikes per sample in each step (a burst of n
            counts n, a negative spike 1).
        samples: number of samples, of all processes.
        seconds: wall time of the forward passes of this process.
        operations: synaptic operations and energy per sample, of a network converted by
            ``BurstRecipe``; see :func:`sj_burst.synops`.
        exit_steps: ``[samples]``, step after which each sample left; T if it never did.
    """

    accuracy: Tensor | None
    error: Tensor | None
    output: Tensor
    spikes: dict[str, Tensor] = field(repr=False)
    samples: int = 0
    seconds: float = 0.0
    operations: Operations | None = field(default=None, repr=False)
    exit_steps: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)

    @property
    def average_steps(self) -> float:
        """Mean number of steps that a sample took."""
        return self.exit_steps.double().mean().item()

    @property
    def total_spikes(self) -> Tensor:
        """``[T]``, spikes per sample over all layers, accumulated up to every step."""
        if not self.spikes:
            return torch.zeros(0)
        return torch.stack(list(self.spikes.values())).sum(0).cumsum(0)


@torch.no_grad()
def simulate(
    snn: nn.Module,
    loader: Iterable[Any],
    time_steps: int,
    *,
    chunk: int | None = None,
    early_exit: float | None = None,
    reference: nn.Module | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> SimulationResult:
    r"""Present every sample for T steps and record the answer after each of them.

    The answer after t steps is the mean output so far, :math:`\frac1t\sum_{s\le t} o(s)`. State is
    reset before every batch and after the last. Steps run in chunks, so memory does not grow with
    T, and what comes before the first neuron is computed once per batch. In the processes of a
    ``torchrun``, each simulates its own batches and all return the result over all of them.

    Args:
        snn: a converted network; other SpikingJelly networks run step by step.
        loader: batches ``(input, target)`` or inputs ``[N, ...]``. Samples with the label −100 do not
            count, nor do pixels whose label is no class (255, say).
        time_steps: T ≥ 1.
        chunk: time steps per forward pass; ``None`` chooses: on a CPU what stays in its caches, on
            a CUDA device what fits into a quarter of its free memory, and 1 with ``early_exit``.
        early_exit: a sample leaves at the end of a chunk once its confidence margin, the difference
            of the two largest class probabilities, is at least this; it keeps its answer. See
            :func:`sj_burst.fit_early_exit`. ``None`` for never.
        reference: the ANN, to record the output's error against it.
        device: where to run; ``None`` for where the network is.
        progress: show a progress bar.

    Returns:
        A :class:`SimulationResult`.

    Raises:
        ValueError: if T or the chunk is below 1, ``early_exit`` not in [0, 1] or used with a network
            that was not converted by ``sj_burst``, or the loader is empty, or inputs are NaN, or
            targets or the reference do not fit the output; or for a network of others in step mode "m".
        TypeError: for a network without neurons, or a loader that does not yield tensors or
            (input, target) tuples.

    Example:
        >>> from sj_burst import BurstRecipe
        >>> from spikingjelly.activation_based import ann2snn
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> recipe = BurstRecipe([torch.rand(64, 3)], progress=False)
        >>> snn = ann2snn.Converter(recipe).convert(ann)
        >>> data = [(torch.rand(8, 3), torch.zeros(8, dtype=torch.long))]
        >>> simulate(snn, data, time_steps=4, progress=False).accuracy.shape
        torch.Size([4])
    """
    _check(snn, loader, time_steps, chunk, early_exit, reference)
    device = torch.device(device) if device is not None else _device_of(snn)
    snn = snn.to(device)
    training = snn.training
    snn.eval()
    totals = _Totals(time_steps, early_exit)
    try:
        with ExitStack() as stack:
            pairs = batches(loader)
            head = next(pairs)
            _check_target(head[1])
            # Before anything is counted: it runs the network.
            plan = _plan(snn, head[0].to(device), time_steps, chunk, early_exit)
            counter = stack.enter_context(_SpikeCounter(snn, time_steps))
            outputs: dict[str, Tensor] = {}
            if isinstance(snn, SpikingNetwork):
                outputs = stack.enter_context(count_outputs(snn))
            pairs = chain([head], pairs)
            for x, target in tqdm(pairs, "simulate", disable=not progress, leave=False):
                _check_target(target)
                x = x.to(device)
                wanted: Tensor | None = None
                if reference is not None:  # it stays where it is
                    wanted = evaluate(reference, x.to(_device_of(reference))).to(device)
                for first in range(0, len(x), plan.samples):
                    rows = slice(first, first + plan.samples)
                    counter.restart()
                    totals.add(
                        _Run(snn, x[rows], time_steps, plan.chunk),
                        None if target is None else target[rows].to(device),
                        None if wanted is None else wanted[rows],
                    )
        result = totals.result(counter.spikes)
        if isinstance(snn, SpikingNetwork):
            outputs = {name: distributed.total(value) for name, value in outputs.items()}
            result.operations = count_operations(snn, outputs, x[:1], result.samples, time_steps)
        return result
    finally:
        reset_net(snn)
        snn.train(training)


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


class _Plan(NamedTuple):
    """How many samples run at a time, and how many steps."""

    samples: int
    chunk: int


# Rows are folded: steps × samples. On a CPU the largest activation of a chunk stays below the size
# from which memory comes fresh from the system, page by page, at every allocation.
BYTES_ON_CPU = 24_000_000
ROWS_ON_CPU = 512
STEPS_ON_CPU = 8
ROWS_ON_GPU = 16384  # more rows are no faster


def _plan(
    snn: nn.Module, x: Tensor, time_steps: int, chunk: int | None, early_exit: float | None
) -> _Plan:
    if not isinstance(snn, SpikingNetwork):
        return _Plan(len(x), 1)
    snn.check_input(x)
    chunk = 1 if chunk is None and early_exit is not None else chunk
    if x.device.type == "cpu":
        rows = max(1, min(ROWS_ON_CPU, BYTES_ON_CPU // _largest_values(snn, x[:1])[-1]))
        chunk = chunk or min(time_steps, STEPS_ON_CPU, rows)
        parts = -(-len(x) * min(chunk, STEPS_ON_CPU) // rows)
        return _Plan(-(-len(x) // parts), chunk)
    rows = ROWS_ON_GPU
    if x.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(x.device)
        rows = min(rows, int(free / 4 / sum(_largest_values(snn, x[:1]))))
    samples = max(1, min(len(x), rows))
    return _Plan(samples, chunk or max(1, min(time_steps, rows // samples)))


def _largest_values(snn: SpikingNetwork, x: Tensor) -> list[int]:
    """Bytes of the largest values of one sample in one step, which may exist side by side."""
    reset_net(snn)
    with snn.window(Window(1, len(x))):
        values = record(snn.graph, x).values()
    sizes = sorted(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
    return [max(1, size) for size in sizes[-4:]]


class _Run:
    """The outputs of one batch, chunk after chunk, from a fresh state."""

    def __init__(self, snn: nn.Module, x: Tensor, time_steps: int, chunk: int) -> None:
        self.snn, self.x, self.time_steps, self.chunk = snn, x, time_steps, chunk
        self.seconds = 0.0
        self.shown: Presentation | None = None

    def __iter__(self) -> Iterator[Tensor]:
        reset_net(self.snn)
        for first in range(0, self.time_steps, self.chunk):
            start = time.perf_counter()
            out_seq = self._run(min(self.chunk, self.time_steps - first))
            self.seconds += time.perf_counter() - start
            yield out_seq

    def _run(self, steps: int) -> Tensor:
        if not isinstance(self.snn, SpikingNetwork):
            return torch.stack([self.snn(self.x) for _ in range(steps)])
        if self.shown is None:
            self.shown = self.snn.present(self.x)
        return self.shown.run(steps)

    def keep(self, samples: Tensor) -> None:
        assert self.shown is not None
        self.shown.keep(samples)


def _device_of(net: nn.Module) -> torch.device:
    tensor = next(net.parameters(), next(net.buffers(), torch.empty(0)))
    return tensor.device


class _SpikeCounter:
    """Sums the spikes of every layer of neurons, ours or SpikingJelly's, for each step."""

    def __init__(self, snn: nn.Module, time_steps: int) -> None:
        net = snn.graph if isinstance(snn, SpikingNetwork) else snn
        layers = {
            name: module
            for name, module in net.named_modules()
            if isinstance(module, BurstIFNode | neuron.BaseNode)
        }
        self.spikes = {name: torch.zeros(time_steps, dtype=torch.float64) for name in layers}
        self.positions: dict[str, int] = {}
        self.nodes = [node for node in layers.values() if isinstance(node, BurstIFNode)]
        for node in self.nodes:
            node.count_spikes = True
        self.handles = [
            node.register_forward_hook(partial(self._count, name)) for name, node in layers.items()
        ]

    def restart(self) -> None:
        """A batch begins."""
        self.positions = dict.fromkeys(self.spikes, 0)

    def _count(self, name: str, node: nn.Module, _: object, y: Tensor) -> None:
        if isinstance(node, BurstIFNode):
            per_step = spikes_per_step(node, y)
        else:
            per_step = y.count_nonzero().unsqueeze(0)
        first = self.positions[name]
        self.spikes[name][first : first + len(per_step)] += per_step.cpu()
        self.positions[name] = first + len(per_step)

    def __enter__(self) -> "_SpikeCounter":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the network as it was."""
        for handle in self.handles:
            handle.remove()
        for node in self.nodes:
            node.count_spikes = False


def spikes_per_step(node: BurstIFNode, y: Tensor) -> Tensor:
    """``[T]`` spikes in a layer's weighted output; a burst of n counts n, a negative spike 1."""
    if node.spike_counts is not None:
        return node.spike_counts.per_step
    if node.window is not None:
        y = y.unflatten(0, node.window)
    elif node.step_mode == "s":
        y = y.unsqueeze(0)
    dims = list(range(1, y.dim()))
    if node.threshold.dim() == 1 and y.dim() > 2:
        dims.remove(2)  # keep the channels, whose thresholds differ
        norms = torch.linalg.vector_norm(y, 1, dims)
        return (norms / node.threshold).sum(1)
    theta = per_channel(node.threshold, y.dim() - 1)
    if node.threshold.numel() == 1:
        return torch.linalg.vector_norm(y, 1, dims) / theta.squeeze()
    return torch.linalg.vector_norm(y / theta, 1, dims)


def share_right(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Share of right answers of each sample; what is of no class does not count.

    Args:
        scores: ``[N, C, ...]``.
        target: class labels ``[N, ...]``.

    Returns:
        The shares ``[N]`` in [0, 1], and which samples have a label of a class at all.

    Example:
        >>> scores = torch.tensor([[[3.0, 3.0, 0.0], [0.0, 0.0, 1.0]]])  # two classes, three pixels
        >>> share_right(scores, torch.tensor([[0, 255, 0]]))
        (tensor([0.5000]), tensor([True]))
    """
    right = (scores.argmax(1) == target).reshape(len(target), -1)
    known = ((target >= 0) & (target < scores.shape[1])).reshape(len(target), -1).sum(1)
    return right.sum(1) / known.clamp_min(1), known > 0


class _Totals:
    """Sums over samples, for each step."""

    def __init__(self, time_steps: int, early_exit: float | None) -> None:
        self.time_steps, self.early_exit = time_steps, early_exit
        self.correct = torch.zeros(time_steps, dtype=torch.float64)
        self.counted = 0
        self.squares = torch.zeros(time_steps, dtype=torch.float64)
        self.reference = torch.zeros((), dtype=torch.float64)
        self.labelled: set[bool] = set()
        self.with_reference = False
        self.outputs: list[Tensor] = []
        self.exits: list[Tensor] = []
        self.seconds = 0.0

    def add(self, run: _Run, target: Tensor | None, wanted: Tensor | None) -> None:
        """Follow one batch through its steps."""
        batch = _Answers(len(run.x), self.time_steps, target, wanted)
        for out_seq in run:
            for out in out_seq:
                batch.step(out)
            if self.early_exit is None or batch.steps == self.time_steps:
                continue
            stay = confidence_margin(batch.mean()) < self.early_exit
            if not stay.all():
                batch.keep(stay)
                if not stay.any():
                    break
                run.keep(stay)
        batch.keep(torch.zeros_like(batch.active, dtype=torch.bool))
        self.correct += batch.per_step(batch.hits)
        self.counted += batch.counted
        self.squares += batch.per_step(batch.errors)
        self.labelled.add(batch.classes)
        if wanted is not None:
            self.with_reference = True
            self.reference += wanted.float().square().sum().double().cpu()
        self.outputs.append(batch.output.cpu())
        self.exits.append(batch.exits.cpu())
        self.seconds += run.seconds

    def result(self, spikes: dict[str, Tensor]) -> SimulationResult:
        """The means, over all processes."""
        if len(self.labelled) > 1:
            raise ValueError("loader yields class labels in some batches only; give them to all or none")
        exits = torch.cat(self.exits)
        samples = int(distributed.total(torch.tensor(len(exits))))
        counted = distributed.total(torch.tensor(self.counted)).clamp_min(1)
        correct, squares = distributed.total(self.correct), distributed.total(self.squares)
        error = (squares / distributed.total(self.reference).clamp_min(1e-300)).sqrt()
        return SimulationResult(
            accuracy=(correct / counted).float() if True in self.labelled else None,
            error=error.float() if self.with_reference else None,
            output=torch.cat(self.outputs),
            spikes={
                name: (distributed.total(count) / samples).float() for name, count in spikes.items()
            },
            samples=samples,
            seconds=self.seconds,
            exit_steps=exits,
        )


class _Answers:
    """What the samples of one batch answer after every step; who has left keeps the last answer."""

    def __init__(
        self, samples: int, time_steps: int, target: Tensor | None, wanted: Tensor | None
    ) -> None:
        self.time_steps, self.target, self.wanted = time_steps, target, wanted
        self.classes = target is not None and not target.is_floating_point()
        self.steps = 0
        self.samples = samples
        self.counted = 0  # those with a label of a class
        self.active = torch.arange(samples)
        self.exits = torch.full((samples,), time_steps)
        self.hits: list[Tensor] = []  # [samples] after every step
        self.errors: list[Tensor] = []
        self.total = self.output = torch.empty(0)

    def step(self, out: Tensor) -> None:
        """Take the output of the samples that are still there."""
        if self.steps == 0:
            self._check(out)
            # Half precision would lose more in the sum than in the network.
            dtype = torch.promote_types(out.dtype, torch.float32)
            self.total = torch.zeros_like(out, dtype=dtype)
            self.output = torch.zeros_like(out, dtype=dtype)
            self.active, self.exits = self.active.to(out.device), self.exits.to(out.device)
        self.total = self.total + out
        self.steps += 1
        if self.classes:
            assert self.target is not None
            right, known = share_right(self.total, self.target[self.active])
            self._record(self.hits, right)
            if self.steps == 1:
                self.counted = int(known.sum())
        if self.wanted is not None:
            difference = (self.mean() - self.wanted[self.active]).float()
            self._record(self.errors, difference.flatten(1).square().sum(1))

    def _check(self, out: Tensor) -> None:
        """Raise where shapes would broadcast to a wrong result."""
        labels = out[:, 0].shape if out.dim() > 1 and out.shape[1] > 1 else None
        if self.classes and self.target is not None and self.target.shape != labels:
            raise ValueError(
                f"targets {list(self.target.shape)} do not fit the output {list(out.shape)}; accuracy "
                "needs class scores [N, classes ≥ 2, ...] and labels [N, ...]. Without accuracy: leave "
                "targets out, or make them floating-point"
            )
        if self.classes and self.target is not None:
            check_labels(self.target, out.shape[1])
        if self.wanted is not None and self.wanted.shape != out.shape:
            raise ValueError(
                f"reference returns {list(self.wanted.shape)}, the network {list(out.shape)}; pass the "
                "network that it was converted from"
            )

    def _record(self, history: list[Tensor], values: Tensor) -> None:
        now = history[-1].clone() if history else values.new_zeros(self.samples)
        now[self.active] = values
        history.append(now)

    def mean(self) -> Tensor:
        """The answer so far of the samples that are still there."""
        return self.total / self.steps

    def keep(self, stay: Tensor) -> None:
        """The others leave with their answer."""
        gone = self.active[~stay]
        self.output[gone] = self.mean()[~stay]
        self.exits[gone] = self.steps
        self.total, self.active = self.total[stay], self.active[stay]

    def per_step(self, history: list[Tensor]) -> Tensor:
        """Sum over the samples after every step ``[T]``."""
        if not history:
            return torch.zeros(self.time_steps, dtype=torch.float64)
        history = history + [history[-1]] * (self.time_steps - len(history))
        return torch.stack(history).sum(1).double().cpu()
