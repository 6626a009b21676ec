"""The read-out: what follows the last neuron and is no affine map, applied to the mean output."""

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..utils.inputs import join, rows
from ..utils.outputs import map_tensors, tensors_of
from .evaluate import depends_on_input, record
from .trace import describe

__all__ = ["ReadOut", "clipped_outputs", "split_readout"]

_PLUMBING = {f"Tensor.{name}" for name in ("__getitem__", "clone", "float", "round", "to", "size")}


class ReadOut(nn.Module):
    """The end of a network, from its first function after the last neuron that is no affine map.

    A rate passes an affine map, but not a softmax: the mean of its outputs over time is not its output
    for the mean. Nothing fires after it, so it may wait for the mean.

    Args:
        graph: what it computes, of the mean outputs in the nesting in which the network returns them.

    Example:
        >>> import torch
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(dim=1))
        >>> snn = sj_burst.convert(ann, [torch.rand(8, 3)], progress=False)
        >>> snn.readout
        ReadOut(Softmax module)
        >>> scores = snn.run(torch.rand(5, 3), time_steps=4).mean(0)
        >>> torch.equal(snn.readout(scores), scores.softmax(1))
        True
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, mean: Any) -> Any:
        """The network's answer ``[N, ...]`` for mean outputs ``[N, ...]``, which stay as they are."""
        kept = chain(self.parameters(), self.buffers())
        own = next((t.dtype for t in kept if t.is_floating_point()), None)
        return self.graph(map_tensors(lambda t: t.to(own) if t.is_floating_point() else t, mean))

    def __repr__(self) -> str:
        names = [describe(self.graph, n) for n in self.graph.graph.nodes if n.op.startswith("call_")]
        return f"ReadOut({', '.join(name for name in dict.fromkeys(names) if name not in _PLUMBING)})"


def split_readout(
    gm: fx.GraphModule, x: Any, nodes: set[fx.Node]
) -> tuple[fx.GraphModule, ReadOut | nn.Identity]:
    """Split the read-out off a graph, which returns what it reads.

    The nesting of the outputs stays. An output that the read-out computes gives way to the value that
    it is computed from, or to a tuple of them if there are several. A value has one row a sample; what
    has not, a size say, is computed by the read-out again.

    Args:
        gm: a standardized graph; changed in place.
        x: example input ``[N, ...]``.
        nodes: the read-out, of :func:`~sj_burst.graph.check.find_readout`.

    Returns:
        The same graph module, and a read-out with its own copies of the parameters.

    Example:
        >>> import torch
        >>> from sj_burst import standardize
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         return {"box": x, "share": x.relu().softmax(1)}
        >>> gm = standardize(Net(), torch.rand(2, 3))
        >>> node = next(n for n in gm.graph.nodes if n.target == "softmax")
        >>> _, readout = split_readout(gm, torch.rand(2, 3), {node})
        >>> gm(torch.tensor([[-1.0, 0.0]]))
        {'box': tensor([[-1.,  0.]]), 'share': tensor([[0., 0.]])}
        >>> readout(gm(torch.tensor([[-1.0, 0.0]])))
        {'box': tensor([[-1.,  0.]]), 'share': tensor([[0.5000, 0.5000]])}
    """
    if not nodes:
        return gm, nn.Identity()
    split = _Split(gm, x, nodes)
    readout = ReadOut(copy.deepcopy(fx.GraphModule(gm, split.readout())).eval())
    last = next(iter(reversed(gm.graph.nodes)))
    last.args = (split.outputs(last.args[0]),)
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()
    return gm, readout


@torch.no_grad()
def clipped_outputs(
    gm: fx.GraphModule, readout: nn.Module, values: Mapping[fx.Node, Any]
) -> set[fx.Node]:
    """Values that only the read-out reads, and of them what is negative as zero: it begins with a ReLU.

    Args:
        gm: the graph of a converted network.
        readout: what is applied to its mean outputs; it is tried on numbers of either sign, and on
            negative ones alone, which tells a ReLU from an argmax.
        values: of the graph's nodes for a few images, for the shapes.

    Example:
        >>> gm = fx.symbolic_trace(nn.Identity())
        >>> values = {node: torch.randn(2, 3) for node in gm.graph.nodes}
        >>> len(clipped_outputs(gm, nn.ReLU(), values)), len(clipped_outputs(gm, nn.Tanh(), values))
        (1, 0)
    """
    output = next(iter(reversed(gm.graph.nodes)))
    nested, found = output.args[0], set[fx.Node]()
    _map_nodes(lambda node, _: found.add(node), nested)

    def real(node: fx.Node) -> bool:
        return isinstance(values[node], Tensor) and values[node].is_floating_point()

    def answer(clipped: fx.Node | None, ends: tuple[float, float]) -> Any:
        def given(node: fx.Node, _: Any) -> Any:
            value = values[node]
            if not real(node):
                return value
            tried = torch.linspace(*ends, value.numel()).view_as(value).to(value)
            return tried.clamp_min(0) if node is clipped else tried

        return list(tensors_of(readout(_map_nodes(given, nested))).values())

    def ignored(node: fx.Node) -> bool:
        try:
            pairs = [zip(answer(node, ends), answer(None, ends), strict=True) for ends in _TRIED]
        except (IndexError, RuntimeError, ValueError):  # it wants other numbers: covariances, indices, …
            return False
        return all(torch.equal(one, other) for pair in pairs for one, other in pair)

    return {n for n in found if real(n) and set(n.users) == {output} and ignored(n)}


