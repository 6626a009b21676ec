"""A converted network in layers of sinabs, which SynSense's chips and tools understand."""

import importlib
import math
from typing import Any

from torch import Tensor, nn

from ..functional import per_channel
from ..graph.repeat import RepeatOverTime
from ..modules.neuron import BurstIFNode
from ..network import SpikingNetwork, check_converted
from ..utils.checks import check_count
from ..utils.outputs import map_tensors
from .unit_thresholds import check_unsigned, unit_thresholds

__all__ = ["SinabsNetwork", "SinabsNeurons", "sinabs_neurons", "to_sinabs"]


class SinabsNeurons(nn.Module):
    """A layer of sinabs' neurons that starts from an initial membrane potential.

    Args:
        layer: sinabs' layer.
        v_init: initial membrane potential, a scalar or one value per channel.
        shift: constant current, shaped likewise, or ``None``.
    """

    v_init: Tensor
    shift: Tensor | None

    def __init__(self, layer: nn.Module, v_init: Tensor, shift: Tensor | None) -> None:
        super().__init__()
        self.layer: Any = layer
        self.time_steps = 1
        self.register_buffer("v_init", v_init.detach().clone())
        self.register_buffer("shift", None if shift is None else shift.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Counts ``[N·T, ...]`` for currents ``[N·T, ...]``, from a fresh state; time runs fastest."""
        if self.shift is not None:
            x = x + per_channel(self.shift, x.dim())
        sequence = x.unflatten(0, (-1, self.time_steps))
        self.layer.v_mem = per_channel(self.v_init, x.dim()).expand_as(sequence[:, 0]).clone()
        return self.layer(sequence).flatten(0, 1).to(x.dtype)  # sinabs counts in float32


class SinabsNetwork(nn.Module):
    """A network whose neurons are sinabs' layers; made by :func:`to_sinabs`.

    Attributes:
        graph: the layers, of rows sample·T + step, as sinabs' squeezed layers take them.
        readout: from mean outputs to the answer.
    """

    def __init__(self, graph: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.graph, self.readout = graph, readout

    def forward(self, *x: Tensor) -> Any:
        """Outputs of every step ``[N, T, ...]`` for inputs ``[N, T, ...]``, from a fresh state."""
        samples, steps = x[0].shape[:2]
        for module in self.graph.modules():
            if isinstance(module, SinabsNeurons):
                module.time_steps = steps
        out = self.graph(*(part.flatten(0, 1) for part in x))
        return map_tensors(lambda t: t.unflatten(0, (samples, steps)), out)

    def run(self, *x: Tensor, time_steps: int) -> Any:
        """Outputs ``[T, N, ...]`` for inputs ``[N, ...]`` that are held, as of ``snn.run(x, T)``."""
        check_count(time_steps=time_steps)
        held = [part.unsqueeze(1).expand(-1, time_steps, *part.shape[1:]) for part in x]
        return map_tensors(lambda t: t.transpose(0, 1), self(*held))


def to_sinabs(snn: SpikingNetwork) -> SinabsNetwork:
    """The same network in sinabs' layers: the same spikes, at every step.

    Neurons become ``IAF`` of threshold 1 with soft reset (``MembraneSubtract``) that send up to Γ spikes
    a step (``MaxSpike``, or ``MultiSpike`` for an infinite Γ), after :func:`unit_thresholds`.

    Args:
        snn: a converted network of unsigned neurons and average pooling, under direct coding.

    Returns:
        A plain torch module.

    Raises:
        ImportError: without sinabs; ``pip install 'sj_burst[sinabs]'``.
        TypeError: for a network that was not converted.
        ValueError: names every layer that sinabs cannot express, and the option to convert with.

    Source: the neuron of Li & Zeng, IJCAI 2022; sinabs by SynSense.

    Example:
        >>> import torch
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> snn = sj_burst.convert(ann, [torch.rand(16, 3)], progress=False)
        >>> to_sinabs(snn)
        Traceback (most recent call last):
        ValueError: sinabs cannot express 1 (spikes are taken back); convert with
        inactivated_spikes='allow'
    """
    check_converted(snn, "to_sinabs")
    check_unsigned(snn, "sinabs")
    unit = unit_thresholds(snn)
    for name, module in list(unit.graph.named_modules()):
        if isinstance(module, BurstIFNode):
            layer = sinabs_neurons(module.max_spikes, module.v_init, module.shift)
            unit.graph.set_submodule(name, layer)
        elif isinstance(module, RepeatOverTime):
            unit.graph.set_submodule(name, nn.Identity())  # every step has rows of its own
    return SinabsNetwork(unit.graph, unit.readout).eval()


def sinabs_neurons(max_spikes: float, v_init: Tensor, shift: Tensor | None) -> SinabsNeurons:
    """Neurons of threshold 1 with soft reset that send up to Γ spikes a step.

    Raises:
        ImportError: without sinabs.
    """
    layers, activation = _sinabs()
    endless = math.isinf(max_spikes)
    layer = layers.IAF(
        spike_threshold=1.0,
        spike_fn=activation.MultiSpike if endless else activation.MaxSpike(max_spikes),
        reset_fn=activation.MembraneSubtract(),
        min_v_mem=None,
    )
    return SinabsNeurons(layer, v_init, shift)


def _sinabs() -> tuple[Any, Any]:
    try:
        return importlib.import_module("sinabs.layers"), importlib.import_module("sinabs.activation")
    except ImportError as error:
        raise ImportError(
            f"to_sinabs needs sinabs ({error}); pip install 'sj_burst[sinabs]' in an environment of its "
            "own: it wants an older nir than SpikingJelly's extra"
        ) from error
