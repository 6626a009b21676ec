"""The values of a converted network's nodes: what counting and planning go by."""

from contextlib import nullcontext
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import fx, nn

from ..graph.evaluate import record
from ..modules.temporal import TimeFold, time_folded
from ..network import SpikingNetwork
from ..utils.inference import eval_mode
from ..utils.inputs import Inputs

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

    Args:
        snn: a converted network, or its graph.
        x: the input.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> snn = sj_burst.convert(ann, [torch.rand(8, 3)], progress=False)
        >>> [list(value.shape) for value in values_of(snn, Inputs(torch.rand(1, 3))).values()][:2]
        [[1, 3], [1, 4]]
    """
    gm = graph_of(snn)
    reset_net(gm)
    fold = TimeFold(1, len(x))
    try:
        folded = time_folded(gm, fold) if isinstance(snn, SpikingNetwork) else nullcontext()
        with eval_mode(gm), folded:
            return record(gm, x.one_frame())
    finally:
        reset_net(gm)
