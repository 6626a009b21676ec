"""Count the synaptic operations of a spiking network, beside the ANN's multiply-accumulates."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..graph.evaluate import evaluate_node, record
from ..graph.readout import ReadOut
from ..modules.temporal import TimeFold, time_folded
from ..network import SpikingNetwork
from ..utils.checks import check_count
from ..utils.inference import device_of, eval_mode
from ..utils.inputs import Inputs
from ..utils.loader import batches, check_loader
from .operations import Operations
from .plan import steps_at_once
from .spikes import SOURCES, count_spikes
from .steps import present
from .walk import LayerCost, SpikeWalk

__all__ = ["count_operations", "synops"]


@torch.no_grad()
def synops(
    snn: nn.Module, loader: Iterable[Any], time_steps: int, *, time_dim: int | None = None
) -> Operations:
    r"""Count the synaptic operations of a converted network, layer by layer.

    .. math::
        \text{SynOps} = \sum_i \text{fan-out}_i \sum_t |n_i(t)|

    over the inputs i of every weighted layer: a burst of n spikes counts n, a negative spike 1, and
    the fan-out of a position is the number of weights that it really meets (borders, stride, groups
    and dilation included). Conventions, labelled *derived here*:

    - Max-pooling passes on the spikes that it emits. Average pooling is merged into the layer after
      it: each spike counts once in every window that it lies in. So are unfused BatchNorm and
      constant factors. Interpolation divides a spike among positions.
    - A layer whose input is the analog image (direct coding) runs as MACs, once, because its input
      is the same at every step; one that reads currents which vary (two weighted layers without a
      neuron between them), or frames that do, runs as MACs at every step.
    - A weighted layer in the read-out runs once, as MACs.
    - The analog remainder of ``"compensated"`` coding counts as its size in spikes.
    - Updates of neurons, pooling windows, biases and memory traffic are not counted; neither are
      they for the ANN.

    Args:
        snn: a network that ``BurstRecipe`` or a recipe of SpikingJelly converted; its state is reset
            before and after.
        loader: batches.
        time_steps: T.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`.

    Returns:
        :class:`Operations` per sample.

    Raises:
        ValueError: if T < 1 or the loader is empty.
        TypeError: for a network that was not converted, or a loader that cannot be read.

    Source: energies of Horowitz, "Computing's energy problem", ISSCC 2014.

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(16, 3)]
        >>> snn = convert(ann, data, progress=False)
        >>> counted = synops(snn, data, time_steps=8)
        >>> counted.layers["0"].macs, counted.ann_macs
        (12.0, 20.0)
    """
    check_count(time_steps=time_steps)
    if not any(isinstance(module, SOURCES) for module in graph_of(snn).modules()):
        raise TypeError("synops wants a spiking network, and there is no neuron in this one; convert it")
    check_loader(loader)
    samples = 0
    try:
        with eval_mode(snn):
            with count_spikes(snn) as counter:
                for x, _ in batches(loader, "loader", time_dim, time_steps):
                    x = x.to(device_of(snn))
                    samples += len(x)
                    with present(snn, x) as shown:
                        for _out in shown.chunks(time_steps, steps_at_once(len(x))):
                            pass
            return count_operations(snn, counter.totals(), x[:1], samples, time_steps)
    finally:
        reset_net(snn)


def graph_of(snn: nn.Module) -> fx.GraphModule:
    """The graph of a converted network.

    Raises:
        TypeError: for other networks.
    """
    graph = snn.graph if isinstance(snn, SpikingNetwork) else snn
    if not isinstance(graph, fx.GraphModule):
        raise TypeError(f"operations are counted of converted networks only, got {type(snn).__name__}")
    return graph


def _readout_costs(readout: ReadOut, mean: Any) -> dict[str, LayerCost]:
    """What the layers of a read-out cost: they run once, on analog values."""
    values: dict[fx.Node, Any] = {}
    for node in readout.graph.graph.nodes:
        given = node.op == "placeholder"  # one, of any nesting
        values[node] = mean if given else evaluate_node(readout.graph, node, values.__getitem__)
    return SpikeWalk(readout.graph, values, {}).run()


@torch.no_grad()
def count_operations(
    snn: nn.Module, spikes: dict[str, Tensor], x: Inputs, samples: int, time_steps: int
) -> Operations:
    """Operations from summed spikes; see :func:`synops` for the conventions.

    Args:
        snn: the network; its state is reset.
        spikes: of every layer that emits some ``[1, ...]``, of :class:`SpikeCounter`.
        x: of one sample, for the shapes.
        samples: over which ``spikes`` is summed.
        time_steps: over which ``spikes`` is summed.
    """
    reset_net(snn)
    gm = graph_of(snn)
    folded = time_folded(gm, TimeFold(1, 1)) if isinstance(snn, SpikingNetwork) else nullcontext()
    try:
        with folded:
            values = record(gm, x.one_frame())
    finally:
        reset_net(snn)
    costs = SpikeWalk(gm, values, spikes, varying=x.sequence).run()
    if isinstance(readout := getattr(snn, "readout", None), ReadOut):
        costs |= _readout_costs(readout, values[next(iter(reversed(gm.graph.nodes)))])
    return Operations(
        {name: cost.per_sample(samples, time_steps) for name, cost in costs.items()}, time_steps
    )
