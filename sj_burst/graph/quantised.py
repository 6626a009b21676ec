"""The quantised ANN: a converted network in which every neuron has its whole input at once."""

import copy

from spikingjelly.activation_based.functional import reset_net
from torch import fx, nn

from ..modules.neuron import BurstIFNode
from ..modules.rate import RateNeuron
from ..modules.temporal import TemporalModule

__all__ = ["quantised"]


def quantised(graph: fx.GraphModule, time_steps: int) -> fx.GraphModule:
    """A copy of a converted graph whose neurons are functions with ΓT levels, without time.

    It is in eval mode. What it does not share with the spiking network is unevenness: that currents
    vary from step to step. Poolings are those of the ANN, and the input is not coded.

    Args:
        graph: of a converted network; stays as it is, but for its reset state.
        time_steps: T.

    Example:
        >>> import sj_burst, torch
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> x = torch.rand(8, 3)
        >>> snn = sj_burst.convert(ann, [x], progress=False)
        >>> with torch.no_grad():
        ...     torch.allclose(quantised(snn.graph, 8)(x), snn.run(x, 8).mean(0), atol=1e-5)
        True
    """
    reset_net(graph)
    found = copy.deepcopy(graph).eval()
    for name, module in list(found.named_modules()):
        if isinstance(module, BurstIFNode):
            found.set_submodule(name, RateNeuron(module, time_steps))
        elif isinstance(module, TemporalModule):
            found.set_submodule(name, getattr(module, "pool", None) or nn.Identity())
    return found
