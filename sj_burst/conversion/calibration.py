"""Parameter calibration: one forward sweep that fits each layer on its already spiking predecessors."""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn
from tqdm import tqdm

from ..graph.evaluate import depends_on_input, record
from ..graph.trace import call_sites, is_module
from ..modules.bounded import BoundedActivation
from ..modules.neuron import BurstIFNode
from ..modules.temporal import TemporalModule, TimeFold, run_temporal, time_mean
from ..utils.layout import channels_last
from .layer import Layer

__all__ = ["calibrate_layers"]

_SUMS = {operator.add, operator.iadd, torch.add}
_AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


@torch.no_grad()
def calibrate_layers(
    gm: fx.GraphModule,
    ann_modules: Mapping[str, nn.Module],
    inputs: list[Tensor],
    time_steps: int,
    fits: Iterable[Callable[[Layer], None]],
    *,
    device: torch.device,
    progress: bool = True,
) -> None:
    """Walk through the network once, and fit every layer before it fires.

    Each node is evaluated once for the ANN and once, for all T steps, for the SNN, on values stored
    when its predecessors were; the time is linear in depth. Values are freed after their last use
    and kept on the CPU, whatever the device of the graph. Nothing is random.

    Args:
        gm: the converted graph, with neurons in place; its parameters are changed.
        ann_modules: the modules that neurons and spiking pooling took the place of, by name.
        inputs: calibration batches ``[N, ...]``.
        time_steps: T.
        fits: called in this order on each :class:`Layer`.
        device: where the graph runs.
        progress: show a progress bar.
    """
    _Sweep(gm, ann_modules, inputs, time_steps, device).run(list(fits), progress)


