"""The spike counter: what every layer of a spiking network emits, by step and by neuron."""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from ..backends.dispatch import count_outputs
from ..backends.events import SpikeCounts
from ..functional import per_channel
from ..modules.encoding import CompensatedRateEncoder, PoissonEncoder, RateEncoder
from ..modules.neuron import BurstIFNode
from ..modules.pooling import MAX_POOLS, GatedPool, LIPool
from ..modules.temporal import TemporalModule
from ..network import SpikingNetwork
from ..utils import distributed
from ..utils.inference import device_of, forward_hooks
from ..utils.outputs import at_least_single

__all__ = ["POOLS", "SOURCES", "SpikeCounter", "count_spikes", "spike_numbers"]

NEURONS = (BurstIFNode, neuron.BaseNode)
# What emits spikes; SpikingJelly's neurons emit ones, which its converter scales afterwards.
SOURCES = (*NEURONS, PoissonEncoder, RateEncoder, CompensatedRateEncoder)
POOLS = (*MAX_POOLS, LIPool, GatedPool)  # pass spikes on


def spike_numbers(node: BurstIFNode, y: Tensor) -> Tensor:
    """Net spikes in a neuron's weighted output y = θ·n ``[N, ...]``, or in a sum of them.

    Example:
        >>> spike_numbers(BurstIFNode(threshold=0.1, max_spikes=4), torch.tensor([[0.3, -0.1]]))
        tensor([[ 3., -1.]])
    """
    numbers = at_least_single(y) / per_channel(at_least_single(node.threshold), y.dim())
    if node.negative_slope is not None:  # below zero a spike weighs less
        slope = per_channel(at_least_single(node.negative_slope), y.dim())
        numbers = torch.where(numbers < 0, numbers / slope, numbers)
    return numbers.round_()


def spike_train(node: BurstIFNode, y_seq: Tensor) -> Tensor:
    """Spikes n(t) in a neuron's weighted outputs ``[T, ...]`` from a fresh state.

    Raises:
        ValueError: if negative spikes weigh nothing, or what positive ones do: outputs do not tell them.

    Example:
        >>> spike_train(BurstIFNode(threshold=0.5, max_spikes=4), torch.tensor([[1.0], [-0.5]]))
        tensor([[ 2.],
                [-1.]])
    """
    if node.negative_slope is not None and (node.negative_slope <= 0).any():
        raise ValueError(
            "spikes of a neuron with a negative_slope of 0 or less cannot be told from its outputs; "
            "plot another layer"
        )
    counts = spike_numbers(node, at_least_single(y_seq).cumsum(0))
    return torch.diff(counts, dim=0, prepend=torch.zeros_like(counts[:1]))


