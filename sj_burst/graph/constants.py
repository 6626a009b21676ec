"""Fold whatever does not depend on the network's input."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from .evaluate import depends_on_input, evaluate_node

__all__ = ["fold_constants"]

_PLAIN = (int, float, bool, str, complex, torch.dtype, torch.device, type(None), slice)


@torch.no_grad()
def fold_constants(gm: fx.GraphModule) -> fx.GraphModule:
    """Put the value of every node that does not depend on the input in its place, once for all.

    A tensor becomes a parameter if it was computed from one, else a buffer; numbers become plain
    arguments. Later passes then see nothing but the input's way to the output.

    Args:
        gm: a traced graph in eval mode, with parameters of its own; changed in place.

    Returns:
        The same graph module.

    Example:
        >>> class Scaled(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gain = nn.Parameter(torch.tensor([-1.0, 2.0]))
        ...     def forward(self, x):
        ...         return x * self.gain.relu()
        >>> folded = fold_constants(fx.symbolic_trace(Scaled()))
        >>> [node.op for node in folded.graph.nodes], folded(torch.ones(1, 2)).tolist()
        (['placeholder', 'get_attr', 'call_function', 'output'], [[0.0, 2.0]])
    """
    depending = depends_on_input(gm)
    values: dict[fx.Node, Any] = {}
    trained: set[fx.Node] = set()  # computed from parameters
    for node in list(gm.graph.nodes):
        if node in depending or node.op == "output":
            continue
        values[node] = evaluate_node(gm, node, values.__getitem__)
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        learned = module is not None and any(True for _ in module.parameters())
        if (
            learned
            or isinstance(values[node], nn.Parameter)
            or trained.intersection(node.all_input_nodes)
        ):
            trained.add(node)
    for node, value in values.items():  # now that operations in place have been done
        if node.op != "get_attr" and depending.intersection(node.users):
            _replace(gm, node, value, depending, node in trained)
    for node in reversed(values):  # not what depends on the input: it may write in place
        if not node.users:
            gm.graph.erase_node(node)
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()
    return gm


def _replace(
    gm: fx.GraphModule, node: fx.Node, value: Any, depending: set[fx.Node], trained: bool
) -> None:
    """Let what depends on the input read ``value`` instead of ``node``."""
    if isinstance(value, Tensor):
        name = f"constant_{node.name}"
        value = value.detach().clone()
        if trained and value.is_floating_point():
            gm.register_parameter(name, nn.Parameter(value))
        else:
            gm.register_buffer(name, value)
        with gm.graph.inserting_before(node):
            stored = gm.graph.get_attr(name)
        node.replace_all_uses_with(stored, delete_user_cb=lambda reader: reader in depending)
    elif _is_plain(value):
        for reader in [r for r in node.users if r in depending]:
            reader.args = fx.node.map_arg(reader.args, lambda n: value if n is node else n)
            reader.kwargs = fx.node.map_arg(reader.kwargs, lambda n: value if n is node else n)


def _is_plain(value: Any) -> bool:
    """Whether a graph can hold a value as an argument."""
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN)