class _Sweep:
    def __init__(
        self,
        gm: fx.GraphModule,
        ann_modules: Mapping[str, nn.Module],
        inputs: list[Tensor],
        time_steps: int,
        device: torch.device,
    ) -> None:
        self.gm, self.ann_modules = gm, ann_modules
        self.inputs = [channels_last(x) for x in inputs]
        self.time_steps, self.device = time_steps, device
        self.interpreter = fx.Interpreter(gm)
        self.ann: dict[fx.Node, list[Any]] = {}
        self.snn: dict[fx.Node, list[Any]] = {}

    def run(self, fits: list[Callable[[Layer], None]], progress: bool) -> None:
        shapes = self._shapes()
        sources = {node: _affine_source(self.gm, node, shapes) for node in self._layers()}
        last_use = self._last_use(sources)
        # Evaluated when their layer is fitted, and not before.
        later = {n for node, source in sources.items() for n in self._refitted(node, *source)}
        nodes = [node for node in self.gm.graph.nodes if node.op != "output"]
        for node in tqdm(nodes, "calibrate layers", disable=not progress, leave=False):
            self.ann[node] = self._evaluate(node, self.ann)
            if node in sources:
                self._fit(node, *sources[node], fits)
            if node not in later:
                self.snn[node] = self._evaluate(node, self.snn)
            for value in [n for n, last in last_use.items() if last is node]:
                del self.ann[value], self.snn[value]

    def _layers(self) -> list[fx.Node]:
        """The neurons, and the affine modules after the last of them."""
        spiking: set[fx.Node] = set()  # nodes from which a neuron can be reached
        for node in reversed(self.gm.graph.nodes):
            if is_module(self.gm, node, BurstIFNode) or spiking.intersection(node.users):
                spiking.add(node)
        return [
            node
            for node in self.gm.graph.nodes
            if is_module(self.gm, node, BurstIFNode)
            or (node not in spiking and is_module(self.gm, node, _AFFINE))
        ]

    def _shapes(self) -> dict[Any, torch.Size]:
        """Of what every node returns that depends on the input, for some of the images."""
        values = record(self.gm, self.inputs[0][:2].to(self.device))
        reset_net(self.gm)
        moving = depends_on_input(self.gm)
        return {n: v.shape for n, v in values.items() if n in moving and isinstance(v, Tensor)}

    def _last_use(self, sources: dict[fx.Node, Any]) -> dict[fx.Node, fx.Node]:
        last: dict[fx.Node, fx.Node] = {}
        for node in self.gm.graph.nodes:
            held = list(node.all_input_nodes)
            affine, residual = sources.get(node, (None, None))
            if affine is not None:  # evaluated again after its weights changed
                held += [affine, *affine.all_input_nodes, *([residual] if residual else [])]
            last.update(dict.fromkeys(held, node))
        return last

    @staticmethod
    def _refitted(node: fx.Node, affine: fx.Node | None, residual: fx.Node | None) -> list[fx.Node]:
        """Nodes before a neuron whose values change when its affine module does."""
        if affine is None or affine is node:
            return []
        return [affine] if residual is None else [affine, node.args[0]]  # type: ignore[list-item]

    def _fit(
        self,
        node: fx.Node,
        affine: fx.Node | None,
        residual: fx.Node | None,
        fits: list[Callable[[Layer], None]],
    ) -> None:
        module: Any = self.gm.get_submodule(str(node.target))
        is_neuron = isinstance(module, BurstIFNode)
        current: Any = node.args[0] if is_neuron else node
        if not is_neuron and affine is None:
            return  # called more than once: no parameters of its own
        stale = self._refitted(node, affine, residual) if is_neuron else [node]
        evaluated: list[nn.Parameter] | None = None

        def evaluate() -> list[Tensor]:
            nonlocal evaluated
            parameters = [] if layer.affine is None else list(layer.affine.parameters())
            if evaluated is None or list(map(id, parameters)) != list(map(id, evaluated)):
                for source in stale:
                    self.snn[source] = self._evaluate(source, self.snn)
                evaluated = parameters
            return self.snn[current]

        layer = Layer(
            name=str(node.target),
            node=module if is_neuron else None,
            affine=None if affine is None else self.gm.get_submodule(str(affine.target)),
            evaluate=evaluate,
            inputs=[] if affine is None else self._means(affine.args[0]),
            wanted=[] if affine is None else self._wanted(current, residual),
            residuals=[0.0] * len(self.inputs) if residual is None else self._means(residual),
            targets=self.ann[node],
            time_steps=self.time_steps,
            device=self.device,
            bounded=isinstance(self.ann_modules.get(str(node.target)), nn.Hardtanh | BoundedActivation),
        )
        for fit in fits:
            fit(layer)
        evaluate()

    def _means(self, node: Any) -> list[Tensor]:
        pairs = zip(self.snn[node], self.inputs, strict=True)
        return [time_mean(value, TimeFold(self.time_steps, len(x))) for value, x in pairs]

    def _wanted(self, current: Any, residual: fx.Node | None) -> list[Tensor]:
        if residual is None:
            return self.ann[current]
        return [z - s for z, s in zip(self.ann[current], self._means(residual), strict=True)]

    def _evaluate(self, node: fx.Node, values: dict[fx.Node, list[Any]]) -> list[Any]:
        return [self._evaluate_batch(node, values, i) for i in range(len(self.inputs))]

    def _evaluate_batch(self, node: fx.Node, values: dict[fx.Node, list[Any]], index: int) -> Any:
        args: Any
        if node.op == "placeholder":
            return self.inputs[index]
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda n: _move(values[n][index], self.device)
        )
        if node.op == "call_module":
            module = self.gm.get_submodule(str(node.target))
            if values is self.ann:
                stand_in = nn.Identity() if isinstance(module, TemporalModule) else module
                module = self.ann_modules.get(str(node.target), stand_in)
            elif isinstance(module, TemporalModule):
                fold = TimeFold(self.time_steps, len(self.inputs[index]))
                return _move(run_temporal(module, args[0], fold), "cpu")
            return _move(module(*args, **kwargs), "cpu")
        return _move(getattr(self.interpreter, node.op)(node.target, args, kwargs), "cpu")


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_move(v, device) for v in value)
    return value.to(device) if isinstance(value, Tensor) else value


def _affine_source(
    gm: fx.GraphModule, node: fx.Node, shapes: Mapping[Any, torch.Size]
) -> tuple[fx.Node | None, fx.Node | None]:
    """The affine call whose output (plus a residual) is a neuron's input alone, and the residual.

    A residual counts as one if it has the shape of the sum, and depends on the network's input. An
    affine call counts if it has one row a sample.
    """
    batch = next(iter(shapes.values()))[0]

    def single(n: fx.Node) -> bool:
        return call_sites(gm, n.target) == 1 and shapes.get(n, (0,))[0] == batch

    def owned(n: object) -> bool:
        return isinstance(n, fx.Node) and is_module(gm, n, _AFFINE) and len(n.users) == 1 and single(n)

    if is_module(gm, node, _AFFINE):
        return (node, None) if single(node) else (None, None)
    current = node.args[0]
    if owned(current):
        return current, None  # type: ignore[return-value]
    assert isinstance(current, fx.Node)
    if current.target in _SUMS and not current.kwargs and len(current.users) == 1:
        for one, other in (current.args, current.args[::-1]):
            alike = shapes.get(one) == shapes.get(other) == shapes[current]
            if owned(one) and other is not one and alike:
                return one, other  # type: ignore[return-value]
    return None, None
