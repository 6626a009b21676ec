"""Let the part of a network that sees a constant input run once for all time steps."""

from typing import Any

from torch import Tensor, fx

from ..modules.temporal import TemporalModule
from ..utils.inputs import rows
from .evaluate import depends_on_input, follows_values, record

__all__ = ["RepeatOverTime", "constant_nodes", "repeat_constants"]


class RepeatOverTime(TemporalModule):
    """Repeat an input that is constant in time for every time step; else pass it through.

    Example:
        >>> import torch
        >>> from sj_burst.modules.temporal import TimeFold
        >>> hold = RepeatOverTime(step_mode="m")
        >>> hold.time_fold = TimeFold(steps=3, batch=2)
        >>> hold(torch.ones(2, 5)).shape, hold(torch.ones(6, 5)).shape
        (torch.Size([6, 5]), torch.Size([6, 5]))
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...]`` to ``[T·N, ...]`` while the fold says so."""
        return self.unfold(x).flatten(0, 1) if self.is_constant(x) else x


def repeat_constants(gm: fx.GraphModule, x: Any) -> fx.GraphModule:
    """Insert a :class:`RepeatOverTime` wherever a value that is constant in time meets one that is not.

    Under direct coding the layers before the first neuron see the same image at every step. They
    may then run on ``[N, ...]`` rows while the rest of the graph runs on ``[T·N, ...]``; the two
    meet at a neuron (which takes either), at an operator with two operands, or at the output.

    Args:
        gm: the graph with neurons in place; changed in place.
        x: example input ``[N, ...]``.

    Returns:
        The same graph module.
    """
    values = record(gm, x)
    varying = _varying(gm)
    depends = depends_on_input(gm) - _of_one_row(gm, values)
    held: dict[fx.Node, fx.Node] = {}

    def hold(node: fx.Node) -> fx.Node:
        """A node with ``node``'s value for every time step."""
        if node in held:
            return held[node]
        with gm.graph.inserting_after(node):
            if isinstance(values[node], Tensor):
                _check_rows(node, values[node], rows(x))
                name = f"hold_{node.name}"
                gm.add_submodule(name, RepeatOverTime(step_mode="m"))
                held[node] = gm.graph.call_module(name, (node,))
            else:  # a size, say, of a constant value: take it of the repeated value
                held[node] = gm.graph.node_copy(node, lambda n: hold(n) if n in depends else n)
        return held[node]

    for node in list(gm.graph.nodes):
        if node.op == "output" or (node in varying and not _takes_both(gm, node)):
            for source in node.all_input_nodes:
                if source in depends and source not in varying:
                    node.replace_input_with(source, hold(source))
    gm.graph.eliminate_dead_code()
    gm.graph.lint()
    gm.recompile()
    return gm


def _of_one_row(gm: fx.GraphModule, values: dict[fx.Node, Any]) -> set[fx.Node]:
    """What is made of sizes and the same for all samples and steps, as ``x.new_ones(1, C, 1, 1)``."""
    follow: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if follows_values(node, values, follow):
            follow.add(node)
    shapes = {n: tuple(v.shape) for n, v in values.items() if isinstance(v, Tensor)}
    return {n for n, shape in shapes.items() if n not in follow and shape[:1] == (1,)}


def _check_rows(node: fx.Node, value: Tensor, batch: int) -> None:
    if value.shape[:1] != (batch,):
        raise ValueError(
            f"{node.name} returns {list(value.shape)} for a batch of {batch}, and meets spikes, which "
            "have one row a sample and step; put the samples first, as in torch.stack([a, b], dim=1)"
        )


def _takes_both(gm: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), TemporalModule)


def _varying(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose value may change from step to step although the input does not."""
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        module: Any = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        fires = isinstance(module, TemporalModule) and not module.keeps_constant
        if fires or found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def constant_nodes(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose value does not change from step to step while the input is held."""
    return {n for n in gm.graph.nodes if n.op != "output"} - _varying(gm)
