"""Parameter calibration: one forward sweep that fits each layer on its already spiking predecessors."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from ..graph.evaluate import evaluate_node
from ..modules.bounded import BoundedActivation
from ..modules.neuron import BurstIFNode
from ..modules.temporal import TemporalModule, TimeFold, run_temporal, time_mean
from ..utils.inputs import rows
from ..utils.layout import channels_last, move
from ..utils.outputs import map_tensors
from .layer import Layer
from .sources import Source, current_sources

__all__ = ["calibrate_layers"]


@torch.no_grad()
def calibrate_layers(
    gm: fx.GraphModule,
    ann_modules: Mapping[str, nn.Module],
    inputs: list[Any],
    time_steps: int,
    fits: Iterable[Callable[[Layer], None]],
    *,
    device: torch.device,
    progress: bool = True,
) -> None:
    """Walk through the network once, and fit every layer before it fires.

    Each node is evaluated once for the ANN and once, for all T steps, for the SNN, on values stored
    when its predecessors were; the time is linear in depth. (An affine module is evaluated again if
    its parameters change after its current was asked for.) Values are freed after their last use and
    kept on the CPU, whatever the device of the graph. Nothing is random.

    Args:
        gm: the converted graph, with neurons in place; its parameters are changed.
        ann_modules: the modules that neurons and spiking pooling took the place of, by name.
        inputs: calibration batches ``[N, ...]``, or tuples or dicts of several.
        time_steps: T.
        fits: called in this order on each :class:`Layer`.
        device: where the graph runs.
        progress: show a progress bar.
    """
    fits = list(fits)
    inputs = [map_tensors(channels_last, x) for x in inputs]
    # What else is temporal, an encoder say, passes the ANN's values on.
    temporal = [name for name, module in gm.named_modules() if isinstance(module, TemporalModule)]
    stand_ins = dict.fromkeys(temporal, nn.Identity()) | dict(ann_modules)
    ann = _Activations(gm, inputs, time_steps, device, stand_ins)
    snn = _Activations(gm, inputs, time_steps, device)
    sources = current_sources(gm, map_tensors(lambda t: t[:2].to(device), inputs[0]))
    # Evaluated when their layer is fitted, and not before.
    refitted = {n for node, source in sources.items() for n in source.refitted(node)}
    last_use = _last_use(gm, sources)
    nodes = [node for node in gm.graph.nodes if node.op != "output"]
    for node in tqdm(nodes, "calibrate layers", disable=not progress, leave=False):
        ann.evaluate(node)
        if node in sources:
            layer = _layer(node, sources[node], ann, snn)
            for fit in fits:
                fit(layer)
            layer.evaluate()
        if node not in refitted:
            snn.evaluate(node)
        for value in [n for n, last in last_use.items() if last is node]:
            del ann[value], snn[value]


class _Activations:
    """What the nodes of one network, ANN or SNN, return for every batch, as long as it is needed.

    Args:
        gm: the converted graph.
        inputs: calibration batches ``[N, ...]``, or tuples or dicts of several.
        time_steps: T.
        device: where the graph runs.
        stand_ins: called in place of modules of the graph, by name.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        inputs: list[Any],
        time_steps: int,
        device: torch.device,
        stand_ins: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.gm, self.inputs, self.device = gm, inputs, device
        self.folds = [TimeFold(time_steps, rows(x)) for x in inputs]
        self.stand_ins = stand_ins or {}
        self._values: dict[fx.Node, list[Any]] = {}

    def __getitem__(self, node: Any) -> list[Any]:
        return self._values[node]

    def __delitem__(self, node: fx.Node) -> None:
        del self._values[node]

    def module(self, node: fx.Node) -> Any:
        """The module that a node calls; ``None`` if it calls none."""
        if node.op != "call_module":
            return None
        name = str(node.target)
        return self.stand_ins[name] if name in self.stand_ins else self.gm.get_submodule(name)

    def evaluate(self, node: fx.Node) -> None:
        """Evaluate a node on what its inputs returned, ``[T·N, ...]``, or ``[N, ...]`` if constant."""
        self._values[node] = [move(self._value(node, i), "cpu") for i in range(len(self.inputs))]

    def _value(self, node: fx.Node, batch: int) -> Any:
        def value_of(n: fx.Node) -> Any:
            return move(self._values[n][batch], self.device)

        module = self.module(node)
        if isinstance(module, TemporalModule):
            return run_temporal(module, value_of(node.args[0]), self.folds[batch])  # type: ignore[arg-type]
        if module is not None and node.target in self.stand_ins:
            return module(value_of(node.args[0]))  # type: ignore[arg-type]
        return evaluate_node(self.gm, node, value_of, self.inputs[batch])

    def means(self, node: Any) -> list[Tensor]:
        """Means over T ``[N, ...]`` of what a node returned."""
        return [time_mean(x, fold) for x, fold in zip(self[node], self.folds, strict=True)]


def _layer(node: fx.Node, source: Source, ann: _Activations, snn: _Activations) -> Layer:
    """What the fits see of a neuron, or of an affine module after the last neuron."""
    module, affine = snn.module(node), source.affine
    neuron = module if isinstance(module, BurstIFNode) else None
    current: Any = node if neuron is None else node.args[0]
    residuals = [torch.zeros(())] * len(snn.inputs)
    inputs, wanted = [], []
    if affine is not None:
        inputs, wanted = snn.means(affine.args[0]), ann[current]
    if source.residual is not None:
        residuals = snn.means(source.residual)
        wanted = [z - s for z, s in zip(wanted, residuals, strict=True)]
    return Layer(
        name=str(node.target),
        neuron=neuron,
        affine=None if affine is None else snn.module(affine),
        evaluate=_current(current, source.refitted(node), snn),
        inputs=inputs,
        wanted=wanted,
        residuals=residuals,
        targets=ann[node],
        time_steps=snn.folds[0].steps,
        device=snn.device,
        bounded=isinstance(ann.module(node), nn.Hardtanh | BoundedActivation),
    )


def _current(node: fx.Node, refitted: list[fx.Node], snn: _Activations) -> Callable[[], list[Tensor]]:
    """Returns the values of ``node``, evaluated (again) if the affine module before it has changed."""
    affine = snn.module(refitted[0]) if refitted else nn.Identity()
    evaluated: list[nn.Parameter] | None = None

    def evaluate() -> list[Tensor]:
        nonlocal evaluated
        parameters = list(affine.parameters())
        if evaluated is None or list(map(id, parameters)) != list(map(id, evaluated)):
            for stale in refitted:
                snn.evaluate(stale)
            evaluated = parameters
        return snn[node]

    return evaluate


def _last_use(gm: fx.GraphModule, sources: Mapping[fx.Node, Source]) -> dict[fx.Node, fx.Node]:
    """The last node that needs what a node returned."""
    last: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        source = sources.get(node, Source())
        last.update(dict.fromkeys([*node.all_input_nodes, *source.read()], node))
    return last
