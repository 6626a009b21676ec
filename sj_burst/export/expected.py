"""What expected spikes amount to in the layers behind: a constant current, for a chip to hold."""

import copy
from typing import Any

import torch
from torch import Tensor, fx

from ..functional import per_channel
from ..graph.evaluate import evaluate_node
from ..graph.operators import WEIGHTED, WEIGHTED_CALLS
from ..graph.trace import call_sites, is_module
from ..modules.integers import IntegerLayer
from ..modules.temporal import TimeFold, time_folded
from ..network import SpikingNetwork, check_converted
from ..simulation.spikes import POOLS, SOURCES
from ..simulation.values import values_of
from ..simulation.walk import pool_units

__all__ = ["expected_currents"]


@torch.no_grad()
def expected_currents(snn: SpikingNetwork) -> dict[str, Tensor]:
    r"""The constant current that expected spikes cause in every layer, in a step.

    .. math::
        z(t) = b + W \theta\, (n(t) - r) + W \theta r

    of which a chip holds the last part beside the bias b, because what its neurons send is n − r. It
    differs at borders, where zero padding has no neurons.

    Args:
        snn: a network converted with ``expected_spikes="median"``, or what
            :func:`~sj_burst.export.unit_thresholds` made of it; its state is reset.

    Returns:
        By the name of the layer, or of its call if it is called several times, the current
        ``[C, ...]`` for inputs of the size that the network was calibrated on; layers in which no
        spike is expected are left out.

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
        {'2': tensor([6.])}
    """
    check_converted(snn, "expected_currents", folded=True)
    if any(isinstance(module, IntegerLayer) for module in snn.graph.modules()):
        raise ValueError("expected_currents wants real weights; pass the network before to_integers")
    precise = copy.deepcopy(snn).double()
    gm, x = precise.graph, precise.example()
    values = values_of(precise, x)
    units = pool_units(gm, values)
    with time_folded(gm, TimeFold(1, 1)):
        with_them, without = (_values(gm, x.value, values, units, share) for share in (1.0, 0.0))
    found, dtype = {}, next(iter(snn.neurons().values())).threshold.dtype
    for node in gm.graph.nodes:
        if is_module(gm, node, WEIGHTED) or node.target in WEIGHTED_CALLS:
            current = (with_them[node] - without[node])[0]
            once = node.op == "call_module" and call_sites(gm, node.target) == 1
            if bool(current.any()):
                found[str(node.target) if once else node.name] = current.to(dtype)
    return found


def _values(
    gm: fx.GraphModule, x: Any, values: dict[fx.Node, Any], units: dict[str, Tensor], share: float
) -> dict[fx.Node, Any]:
    """Of all nodes, where neurons and poolings send a share of what is expected, and nothing else."""
    own: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        if is_module(gm, node, (*SOURCES, *POOLS)):
            own[node] = share * _sent(gm, node, values[node], units)
        else:
            own[node] = evaluate_node(gm, node, own.__getitem__, x)
    return own


def _sent(gm: fx.GraphModule, node: fx.Node, value: Tensor, units: dict[str, Tensor]) -> Tensor:
    """What the spikes that are expected weigh, shaped as a value."""
    module: Any = gm.get_submodule(str(node.target))
    expected, unit = getattr(module, "expected", None), units.get(str(node.target))
    unit = getattr(module, "threshold", None) if unit is None else unit
    if expected is None or unit is None:
        return torch.zeros_like(value)
    return (per_channel(expected, value.dim()) * per_channel(unit, value.dim())).expand_as(value)
