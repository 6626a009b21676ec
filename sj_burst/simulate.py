"""Run a spiking network over a data set and record what it answers after every time step."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn
from tqdm import tqdm

from .functional import per_channel
from .graph.check import evaluate
from .graph.network import SpikingNetwork
from .loader import batches, check_loader
from .neuron import BurstIFNode, neurons

__all__ = ["SimulationResult", "simulate"]


@dataclass
class SimulationResult:
    """What :func:`simulate` measured.

    Attributes:
        accuracy: ``[T]``, share of samples whose mean output so far has its maximum at the target,
            after every step; ``None`` without targets.
        error: ``[T]``, root of the mean squared difference between the mean output so far and the
            reference, relative to the reference; ``None`` without one.
        output: ``[samples, ...]``, output averaged over the T steps (logits of a classifier).
        spikes: for every burst neuron layer ``[T]``, spikes per sample in each step (a burst of n
            counts n, a negative spike 1).
        samples: number of samples.
        seconds: wall time of the forward passes.
    """

    accuracy: Tensor | None
    error: Tensor | None
    output: Tensor
    spikes: dict[str, Tensor] = field(repr=False)
    samples: int = 0
    seconds: float = 0.0

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
    reference: nn.Module | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> SimulationResult:
    r"""Present every sample for T steps and record the answer after each of them.

    The answer after t steps is the mean output so far, :math:`\frac1t\sum_{s\le t} o(s)`. State is
    reset before every batch and after the last. Steps run in chunks, so memory does not grow with
    T, and what comes before the first neuron is computed once per batch.

    Args:
        snn: a converted network; other SpikingJelly networks run step by step.
        loader: batches ``(input, target)`` or inputs ``[N, ...]``.
        time_steps: T ≥ 1.
        chunk: time steps per forward pass; ``None`` chooses from the batch size.
        reference: the ANN, to record the output's error against it.
        device: where to run; ``None`` for where the network is.
        progress: show a progress bar.

    Returns:
        A :class:`SimulationResult`.

    Raises:
        ValueError: if T or the chunk is below 1, or the loader is empty.
        TypeError: for a loader that does not yield tensors or (input, target) tuples.

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
    for name, value in (("time_steps", time_steps), ("chunk", 1 if chunk is None else chunk)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer ≥ 1, got {value!r}")
    check_loader(loader) if not hasattr(loader, "__next__") else None
    device = torch.device(device) if device is not None else _device_of(snn)
    snn = snn.to(device)
    training = snn.training
    snn.eval()
    totals = _Totals(time_steps)
    try:
        with _count_spikes(snn, time_steps) as counts:
            for x, target in tqdm(batches(loader), "simulate", disable=not progress, leave=False):
                x = x.to(device)
                wanted = None if reference is None else evaluate(reference.to(device), x)
                for rows in _sub_batches(len(x), time_steps, device):
                    part = None if target is None else target[rows].to(device)
                    goal = None if wanted is None else wanted[rows]
                    totals.add(_steps(snn, x[rows], time_steps, chunk, totals), part, goal)
    finally:
        reset_net(snn)
        snn.train(training)
    return totals.result(counts)


def _steps(
    snn: nn.Module, x: Tensor, time_steps: int, chunk: int | None, totals: "_Totals"
) -> Iterator[Tensor]:
    """Outputs of one batch, step after step."""
    reset_net(snn)
    start = time.perf_counter()
    if not isinstance(snn, SpikingNetwork):
        for _ in range(time_steps):
            out = snn(x)
            totals.seconds += time.perf_counter() - start
            yield out
            start = time.perf_counter()
        return
    size = chunk or _chunk_size(len(x), time_steps)
    for first in range(0, time_steps, size):
        out_seq = snn.hold(x, min(size, time_steps - first))
        totals.seconds += time.perf_counter() - start
        yield from out_seq
        start = time.perf_counter()


ROWS_ON_CPU = 128  # folded rows (steps × samples) that keep a layer's activations in cache
ROWS_ON_GPU = 4096


def _chunk_size(samples: int, time_steps: int) -> int:
    return max(1, min(time_steps, ROWS_ON_GPU // samples))


def _sub_batches(samples: int, time_steps: int, device: torch.device) -> list[slice]:
    """On a CPU, sub-batches of about ``ROWS_ON_CPU`` folded rows; elsewhere the whole batch."""
    size = samples if device.type != "cpu" else max(1, ROWS_ON_CPU // min(time_steps, 8))
    return [slice(i, min(i + size, samples)) for i in range(0, samples, size)]


def _device_of(net: nn.Module) -> torch.device:
    tensor = next(net.parameters(), next(net.buffers(), torch.empty(0)))
    return tensor.device


@contextmanager
def _count_spikes(snn: nn.Module, time_steps: int) -> Iterator[dict[str, Tensor]]:
    """Sum the spikes of every burst neuron layer for each step while the context is open."""
    layers = snn.neurons() if isinstance(snn, SpikingNetwork) else neurons(snn)
    counts = {name: torch.zeros(time_steps, dtype=torch.float64) for name in layers}
    handles = []
    for name, node in layers.items():
        position = {"step": 0}

        def count(
            node: BurstIFNode,
            inputs: tuple[Tensor, ...],
            y: Tensor,
            name: str = name,
            position: dict[str, int] = position,
        ) -> None:
            per_step = spikes_per_step(node, y).cpu()
            if position["step"] >= time_steps:
                position["step"] = 0
            first = position["step"]
            counts[name][first : first + len(per_step)] += per_step
            position["step"] = first + len(per_step)

        handles.append(node.register_forward_hook(count))
        node.count_spikes = True
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
        for node in neurons(snn).values():
            node.count_spikes = False


def spikes_per_step(node: BurstIFNode, y: Tensor) -> Tensor:
    """``[T]`` spikes in a layer's weighted output; a burst of n counts n, a negative spike 1."""
    if node.spike_counts is not None:
        return node.spike_counts
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


class _Totals:
    """Sums over samples, for each step."""

    def __init__(self, time_steps: int) -> None:
        self.time_steps = time_steps
        self.correct = torch.zeros(time_steps, dtype=torch.float64)
        self.squares = torch.zeros(time_steps, dtype=torch.float64)
        self.reference = 0.0
        self.with_target = self.with_reference = False
        self.outputs: list[Tensor] = []
        self.samples = 0
        self.seconds = 0.0

    def add(self, steps: Iterator[Tensor], target: Tensor | None, wanted: Tensor | None) -> None:
        total: Tensor | None = None
        classes = target is not None and not target.is_floating_point()
        for t, out in enumerate(steps):
            total = out.clone() if total is None else total.add_(out)
            if target is not None and classes:
                self.correct[t] += (total.argmax(1) == target).double().mean().cpu() * len(target)
            if wanted is not None:
                self.squares[t] += (total / (t + 1) - wanted).double().square().sum().cpu()
        assert total is not None
        self.with_target |= classes
        if wanted is not None:
            self.with_reference = True
            self.reference += wanted.double().square().sum().item()
        self.outputs.append((total / self.time_steps).cpu())
        self.samples += len(total)

    def result(self, spikes: dict[str, Tensor]) -> SimulationResult:
        error = (self.squares / max(self.reference, 1e-300)).sqrt()
        return SimulationResult(
            accuracy=(self.correct / self.samples).float() if self.with_target else None,
            error=error.float() if self.with_reference else None,
            output=torch.cat(self.outputs),
            spikes={name: (count / self.samples).float() for name, count in spikes.items()},
            samples=self.samples,
            seconds=self.seconds,
        )
