"""Which nodes of a graph are calibrated, and which affine module each has to itself."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx

from ..graph.evaluate import depends_on_input, record
from ..graph.operators import SUMS, WEIGHTED
from ..graph.trace import call_sites, is_module
from ..modules.neuron import BurstIFNode

__all__ = ["Source", "current_sources"]


class Source(NamedTuple):
    """Where the input current of a neuron comes from: an affine call, plus a residual.

    Attributes:
        affine: the affine call whose output has no other use; ``None`` if there is none.
        residual: what is added to that output; ``None`` for nothing.
    """

    affine: fx.Node | None = None
    residual: fx.Node | None = None

    def refitted(self, node: Any) -> list[fx.Node]:
        """Nodes up to ``node``'s current whose values change when the affine module does."""
        if self.affine is None:
            return []
        current = [] if self.residual is None else [node.args[0]]
        return [self.affine, *current]

    def read(self) -> list[fx.Node]:
        """Nodes whose values a fit needs."""
        if self.affine is None:
            return []
        residual = [] if self.residual is None else [self.residual]
        return [self.affine, *self.affine.all_input_nodes, *residual]


def current_sources(gm: fx.GraphModule, x: Any) -> dict[fx.Node, Source]:
    """The neurons, and the affine modules after the last of them, each with its source.

    The source of an affine module is the module itself; one that is called more than once is left out,
    because it has no parameters of its own.

    Args:
        gm: a converted graph.
        x: a few images.
    """
    values = record(gm, x)
    reset_net(gm)
    depending = depends_on_input(gm)
    shapes = {n: v.shape for n, v in values.items() if n in depending and isinstance(v, Tensor)}
    sources = {node: _source(gm, node, shapes) for node in _fitted(gm)}
    return {n: s for n, s in sources.items() if s.affine or is_module(gm, n, BurstIFNode)}


def _fitted(gm: fx.GraphModule) -> list[fx.Node]:
    before: set[fx.Node] = set()  # nodes from which a neuron can be reached
    for node in reversed(gm.graph.nodes):
        if is_module(gm, node, BurstIFNode) or before.intersection(node.users):
            before.add(node)
    return [
        node
        for node in gm.graph.nodes
        if is_module(gm, node, BurstIFNode) or (node not in before and is_module(gm, node, WEIGHTED))
    ]


def _source(gm: fx.GraphModule, node: fx.Node, shapes: Mapping[Any, torch.Size]) -> Source:
    """A residual counts as one if it has the shape of the sum, and depends on the network's input. An
    affine call counts if its module has no other call, and if it has one row a sample.
    """
    batch = next(iter(shapes.values()))[0]

    def single(n: fx.Node) -> bool:
        return call_sites(gm, n.target) == 1 and shapes.get(n, (0,))[0] == batch

    def owned(n: object) -> bool:
        return isinstance(n, fx.Node) and is_module(gm, n, WEIGHTED) and len(n.users) == 1 and single(n)

    if is_module(gm, node, WEIGHTED):
        return Source(node) if single(node) else Source()
    current: Any = node.args[0]
    if owned(current):
        return Source(current)
    if current.target in SUMS and not current.kwargs and len(current.users) == 1:
        for one, other in (current.args, current.args[::-1]):
            alike = shapes.get(one) == shapes.get(other) == shapes[current]
            if owned(one) and other is not one and alike:
                return Source(one, other)
    return Source()
