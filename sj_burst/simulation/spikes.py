"""Counting spikes."""

from functools import partial

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from ..functional import per_channel
from ..modules.neuron import BurstIFNode
from ..network import SpikingNetwork

__all__ = ["SpikeCounter"]


class SpikeCounter:
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

    def __enter__(self) -> "SpikeCounter":
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
    if node.time_fold is not None:
        y = y.unflatten(0, node.time_fold)
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
