"""Γ by layer as AdaFire finds it: by what each does to the answer of the spiking network."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from tqdm import tqdm

from ..network import SpikingNetwork
from ..rules.burst_allocation import Choice, choose, ladder
from ..simulation.spikes import count_spikes
from ..utils import distributed
from ..utils.inputs import bind
from ..utils.outputs import at_least_single, tensors_of

__all__ = ["measure_bursts"]

_EACH = 8  # Γ up to which every one is tried


@torch.no_grad()
def measure_bursts(
    snn: SpikingNetwork, ann: fx.GraphModule, images: Sequence[Any], mean: int, progress: bool = True
) -> dict[str, int]:
    r"""Γ of every layer with the least sum of divergences, for the spikes that one Γ would send.

    .. math::
        \min_{\Gamma_1, \Gamma_2, \dots} \sum_l D_l(\Gamma_l) \quad \text{with} \quad
        \sum_l S_l(\Gamma_l) \le \sum_l S_l(\Gamma)

    where D is the symmetric Kullback–Leibler divergence between the answers of the spiking network and
    of the ANN (their squared distance, where answers are no class scores), and S the spikes of layer l,
    both if that layer alone has another Γ than the network began with. As published, thresholds stay
    those of the Γ that the network began with while this is measured, and are fitted to the Γ that were
    found afterwards: the network then sends more spikes than were counted here.
    A layer that was silent keeps the mean.

    Args:
        snn: the network with as many spikes a step, in all layers, as a layer may get at most; stays so.
        ann: the graph that it was made of.
        images: batches of images.
        mean: Γ whose spikes may be spent.
        progress: show a progress bar.

    Source: after Wang et al., "Adaptive calibration: a unified conversion framework of spiking neural
    networks", AAAI 2025.
    """
    layers, answers = snn.neurons(), [ann(*bind(ann, x).values()) for x in images]
    most = {name: int(node.max_spikes) for name, node in layers.items()}
    largest = max(most.values(), default=mean)
    gammas = sorted({*range(1, min(largest, _EACH) + 1), *ladder(mean, largest // mean)})
    tables: dict[str, list[Choice]] = {name: [] for name in layers}
    runs = len(gammas) * len(layers)
    with tqdm(total=runs, desc="allocate bursts", disable=not progress, leave=False) as bar:
        for name, node in layers.items():
            for gamma in gammas:
                node.max_spikes = gamma
                tables[name].append(Choice(gamma, *_tried(snn, name, images, answers)))
                bar.update()
            node.max_spikes = most[name]
            if not any(row.cost for row in tables[name]):
                tables[name] = [Choice(mean, 0.0, 0.0)]
    spikes = sum(row.cost for table in tables.values() for row in table if row.max_spikes == mean)
    return choose(tables, spikes)


def _tried(
    snn: SpikingNetwork, name: str, images: Sequence[Any], answers: Sequence[Any]
) -> tuple[float, float]:
    """Spikes of a layer, and the divergence of the answers, over all processes."""
    spikes = divergence = 0.0
    for x, answer in zip(images, answers, strict=True):
        with count_spikes(snn) as counter:
            out = snn.run(x, snn.options.time_steps)
        spikes += counter.per_neuron[name][0].sum().item()
        for o, a in zip(tensors_of(out).values(), tensors_of(answer).values(), strict=True):
            if a.is_floating_point():
                divergence += _divergence(at_least_single(o).mean(0), a).item()
    found = distributed.total(torch.tensor([spikes, divergence], dtype=torch.float64))
    return found[0].item(), found[1].item()


def _divergence(out: Tensor, answer: Tensor) -> Tensor:
    """Summed over the samples.

    Example:
        >>> _divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])).item() > 0
        True
        >>> _divergence(torch.tensor([1.0]), torch.tensor([3.0])).item()
        4.0
    """
    out, answer = out.double(), answer.double()
    if answer.dim() < 2 or answer.shape[1] < 2:
        return (out - answer).square().sum()
    p, q = F.log_softmax(out, 1), F.log_softmax(answer, 1)
    return ((p.exp() - q.exp()) * (p - q)).sum() / 2
