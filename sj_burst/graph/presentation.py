"""A batch that is held before a spiking network for as many steps as its samples need."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from ..temporal import Window
from .hold import constant_nodes
from .trace import depends_on_input

if TYPE_CHECKING:
    from .network import SpikingNetwork

__all__ = ["Presentation", "laid_out"]


class Presentation:
    """The same input at every step; what does not change from step to step is computed once.

    Args:
        snn: a converted network, whose state should be fresh.
        x: input ``[N, ...]``.

    Example:
        >>> import torch
        >>> from spikingjelly.activation_based import ann2snn
        >>> from sj_burst import BurstRecipe
        >>> ann = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> snn = ann2snn.Converter(BurstRecipe([torch.rand(8, 3)], progress=False)).convert(ann)
        >>> shown = snn.present(torch.rand(5, 3))
        >>> shown.run(2).shape
        torch.Size([2, 5, 4])
        >>> shown.keep(torch.tensor([True, False, True, False, False]))
        >>> shown.run(2).shape
        torch.Size([2, 2, 4])
    """

    def __init__(self, snn: "SpikingNetwork", x: Tensor) -> None:
        snn.check_input(x)
        self.snn, self.x = snn, x
        constant = constant_nodes(snn.graph)
        self._depending = depends_on_input(snn.graph) & constant
        # What later nodes read; the other constants are only marked as done.
        self._read = {n for n in constant if set(n.users) - constant}
        self._constant = constant
        self._values = self._evaluate()

    def _evaluate(self) -> dict[fx.Node, Any]:
        nodes = [n for n in self.snn.graph.graph.nodes if n in self._constant]
        interpreter = _Partial(self.snn.graph, self._constant)
        with self.snn.window(Window(2, len(self.x))):  # two steps: what is constant says so
            interpreter.run(self.x)
        return {n: laid_out(interpreter.kept.get(n)) if n in self._read else None for n in nodes}

    def run(self, time_steps: int) -> Tensor:
        """Output of the next steps ``[T, N, ...]``."""
        window = Window(time_steps, len(self.x))
        interpreter = fx.Interpreter(self.snn.graph)
        with self.snn.window(window):
            out = interpreter.run(self.x, initial_env=dict(self._values))
        return out.unflatten(0, window)

    def keep(self, samples: Tensor) -> None:
        """Go on with these samples only, a boolean mask ``[N]``; their state goes on too."""
        self.x = self.x[samples]
        for module in self.snn.temporal_modules():
            for name, state in module.named_memories():
                if isinstance(state, Tensor):
                    setattr(module, name, state[samples])
        values = [self._values[n] for n in self._read & self._depending]
        if all(isinstance(value, Tensor) for value in values):
            for n in self._read & self._depending:
                self._values[n] = self._values[n][samples]
        else:  # a size, say, which follows the batch
            self._values = self._evaluate()


def laid_out(value: Any) -> Any:
    """Pictures on a CPU with the channels last, in which convolutions and pooling are faster."""
    if isinstance(value, Tensor) and value.dim() == 4 and value.device.type == "cpu":
        return value.contiguous(memory_format=torch.channels_last)
    return value


class _Partial(fx.Interpreter):
    """Runs some of the nodes and keeps their values."""

    def __init__(self, gm: fx.GraphModule, nodes: set[fx.Node]) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.nodes = nodes
        self.kept: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n in self.nodes:
            self.kept[n] = super().run_node(n)
        return self.kept.get(n)
