"""What the values of a network look like for an input: counting and planning need no more of them."""

from collections.abc import Hashable
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import fx, nn

from ..graph.evaluate import depends_on_input, evaluate_node, record
from ..modules.temporal import TimeFold, time_folded
from ..network import SpikingNetwork
from ..utils.inputs import Inputs
from ..utils.outputs import map_tensors

__all__ = ["graph_of", "values_of"]


def graph_of(snn: nn.Module) -> fx.GraphModule:
    """The graph of a converted network.

    Raises:
        TypeError: for other networks.
    """
    graph = snn.graph if isinstance(snn, SpikingNetwork) else snn
    if not isinstance(graph, fx.GraphModule):
        raise TypeError(f"operations are counted of converted networks only, got {type(snn).__name__}")
    return graph


@torch.no_grad()
def values_of(snn: nn.Module, x: Inputs) -> dict[fx.Node, Any]:
    """The values of a converted network's nodes for one step of an input; its state is reset.

    Tensors that depend on the input are zeros of the right shape and type. What they look like,
    a trial run tells, once for every kind of input; constants are looked up each time.

    Args:
        snn: a converted network, or its graph.
        x: the input; of one sample, that is all there is to a kind of input.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> snn = sj_burst.convert(ann, [torch.rand(8, 3)], progress=False)
        >>> [list(value.shape) for value in values_of(snn, Inputs(torch.rand(1, 3))).values()][:2]
        [[1, 3], [1, 4]]
    """
    gm = graph_of(snn)
    reset_net(gm)
    known = _KNOWN.setdefault(gm, {})
    if (kind := _kind(gm, x)) not in known:
        known[kind] = _trial(snn, x)
    values: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        if node.name in known[kind]:
            values[node] = _zeros(known[kind][node.name], x.device)
        else:
            values[node] = evaluate_node(gm, node, values.__getitem__)
    return values


_KNOWN: WeakKeyDictionary[nn.Module, dict[Hashable, dict[str, Any]]] = WeakKeyDictionary()


def _kind(gm: fx.GraphModule, x: Inputs) -> Hashable:
    """What the trial run depends on: nodes, modules, and the shapes and types of the input."""
    nodes = tuple((node.name, str(node.args)) for node in gm.graph.nodes)
    inputs = tuple((t.shape, t.dtype, t.device) for t in x.tensors)
    return nodes, tuple(gm.modules())[1:], inputs, x.sequence


def _trial(snn: nn.Module, x: Inputs) -> dict[str, Any]:
    """By the name of a node what depends on the input: tensors on the meta device, sizes as they are."""
    gm = graph_of(snn)
    fold = TimeFold(1, len(x))
    try:
        with time_folded(gm, fold) if isinstance(snn, SpikingNetwork) else nullcontext():
            found = record(gm, x.one_frame(), wanted=depends_on_input(gm))
    finally:
        reset_net(gm)
    return {node.name: _without_numbers(value) for node, value in found.items()}


def _without_numbers(value: Any) -> Any:
    return value if isinstance(value, torch.Size) else map_tensors(lambda t: t.to("meta"), value)


def _zeros(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Size):
        return value
    return map_tensors(lambda t: torch.zeros_like(t, device=device), value)
