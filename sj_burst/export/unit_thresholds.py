"""Unit thresholds: neurons that send counts, and weights that hold the scales."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..graph.operators import SUMS, WEIGHTED
from ..graph.repeat import RepeatOverTime
from ..graph.trace import is_module
from ..graph.units import meets_channels, passed_on, scale_inputs, scale_outputs
from ..modules.neuron import BurstIFNode
from ..modules.scale import Scale
from ..modules.temporal import TemporalModule
from ..network import SpikingNetwork, check_converted
from .editor import GraphEditor

__all__ = ["check_unsigned", "unit_thresholds"]


def unit_thresholds(snn: SpikingNetwork) -> SpikingNetwork:
    r"""The same network with thresholds 1, neurons that send counts, and weights that hold the scales.

    .. math::
        W'_{oc} = W_{oc}\,\theta_c / \theta'_o, \quad b' = b / \theta'_o, \quad
        v(0)' = v(0) / \theta'_o, \quad \text{shift}' = \text{shift} / \theta'_o

    with θ of the neurons before a layer and θ' of those after it. Poolings of spikes are as they were.
    Where a scale meets no weights of its own, as in the branches of a sum, a
    :class:`~sj_burst.modules.scale.Scale` stands. The spikes are the same, step by step, but for
    rounding (by which ``max_pool="gated"`` breaks ties between equal counts); ``state_dict()`` holds
    the folded weights. Expected spikes stay so: a chip sends the others, and holds what
    :func:`~sj_burst.export.expected_currents` returns.

    Args:
        snn: a converted network; stays as it is, but for its reset state.

    Returns:
        A network in eval mode that returns what ``snn`` returns. :func:`sj_burst.save` refuses it, as
        :func:`sj_burst.load` builds from the ANN: save ``snn``, or the ``state_dict()`` of this one.

    Raises:
        TypeError: for a network that was not converted.
        ValueError: for one whose weights hold its thresholds already.

    Source: the fold is common; after Rueckauer et al., 2017.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> snn = sj_burst.convert(ann, [torch.rand(16, 3)], progress=False)
        >>> unit = unit_thresholds(snn)
        >>> unit.neurons()["1"].threshold.unique().tolist()
        [1.0]
        >>> x = torch.rand(5, 3)
        >>> torch.allclose(unit.run(x, 4), snn.run(x, 4), atol=1e-5)
        True
    """
    check_converted(snn, "unit_thresholds")
    reset_net(snn)
    unit = copy.deepcopy(snn).eval()
    _Folding(unit).run()
    unit.folded = True
    return unit


def check_unsigned(snn: SpikingNetwork, executor: str) -> None:
    """Raise unless a network is one of unsigned neurons and average pooling, under direct coding.

    Args:
        snn: a converted network.
        executor: what can run such networks only.

    Raises:
        ValueError: names every layer that is something else, and the option to convert with.
    """
    if problems := [p for name, m in snn.graph.named_modules() if (p := _problem(name, m))]:
        raise ValueError(f"{executor} cannot express {'; nor '.join(problems)}")


def _problem(name: str, module: nn.Module) -> str | None:
    if isinstance(module, BurstIFNode):
        if module.negative_slope is not None:
            return f"{name} (LeakyReLU); train with ReLU"
        if module.expected is not None:
            remedy = "expected_spikes='none', inactivated_spikes='allow'"
            return f"{name} (expected spikes); convert with {remedy}"
        if type(module) is not BurstIFNode or module.signed:
            return f"{name} (spikes are taken back); convert with inactivated_spikes='allow'"
        return None
    if isinstance(module, RepeatOverTime) or not isinstance(module, TemporalModule):
        return None
    if hasattr(module, "pool"):
        return f"{name} ({type(module).__name__}); convert with max_pool='average'"
    return f"{name} ({type(module).__name__}); convert with coding='direct'"


class _Folding:
    """Walks through a graph once; every value is its scale times what the new graph has in its place."""

    def __init__(self, snn: SpikingNetwork) -> None:
        self.editor = GraphEditor(snn)
        self.gm, self.shapes = self.editor.gm, self.editor.shapes
        self.scales: dict[fx.Node, Tensor] = {}  # of values that are not in units of the ANN

    @torch.no_grad()
    def run(self) -> None:
        """Fold, in place."""
        for node in list(self.gm.graph.nodes):
            self._rule(node)(node)
        self.editor.finish()

    def _rule(self, node: fx.Node) -> Callable[[fx.Node], None]:
        if is_module(self.gm, node, BurstIFNode):
            return self._neuron
        sources = node.all_input_nodes
        if node.target in SUMS and self._adds_maps(node) and self._threshold_after(node) is not None:
            return self._sum
        scale = self.scales.get(sources[0]) if sources else None
        if scale is not None and scale.dim() <= 1 and meets_channels(self.gm, node, self.shapes, scale):
            return self._layer
        if passed_on(self.gm, node, self.shapes, self.scales) is not None:
            return self._pass_on
        return self._restore

    def _adds_maps(self, node: fx.Node) -> bool:
        """Whether two values with the same channels are added."""
        shape = self.shapes[node]
        parts = [self.shapes[n] for n in node.all_input_nodes]
        return len(parts) == 2 and all(
            part[1:2] == shape[1:2] and len(part) == len(shape) for part in parts
        )

    def _threshold_after(self, node: fx.Node) -> Tensor | None:
        """θ of the neuron that alone reads a value."""
        readers = list(node.users)
        if len(readers) != 1 or not is_module(self.gm, readers[0], BurstIFNode):
            return None
        neuron: Any = self.gm.get_submodule(str(readers[0].target))
        return neuron.threshold.detach().clone()

    def _neuron(self, node: fx.Node) -> None:
        """Threshold 1; what comes before it is divided by θ."""
        neuron: Any = self._own(node)
        theta = neuron.threshold.detach().clone()
        self._divide(node, node.all_input_nodes[0], theta)
        neuron.threshold = torch.ones_like(theta)
        neuron.v_init = neuron.v_init / theta
        if neuron.shift is not None:
            neuron.shift = neuron.shift / theta
        self.scales[node] = theta

    def _sum(self, node: fx.Node) -> None:
        """Each branch has a scale of its own."""
        theta = self._threshold_after(node)
        assert theta is not None
        for source in node.all_input_nodes:
            self._divide(node, source, theta)
        self.scales[node] = theta

    def _divide(self, node: fx.Node, source: fx.Node, theta: Tensor) -> None:
        """Let a node read a value in units of θ; a layer that nothing else reads does it itself."""
        layer = is_module(self.gm, source, WEIGHTED) and list(source.users) == [node]
        by_channel = theta.dim() == 0 or not is_module(self.gm, source, nn.Linear)
        by_channel = by_channel or (theta.dim() == 1 and len(self.shapes[source]) == 2)
        if layer and theta.dim() <= 1 and by_channel and source not in self.scales:
            scale_outputs(self._own(source), 1 / theta.double())
        else:
            self._insert(node, source, self.scales.get(source, torch.ones_like(theta)) / theta)

    def _layer(self, node: fx.Node) -> None:
        scale_inputs(self._own(node), self.scales[node.all_input_nodes[0]])

    def _pass_on(self, node: fx.Node) -> None:
        scale = passed_on(self.gm, node, self.shapes, self.scales)
        assert scale is not None
        self.scales[node] = scale

    def _restore(self, node: fx.Node) -> None:
        def undo(source: fx.Node) -> nn.Module | None:
            return _scale(self.scales[source]) if source in self.scales else None

        self.editor.restore(node, undo)

    def _insert(self, node: fx.Node, source: fx.Node, factor: Tensor) -> None:
        if (module := _scale(factor)) is not None:
            self.editor.insert(node, source, module)

    def _own(self, node: fx.Node) -> Any:
        """The module of a call, for itself: one that is called twice, or tied, may have two scales."""
        module = copy.deepcopy(self.editor.module(node))
        self.editor.place(node, module)
        return module


def _scale(factor: Tensor) -> Scale | None:
    """A module that multiplies by a factor, if it does anything."""
    return None if bool((factor == 1).all()) else Scale(factor)