class SpikeCounter:
    """Spikes of a network's layers; a burst of n counts n, a negative spike 1, an expected one nothing.

    Made by :func:`count_spikes`. What a backend has counted while it emitted is taken over.

    Args:
        snn: any spiking network.
        time_steps: T, to count by step; ``None`` to count by neuron only.
        pool_units: what a spike of each pooling layer weighs; broadcasts to its output.

    Attributes:
        per_step: for every layer of neurons ``[T]``, over all samples and neurons.
        net: the same with negative spikes taken off, of burst neurons; a layer whose totals may rightly
            be negative, leaky or with expected spikes, is left out.
        per_neuron: for every layer that emits spikes its events ``[3, ...]`` by each of
            ``ACCOUNTINGS``, over all samples and steps. Without its unit, pooling is counted as if a
            spike weighed one.
        sizes_vary: whether inputs of different sizes came; ``per_neuron`` is of those of the first.
    """

    def __init__(
        self,
        snn: nn.Module,
        time_steps: int | None = None,
        pool_units: Mapping[str, Tensor] | None = None,
    ) -> None:
        net = snn.graph if isinstance(snn, SpikingNetwork) else snn
        self.layers = {n: m for n, m in net.named_modules() if isinstance(m, (*SOURCES, *POOLS))}
        by_step = [n for n, m in self.layers.items() if time_steps and isinstance(m, NEURONS)]
        zeros = torch.zeros(time_steps or 0, dtype=torch.float64, device=device_of(snn))
        self.per_step = {name: zeros.clone() for name in by_step}
        self.net = {name: zeros.clone() for name in by_step if _has_net(self.layers[name])}
        self.per_neuron: dict[str, Tensor] = {}
        self.sizes_vary = False
        self._pool_units = pool_units or {}
        self._steps: dict[str, int] = {}

    def restart(self) -> None:
        """A batch begins with its first step."""
        self._steps.clear()

    def comparable(self) -> bool:
        """Whether all samples, of all processes, had the same neurons."""
        shapes = str([(name, tuple(count.shape)) for name, count in self.per_neuron.items()])
        same = distributed.equal(zlib.crc32(shapes.encode()))
        return same and not distributed.any_of(self.sizes_vary)

    def totals(self) -> dict[str, Tensor]:
        """``per_neuron``, over all processes.

        Raises:
            ValueError: if inputs of different sizes came, or spikes are NaN or infinite.
        """
        bad = [name for name, count in self.per_neuron.items() if not count.isfinite().all()]
        if distributed.any_of(bool(bad)):
            raise ValueError(
                f"layers {bad or '(of another process)'} send NaN or infinitely many spikes; check the "
                "images of the loader and the network's weights"
            )
        if not self.comparable():
            raise ValueError(
                "loader yields inputs of different sizes, whose neurons are not the same; count each "
                "size by itself"
            )
        return {name: distributed.total(count) for name, count in self.per_neuron.items()}

    def add(self, name: str, module: nn.Module, _: Any, y: Tensor) -> None:
        """Count what a module has emitted; a forward hook."""
        found = getattr(module, "spike_counts", None)
        if found is None:
            found = self._count(name, module, y.detach())
        if name in self.per_step:
            first = self._steps.get(name, 0)
            steps = slice(first, first + len(found.per_step))
            self._steps[name] = steps.stop
            self.per_step[name][steps] += found.per_step
            if found.net is None:  # not told
                self.net.pop(name, None)
            elif name in self.net:
                self.net[name][steps] += found.net
        before = self.per_neuron.get(name)
        if before is None:
            self.per_neuron[name] = found.per_neuron.clone()
        elif before.shape == found.per_neuron.shape:
            before += found.per_neuron
        else:
            self.sizes_vary = True

    def _count(self, name: str, module: nn.Module, y: Tensor) -> SpikeCounts:
        """Spikes in what a module has emitted ``[T·N, ...]``."""
        fold = getattr(module, "time_fold", None)
        steps = 1
        if fold is None and getattr(module, "step_mode", "s") == "m":  # by hand: [T, N, ...]
            steps, y = len(y), y.flatten(0, 1)
        elif fold is not None and len(y) != fold.batch:  # else one row a sample, whatever the steps
            steps = fold.steps
        backend = module.backend if isinstance(module, TemporalModule) else "auto"
        unit = self._pool_units.get(name, getattr(module, "threshold", None))
        whole = isinstance(module, BurstIFNode)
        counted = not y.is_floating_point()  # y is a number of spikes already
        if isinstance(module, BurstIFNode) and module.negative_slope is not None:
            y, unit = spike_numbers(module, y), None
        unit = None if counted or unit is None else per_channel(unit, y.dim())
        expected = getattr(module, "expected", None)
        if expected is not None and (whole or name in self._pool_units):
            expected = per_channel(at_least_single(expected), y.dim())
            y = at_least_single(y) - (expected if unit is None else expected * unit)
        counts = count_outputs(backend, y.unflatten(0, (steps, -1)), unit, whole or counted)
        return counts if whole and expected is None else counts._replace(net=None)


def _has_net(module: nn.Module) -> bool:
    if not isinstance(module, BurstIFNode):
        return False
    return module.negative_slope is None and module.expected is None


@contextmanager
def count_spikes(
    snn: nn.Module, time_steps: int | None = None, pool_units: Mapping[str, Tensor] | None = None
) -> Iterator[SpikeCounter]:
    """While open, count the spikes of a network; leaves it as it was.

    Args:
        snn: any spiking network.
        time_steps: T, to count by step too; then say :meth:`SpikeCounter.restart` before every batch.
        pool_units: as for :class:`SpikeCounter`.

    Example:
        >>> net = nn.Sequential(BurstIFNode(threshold=0.5, max_spikes=2))
        >>> with torch.no_grad(), count_spikes(net) as counter:
        ...     _ = net(torch.tensor([[0.6, 5.0], [0.1, 0.5]]))
        >>> counter.per_neuron["0"].tolist()
        [[1.0, 3.0], [1.0, 2.0], [1.0, 2.0]]
    """
    counter = SpikeCounter(snn, time_steps, pool_units)
    nodes = [m for m in snn.modules() if isinstance(m, BurstIFNode) and not m.count_spikes]
    try:
        for node in nodes:
            node.count_spikes = True
        with forward_hooks(counter.layers, counter.add):
            yield counter
    finally:
        for node in nodes:
            node.count_spikes, node.spike_counts = False, None
