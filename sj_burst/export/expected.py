"""What expected spikes amount to where others arrive: a constant current, for a chip to hold."""

import copy
from typing import Any

import torch
from torch import Tensor, fx

from ..functional import per_channel
from ..graph.evaluate import evaluate_node
from ..graph.trace import call_sites, is_module
from ..modules.integers import IntegerLayer
from ..modules.temporal import TimeFold, time_folded
from ..network import SpikingNetwork, check_converted
from ..simulation.spikes import POOLS, SOURCES
from ..simulation.values import values_of
from ..simulation.walk import pool_units
from ..utils.outputs import tensors_of

__all__ = ["expected_currents"]


@torch.no_grad()
def expected_currents(snn: SpikingNetwork) -> dict[str, Tensor]:
    r"""The constant current that expected spikes cause, in a step, wherever spikes arrive.

    .. math::
        z(t) = b + W \theta\, (n(t) - r) + W \theta r

    of which a chip holds the last part, because what its neurons send is n − r. W is all that lies
    between: layers, their sums, shortcuts without weights. The part differs at borders, where zero
    padding has no neurons.

    Args:
        snn: a network converted with ``expected_spikes="median"``, or what
            :func:`~sj_burst.export.unit_thresholds` made of it; its state is reset.

    Returns:
        What to add to the input of every neuron and every max-pooling, by its name, or by its call if it
        is called several times, and to ``"output"`` (``"output.0"``, … if there are several):
        ``[C, ...]``, for inputs of the size that the network was calibrated on. What would be zero is
        left out.

    Raises:
        TypeError: for a network that was not converted.
        ValueError: for one in integers.

    Source: derived here.

    Example:
        >>> import sj_burst
        >>> ann = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
        >>> _ = torch.nn.init.zeros_(ann[0].weight), torch.nn.init.constant_(ann[0].bias, 3.0)
        >>> _ = torch.nn.init.constant_(ann[2].weight, 2.0)
        >>> options = {"expected_spikes": "median", "calibration": "none", "progress": False}
        >>> snn = sj_burst.convert(ann, [torch.rand(8, 2)], **options)
        >>> expected_currents(snn)
        {'output': tensor([6.])}
    """
    check_converted(snn, "expected_currents", folded=True)
    if any(isinstance(module, IntegerLayer) for module in snn.graph.modules()):
        raise ValueError("expected_currents wants real weights; pass the network before to_integers")
    precise = copy.deepcopy(snn).double()
    gm, x = precise.graph, precise.example()
    sent = _expected_outputs(precise)
    with time_folded(gm, TimeFold(1, 1)):
        some = _values(gm, x.value, sent)
        none = _values(gm, x.value, {node: torch.zeros_like(value) for node, value in sent.items()})
    dtype = next(iter(snn.neurons().values())).threshold.dtype
    found = {}
    for node in gm.graph.nodes:
        if node in sent or node.op == "output":
            read = node if node.op == "output" else node.all_input_nodes[0]
            others = tensors_of(none[read])
            for path, value in tensors_of(some[read]).items():
                current = value - others[path]
                if current.is_floating_point() and bool(current.any()):
                    found[".".join(map(str, (_name(gm, node), *path)))] = current[0].to(dtype)
    return found


def _name(gm: fx.GraphModule, node: fx.Node) -> str:
    """That of what a node calls, or of the node if others call it too, or ``"output"``."""
    return node.name if call_sites(gm, node.target) > 1 else str(node.target)


def _expected_outputs(snn: SpikingNetwork) -> dict[fx.Node, Tensor]:
    """What the expected spikes of everything that sends some weigh ``[1, ...]``."""
    gm = snn.graph
    values = values_of(snn, snn.example())
    units = pool_units(gm, values)
    sent = {}
    for node in gm.graph.nodes:
        if not is_module(gm, node, (*SOURCES, *POOLS)):
            continue
        module: Any = gm.get_submodule(str(node.target))
        unit = units.get(str(node.target), getattr(module, "threshold", None))
        expected, like = getattr(module, "expected", None), values[node]
        if expected is None or unit is None:
            sent[node] = torch.zeros_like(like)
        else:
            weighs = per_channel(expected, like.dim()) * per_channel(unit, like.dim())
            sent[node] = weighs.expand_as(like)
    return sent


def _values(gm: fx.GraphModule, x: Any, sent: dict[fx.Node, Tensor]) -> dict[fx.Node, Any]:
    """Of all nodes, where neurons and poolings send what is given."""
    own: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        own[node] = sent[node] if node in sent else evaluate_node(gm, node, own.__getitem__, x)
    return own
