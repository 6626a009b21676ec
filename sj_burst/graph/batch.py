"""Let the number of samples be free in a graph that was traced for one number of them."""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..utils.inputs import join, rows
from ..utils.outputs import map_tensors
from .constants import fold_constants
from .evaluate import record
from .trace import trace

__all__ = ["follow_batch"]


def follow_batch(gm: fx.GraphModule, model: nn.Module, x: Any) -> None:
    """Write ``x.size(0)`` again for what Python computed from it while a network was traced.

    The network is traced once more with one sample more. A number that grows from k·N to k·(N + 1) is
    k times the number of samples; a constant with N equal rows is one row, repeated.
    Whether the graph is right then is for :func:`~sj_burst.graph.standardize.check_batch_sizes` to say.

    Args:
        gm: the traced graph, with its constants folded; changed in place.
        model: the network that it came from.
        x: the example input ``[N, ...]`` that it was traced with, or a tuple or dict of several.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         return x.reshape(int(x.shape[0]), -1)
        >>> x = torch.rand(2, 3, 4)
        >>> gm = fold_constants(trace(Net(), x)[0])
        >>> follow_batch(gm, Net(), x)
        >>> gm(torch.rand(5, 3, 4)).shape
        torch.Size([5, 12])
    """
    try:
        other = fold_constants(trace(model, join([x, map_tensors(lambda t: t[:1], x)]))[0])
    except ValueError:
        return  # it runs with one number of samples only
    nodes, others = list(gm.graph.nodes), list(other.graph.nodes)
    if [(n.op, str(n.target)) for n in nodes] != [(n.op, str(n.target)) for n in others]:
        return  # it does something else with another number of samples
    values = record(gm, x)
    for node, more in zip(nodes, others, strict=True):
        if node.op == "get_attr":
            _keep_one_row(gm, node, other, values)
        elif node.op != "placeholder":
            source = next((n for n in node.all_input_nodes if _has_rows(values[n], rows(x))), nodes[0])
            numbers = _Numbers(gm, source, node, rows(x))
            node.args = numbers.merged(node.args, more.args)
            node.kwargs = numbers.merged(node.kwargs, more.kwargs)
    gm.graph.lint()
    gm.recompile()


def _has_rows(value: Any, samples: int) -> bool:
    return isinstance(value, Tensor) and value.shape[:1] == (samples,)


class _Numbers:
    """Arguments of a call for N samples and N + 1, as arguments for any number.

    Args:
        gm: the graph of N samples.
        source: a node whose value has one row a sample.
        node: the call.
        samples: N.
    """

    def __init__(self, gm: fx.GraphModule, source: fx.Node, node: fx.Node, samples: int) -> None:
        self.gm, self.source, self.node, self.samples = gm, source, node, samples
        self._size: fx.Node | None = None

    def merged(self, a: Any, b: Any) -> Any:
        """``a`` with multiples of the number of samples written as such."""
        if isinstance(a, dict):
            return {key: self.merged(a[key], b[key]) for key in a}
        if isinstance(a, list | tuple) and len(a) == len(b):
            items = [self.merged(x, y) for x, y in zip(a, b, strict=True)]
            return items if isinstance(a, list) else tuple(items)
        if isinstance(a, slice):
            parts = ((a.start, b.start), (a.stop, b.stop), (a.step, b.step))
            return slice(*(self.merged(x, y) for x, y in parts))
        if type(a) is int and type(b) is int and a != b and a == (b - a) * self.samples:
            return self._times(b - a)
        return a

    def _times(self, factor: int) -> fx.Node:
        graph = self.gm.graph
        with graph.inserting_before(self.node):
            self._size = self._size or graph.call_method("size", (self.source, 0))
            return self._size if factor == 1 else graph.call_function(operator.mul, (self._size, factor))


def _keep_one_row(
    gm: fx.GraphModule, node: fx.Node, other: fx.GraphModule, values: dict[fx.Node, Any]
) -> None:
    """Of a constant that has one row a sample, all alike, keep the first, and repeat it for readers."""
    owner, _, key = str(node.target).rpartition(".")
    module = gm.get_submodule(owner)
    a, b = getattr(module, key), getattr(other.get_submodule(owner), key)
    samples = len(next(iter(values.values())))
    grown = _has_rows(a, samples) and b.shape == (samples + 1, *a.shape[1:])
    if not grown or not torch.equal(b, b[:1].expand_as(b)):
        return
    setattr(module, key, nn.Parameter(a[:1]) if isinstance(a, nn.Parameter) else a[:1].clone())
    for user in list(node.users):
        inputs = [n for n in user.all_input_nodes if n is not node and n.op != "get_attr"]
        source = next((n for n in inputs if _has_rows(values[n], samples)), next(iter(gm.graph.nodes)))
        with gm.graph.inserting_before(user):
            size = gm.graph.call_method("size", (source, 0))
            rows = gm.graph.call_method("expand", (node, size, *a.shape[1:]))
        user.replace_input_with(node, rows)
