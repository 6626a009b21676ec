"""Edits of a converted graph that every rewriting of it needs."""

from collections.abc import Callable
from typing import Any

from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..graph.evaluate import is_size, record
from ..graph.trace import call_sites, unused_name
from ..network import SpikingNetwork

__all__ = ["GraphEditor"]


class GraphEditor:
    """Puts modules into the graph of a converted network, in place, and knows the shapes of its values.

    Args:
        snn: the network; its state is reset.

    Attributes:
        gm: its graph.
        shapes: of all values, for two samples.
        sizes: what is no value of neurons or layers, but a size.
    """

    def __init__(self, snn: SpikingNetwork) -> None:
        self.gm = snn.graph
        values = record(self.gm, snn.example(2).value)
        reset_net(snn)
        self.shapes = {n: v.shape for n, v in values.items() if isinstance(v, Tensor)}
        self.sizes = {n for n, v in values.items() if n.op != "output" and is_size(v)}

    def module(self, node: fx.Node) -> Any:
        """What a node calls."""
        return self.gm.get_submodule(str(node.target))

    def place(self, node: fx.Node, module: nn.Module) -> None:
        """Let a node call another module; what is called elsewhere too stays there."""
        name = str(node.target)
        if call_sites(self.gm, name) > 1:
            node.target = name = unused_name(self.gm, name)
        self.gm.add_submodule(name, module)

    def insert(self, node: fx.Node, source: fx.Node, module: nn.Module) -> None:
        """Let a node read a value through a module, which keeps its shape."""
        name = unused_name(self.gm, "scale")
        self.gm.add_submodule(name, module)
        with self.gm.graph.inserting_before(node):
            scaled = self.gm.graph.call_module(name, (source,))
        self.shapes[scaled] = self.shapes[source]
        node.replace_input_with(source, scaled)

    def restore(self, node: fx.Node, undo: Callable[[fx.Node], nn.Module | None]) -> None:
        """Let an operation see what it saw in the converted network; sizes are what they were.

        Args:
            node: the operation.
            undo: what gives a value back as it was; ``None`` if it is so.
        """
        if node in self.sizes:
            return
        for source in dict.fromkeys(node.all_input_nodes):
            if (module := undo(source)) is not None:
                self.insert(node, source, module)

    def finish(self) -> None:
        """Check and compile the graph."""
        self.gm.graph.lint()
        self.gm.delete_all_unused_submodules()
        self.gm.recompile()
