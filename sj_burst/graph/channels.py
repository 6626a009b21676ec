"""Keep channels in dimension 1, where neurons and statistics look for them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .evaluate import evaluate_node
from .operators import (
    AVERAGE_POOLS,
    BATCH_NORMS,
    CONVOLUTIONS,
    ELEMENTWISE,
    TRANSPOSED_CONVOLUTIONS,
)
from .trace import is_module

__all__ = ["keep_channels_first"]

_CHANNELS_FIRST = (
    *(*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS, *BATCH_NORMS, *AVERAGE_POOLS),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
)
_ALIKE = (nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.PReLU)  # for every element
_JOINS = (torch.cat, torch.concat)

Values = dict[fx.Node, Any]


def keep_channels_first(gm: fx.GraphModule, values: Values) -> None:
    """Move permutations of what convolutions return behind the element-wise operations after them.

    Exporters of networks whose channels come last (TensorFlow's) write transposes around every
    convolution, and activations, sums and biases in between. Behind those, the transposes cancel.

    Args:
        gm: a graph whose activations are modules; changed in place.
        values: of its nodes for an example; new nodes are added.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU()
        ...     def forward(self, x):
        ...         return self.relu(self.conv(x).permute(0, 2, 3, 1))
        >>> from .evaluate import record
        >>> gm, x = fx.symbolic_trace(Net()), torch.rand(1, 3, 2, 2)
        >>> keep_channels_first(gm, record(gm, x))
        >>> [node.target for node in gm.graph.nodes]
        ['x', 'conv', 'relu', 'permute', 'output']
    """
    first: set[fx.Node] = set()  # nodes whose channels are in dimension 1
    orders: dict[fx.Node, tuple[int, ...]] = {}  # of permutations of such nodes
    for node in list(gm.graph.nodes):
        source: Any = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if is_module(gm, node, _CHANNELS_FIRST) and values[node].dim() > 2:
            first.add(node)
        elif (order := _order(node, values)) is not None and source is not None:
            if source in orders:
                source, order = source.args[0], tuple(orders[source][d] for d in order)
                node.op, node.target, node.args, node.kwargs = (
                    "call_method",
                    "permute",
                    (source, order),
                    {},
                )
            if source in first and order[0] == 0:
                if order == tuple(range(len(order))):
                    node.replace_all_uses_with(source)
                    gm.graph.erase_node(node)
                else:
                    orders[node] = order
        elif _is_alike(gm, node):
            operands = _tensors(node, values)
            found = {orders[n] for n in operands if n in orders}
            order = next(iter(found), ())
            movable = len(found) == 1 and values[node].dim() == len(order)
            if movable and all(n in orders or _is_constant(node, n) for n in operands):
                new = _before(gm, node, order, orders, values)
                first.add(new)
                orders[node] = order
            elif operands and all(n in first or n.op == "get_attr" for n in operands):
                first.add(node)
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _order(node: fx.Node, values: Values) -> tuple[int, ...] | None:
    """The order of dimensions that a node makes, by those of its source; None for any other call."""
    name = getattr(node.target, "__name__", node.target)
    if node.op not in ("call_function", "call_method") or name not in ("permute", "transpose"):
        return None
    if node.kwargs or any(isinstance(a, fx.Node) for a in node.args[1:]) or not node.all_input_nodes:
        return None
    given: Any = node.args[1] if isinstance(node.args[1], Sequence) else node.args[1:]
    order = list(range(values[node].dim()))
    dims = [order[int(d)] for d in given]
    if name == "permute":
        return tuple(dims)
    a, b = dims
    order[a], order[b] = b, a
    return tuple(order)


def _is_alike(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node does the same to every element, or joins tensors."""
    if is_module(gm, node, _ALIKE):
        module = gm.get_submodule(str(node.target))
        return not isinstance(module, nn.PReLU) or module.weight.numel() == 1
    called = node.op in ("call_function", "call_method")
    return called and (node.target in ELEMENTWISE or node.target in _JOINS)


def _tensors(node: fx.Node, values: Values) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if isinstance(values[n], Tensor)]


def _is_constant(node: fx.Node, operand: fx.Node) -> bool:
    """Whether an operand is a constant that can be permuted instead."""
    return operand.op == "get_attr" and node.target not in _JOINS


def _before(
    gm: fx.GraphModule,
    node: fx.Node,
    order: tuple[int, ...],
    orders: dict[fx.Node, tuple[int, ...]],
    values: Values,
) -> fx.Node:
    """Do what a node does before its operands are permuted, and make it the permutation."""
    back = tuple(order.index(d) for d in range(len(order)))
    graph = gm.graph

    def unpermuted(operand: fx.Node) -> Any:
        if operand in orders:
            return operand.args[0]
        if not isinstance(values[operand], Tensor) or values[operand].dim() == 0:
            return operand
        return _stored(gm, node, operand, back, values)

    with graph.inserting_before(node):
        new = graph.node_copy(node, unpermuted)
    if node.target in _JOINS:
        dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        tensors = new.args[0] if new.args else new.kwargs["tensors"]
        new.args, new.kwargs = (tensors, order[int(dim)]), {}
    values[new] = evaluate_node(gm, new, values.__getitem__)
    node.op, node.target, node.args, node.kwargs = "call_method", "permute", (new, order), {}
    return new


def _stored(
    gm: fx.GraphModule, node: fx.Node, constant: fx.Node, back: tuple[int, ...], values: Values
) -> fx.Node:
    """A constant that has been permuted."""
    value = values[constant]
    value = value.reshape((1,) * (len(back) - value.dim()) + tuple(value.shape)).permute(back)
    name = f"{constant.name}_of_{node.name}"
    owner, _, key = str(constant.target).rpartition(".")
    if isinstance(getattr(gm.get_submodule(owner), key), nn.Parameter):
        gm.register_parameter(name, nn.Parameter(value.detach().clone()))
    else:
        gm.register_buffer(name, value.clone())
    stored = gm.graph.get_attr(name)
    values[stored] = value
    return stored
