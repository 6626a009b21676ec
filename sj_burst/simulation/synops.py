"""Count the synaptic operations of a spiking network, beside the ANN's multiply-accumulates."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..utils import distributed
from ..utils.checks import check_count
from ..utils.inference import device_of, eval_mode
from ..utils.loader import batches, check_loader
from .operations import ACCOUNTINGS, LayerOperations, Operations
from .plan import steps_at_once
from .spikes import SOURCES, count_spikes
from .steps import present
from .values import graph_of, values_of
from .walk import SpikeWalk, pool_units, readout_costs

__all__ = ["count_operations", "synops"]


@torch.no_grad()
def synops(
    snn: nn.Module, loader: Iterable[Any], time_steps: int, *, time_dim: int | None = None
) -> Operations:
    r"""Count the synaptic operations of a converted network, layer by layer.

    .. math::
        \text{SynOps} = \sum_i \text{fan-out}_i \sum_t |n_i(t)|

    over the inputs i of every weighted layer: a burst of n spikes counts n, a negative spike 1 (of
    neurons with ``expected_spikes`` those that differ count), and the fan-out of a position is the
    number of weights that it really meets (borders, stride, groups and dilation included).
    Conventions, labelled *derived here*:

    - Max-pooling passes on the spikes that it emits. Average pooling is merged into the layer after
      it: each spike counts once in every window that it lies in. So are unfused BatchNorm and
      constant factors. Interpolation divides a spike among positions.
    - A layer whose input is the analog image (direct coding) runs as MACs, once, because its input
      is the same at every step; one that reads currents which vary (two weighted layers without a
      neuron between them), or frames that do, runs as MACs at every step.
    - A weighted layer in the read-out runs once, as MACs.
    - The analog remainder of ``"compensated"`` coding counts as its size in spikes.
    - Under ``torchrun`` every process counts its own batches, and all return the result over all.
    - Updates of neurons, pooling windows, biases and other constant currents, and memory traffic are
      not counted; neither are they for the ANN.

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
            pairs = batches(loader, "loader", time_dim, time_steps)
            head = next(pairs)
            example = head[0].to(device_of(snn))[:1]
            values = values_of(snn, example)
            with count_spikes(snn, pool_units=pool_units(graph_of(snn), values)) as counter:
                for x, _ in chain([head], pairs):
                    x = x.to(device_of(snn))
                    samples += len(x)
                    with present(snn, x) as shown:
                        for _out in shown.chunks(time_steps, steps_at_once(len(x))):
                            pass
            samples = distributed.total_of(samples)
            return count_operations(snn, values, counter.totals(), samples, time_steps, example.sequence)
    finally:
        reset_net(snn)


@torch.no_grad()
def count_operations(
    snn: nn.Module,
    values: Mapping[fx.Node, Any],
    spikes: Mapping[str, Tensor],
    samples: int,
    time_steps: int,
    varying: bool = False,
    steps_run: float | None = None,
) -> Operations:
    """Operations from summed spikes; see :func:`synops` for the conventions.

    Args:
        snn: the network.
        values: of its nodes, for one step of one sample.
        spikes: events of every layer that emits some ``[3, ...]``, of :class:`SpikeCounter`.
        samples: over which ``spikes`` is summed.
        time_steps: over which ``spikes`` is summed.
        varying: the network's input changes from step to step.
        steps_run: how many steps a sample took on average, if some left early.
    """
    gm = graph_of(snn)
    emitted = {name: events.split(1) for name, events in spikes.items()}
    costs = SpikeWalk(gm, values, emitted, varying).run() | readout_costs(snn, values)
    layers = {}
    for name, cost in costs.items():
        synops = torch.as_tensor(cost.synops).expand(len(ACCOUNTINGS)) / samples
        unary, binary, graded = synops.tolist()
        macs = cost.macs(time_steps if steps_run is None else steps_run)
        layers[name] = LayerOperations(unary, macs, cost.ann_macs, binary, graded)
    return Operations(layers, time_steps)