_TRIED = ((-1.0, 1.0), (1.0, -1.0), (-1.0, -0.1))  # from the first to the last number


class _Split:
    """Where a graph is cut, and the graph of what is cut off."""

    def __init__(self, gm: fx.GraphModule, x: Any, nodes: set[fx.Node]) -> None:
        self.gm, self.nodes = gm, nodes
        self._values, self._more = record(gm, x), record(gm, join([x, map_tensors(lambda t: t[:1], x)]))
        self._samples = rows(x)
        self._depending = depends_on_input(gm)
        # Read-out and what it computes again, each with the values at the cut that it reads.
        self._read: dict[fx.Node, set[fx.Node]] = {}
        self.cut = self._find_cut()
        self._place: dict[fx.Node, tuple[Any, ...]] = {}  # keys that lead to a value at the cut

    def _find_cut(self) -> list[fx.Node]:
        cut, computed = set(), set(self.nodes)
        for node in reversed(self.gm.graph.nodes):
            for source in node.all_input_nodes if node in computed else ():
                if self._has_rows(source) and source not in self.nodes:
                    cut.add(source)
                elif not self._is_batch_size(source):
                    computed.add(source)
        for node in self.gm.graph.nodes:
            if node in computed:
                sources = node.all_input_nodes
                self._read[node] = cut.intersection(sources).union(
                    *(self._read.get(n, ()) for n in sources if n not in cut)
                )
        return [n for n in self.gm.graph.nodes if n in cut]

    def _has_rows(self, node: fx.Node) -> bool:
        few, more = self._values[node], self._more[node]
        rows = isinstance(few, Tensor) and few.shape[:1] == (self._samples,)
        return rows and node in self._depending and more.shape[:1] == (self._samples + 1,)

    def _is_batch_size(self, node: fx.Node) -> bool:
        few, more = self._values[node], self._more[node]
        return type(few) is int and (few, more) == (self._samples, self._samples + 1)

    def outputs(self, value: Any) -> Any:
        """What the graph returns instead of ``value``."""
        return _map_nodes(self._instead, value)

    def _instead(self, node: fx.Node, _: tuple[Any, ...] = ()) -> Any:
        if node not in self.nodes:
            return node
        read = tuple(n for n in self.cut if n in self._read[node])
        return read[0] if len(read) == 1 else read

    def readout(self) -> fx.Graph:
        """The graph of the read-out."""
        graph = fx.Graph()
        mean = graph.placeholder("mean")

        def at(path: tuple[Any, ...]) -> fx.Node:
            value = mean
            for key in path:
                value = graph.call_method("__getitem__", (value, key))
            return value

        def find(node: fx.Node, path: tuple[Any, ...]) -> None:
            self._place.setdefault(node, path)

        last = next(iter(reversed(self.gm.graph.nodes)))
        _map_nodes(find, self.outputs(last.args[0]))
        made = {n: self._restored(graph, n, at(self._place[n])) for n in self.cut}
        for node in self.gm.graph.nodes:
            if node in self._read:
                made[node] = graph.node_copy(node, lambda n: self._copied(graph, n, made))
        graph.output(_map_nodes(lambda n, path: made[n] if n in self.nodes else at(path), last.args[0]))
        return graph

    def _restored(self, graph: fx.Graph, node: fx.Node, mean: fx.Node) -> fx.Node:
        """A mean as the value whose mean it is; one that is no real number is the same at every step."""
        dtype = self._values[node].dtype
        if dtype.is_floating_point or dtype.is_complex:
            return graph.call_method("clone", (mean,))  # to be written into
        rounded = graph.call_method("round", (graph.call_method("float", (mean,)),))
        return graph.call_method("to", (rounded, dtype))

    def _copied(self, graph: fx.Graph, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node:
        if node not in made:  # the number of samples
            made[node] = graph.call_method("size", (made[self.cut[0]], 0))
        return made[node]


def _map_nodes(function: Any, value: Any, path: tuple[Any, ...] = ()) -> Any:
    """``function(node, path)`` in the place of every node of a nesting."""
    if isinstance(value, fx.Node):
        return function(value, path)
    if isinstance(value, Mapping):
        return {key: _map_nodes(function, part, (*path, key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_map_nodes(function, part, (*path, i)) for i, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    return value
