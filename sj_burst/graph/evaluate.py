"""Evaluate a traced graph node by node."""

import operator
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, fx

from ..utils.inputs import bind
from ..utils.outputs import map_tensors

__all__ = [
    "depends_on_input",
    "evaluate_node",
    "follows_values",
    "has_tensor",
    "record",
    "run_with_types",
]


def evaluate_node(
    gm: fx.GraphModule, node: fx.Node, value_of: Callable[[fx.Node], Any], x: Any = None
) -> Any:
    """Value of one node, whose inputs have the values ``value_of``; ``x`` is the network's input.

    Example:
        >>> gm = fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU()))
        >>> source, relu, _ = gm.graph.nodes
        >>> evaluate_node(gm, relu, {source: torch.tensor([-1.0, 2.0])}.get)
        tensor([0., 2.])
    """
    if node.op == "placeholder":
        return None if x is None else bind(gm, x)[node]
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(gm)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "output":
        return args[0]
    called: Any = gm.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    return called(*args, **kwargs)


@torch.no_grad()
def record(
    gm: fx.GraphModule,
    x: Any,
    wanted: Container[fx.Node] | None = None,
    types: set[torch.dtype] | None = None,
) -> dict[fx.Node, Any]:
    """Value of every node for the input ``x``, or of those wanted; others go after their last use.

    The types of all values are added to ``types``.
    """
    values: dict[fx.Node, Any] = {}
    kept: dict[fx.Node, Any] = {}
    last = {source: node for node in gm.graph.nodes for source in node.all_input_nodes}
    x = map_tensors(torch.clone, x)  # the forward may write into its input
    for node in gm.graph.nodes:
        value = values[node] = evaluate_node(gm, node, values.__getitem__, x)
        if types is not None and isinstance(value, Tensor):
            types.add(value.dtype)
        if wanted is None or node in wanted:
            # In-place operators may overwrite what an earlier node returned.
            kept[node] = value.clone() if isinstance(value, Tensor) else value
        for source in node.all_input_nodes:
            if last[source] is node:
                del values[source]
    return kept


class _TypeReader(fx.Interpreter):
    """Runs a graph, and notes the types of its values."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.types: set[torch.dtype] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.types.add(value.dtype)
        return value


@torch.no_grad()
def run_with_types(gm: fx.GraphModule, x: Any) -> tuple[Any, set[torch.dtype]]:
    """Output of a graph, and the types of all values on the way."""
    reader = _TypeReader(gm)
    return reader.run(*bind(gm, map_tensors(torch.clone, x)).values()), reader.types


def depends_on_input(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose value depends on the network's input."""
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node.op == "placeholder" or found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def is_size(value: Any) -> bool:
    """Whether a value is a number of a shape, or a shape.

    Example:
        >>> is_size(torch.Size([2])), is_size(3), is_size(torch.float32), is_size(True)
        (True, True, False, False)
    """
    if isinstance(value, tuple | list):
        return all(map(is_size, value))
    return isinstance(value, int) and not isinstance(value, bool)


def has_tensor(value: Any) -> bool:
    """Whether a value is a tensor, or a tuple or list with one in it.

    Example:
        >>> has_tensor((3, [torch.ones(1)])), has_tensor((3, 4))
        (True, False)
    """
    if isinstance(value, list | tuple):
        return any(map(has_tensor, value))
    return isinstance(value, Tensor)


# Of tensors, these make numbers of their values; all others make numbers of sizes and types.
_READERS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero"}
_FILLED = {"zeros_like", "ones_like", "new_zeros", "new_ones"}


def follows_values(node: fx.Node, values: dict[fx.Node, Any], found: set[fx.Node]) -> bool:
    """Whether a node follows the values of the input, not its sizes alone.

    Args:
        node: of a graph.
        values: of this node and those before it for an example.
        found: of the nodes before it, those that follow the values.

    Example:
        >>> from sj_burst.graph.composites import lambda_module
        >>> gm = fx.symbolic_trace(lambda_module(lambda x: x.sum().item() + x.size(0)))
        >>> values, found = record(gm, torch.ones(2)), set()
        >>> for node in gm.graph.nodes:
        ...     if follows_values(node, values, found):
        ...         found.add(node)
        >>> [node.name for node in gm.graph.nodes if node not in found]
        ['size']
    """
    if node.op == "placeholder":
        return True
    before = found.intersection(node.all_input_nodes)
    if not before:
        return False
    name = getattr(node.target, "__name__", node.target)
    if has_tensor(values[node]):
        return name not in _FILLED
    return name in _READERS or not all(has_tensor(values[n]) for n in before)
