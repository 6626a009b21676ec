"""Parameter calibration: one forward sweep that fits each layer on its already spiking predecessors."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn
from tqdm import tqdm

from ..graph.evaluate import depends_on_input, record
from ..graph.operators import WEIGHTED
from ..graph.readout import clipped_outputs
from ..graph.trace import is_module
from ..graph.units import Shapes, count_units
from ..modules.bounded import BoundedActivation
from ..modules.neuron import BurstIFNode
from ..modules.temporal import TemporalModule
from ..utils.inputs import batches_with, join, rows
from ..utils.layout import channels_last
from ..utils.outputs import map_tensors
from ..utils.spill import Spill, memory_budget
from .activations import Activations, Batches, Record, recorded_nodes
from .layer import Layer
from .sources import Source, current_sources
from .weights import unit_met

__all__ = ["calibrate_layers"]

_IMAGES, _SHARE, _PLACES = 64, 1 / 4, 2**16  # least images, share of them, places of a channel in a fit
_EXAMPLE = 2  # samples that tell the shapes
_TOGETHER = 32  # samples of several batches, at most, if these are smaller
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


@torch.no_grad()
def calibrate_layers(
    gm: fx.GraphModule,
    ann_modules: Mapping[str, nn.Module],
    inputs: list[Any],
    time_steps: int,
    fits: Iterable[Callable[[Layer], None]],
    *,
    device: torch.device,
    unowned: Callable[..., None] | None = None,
    readout: nn.Module | None = None,
    progress: bool = True,
) -> None:
    """Walk through the network once, and fit every layer before it fires.

    Each node is evaluated once for the ANN and once, for all T steps, for the SNN, on values stored
    when its predecessors were; the time is linear in depth. (An affine module is evaluated again if
    its parameters change after its current was asked for.) Between layers spikes are kept as counts, on
    the CPU whatever the device of the graph, until their last use; in temporary files beyond an eighth
    of the memory that is free. A layer with large maps is fitted on the first images, as many as show
    each of its channels 65,536 values, at least 64 and a quarter of all; all pass through it. Nothing is
    random but Poisson coding.

    Args:
        gm: the converted graph, with neurons in place; its parameters are changed.
        ann_modules: the modules that neurons and spiking pooling took the place of, by name.
        inputs: calibration batches ``[N, ...]``, or tuples or dicts of several.
        time_steps: T.
        fits: called in this order on each :class:`Layer`.
        device: where the graph runs.
        unowned: called before it fires with each weighted layer that no fit has to itself, as several
            calls or branches share it, and ``unit=`` what a count of its input weighs.
        readout: what is applied to the mean output; ``None`` for nothing.
        progress: show a progress bar.
    """
    fits = list(fits)
    inputs = [map_tensors(channels_last, x) for x in inputs]
    # What else is temporal, an encoder say, passes the ANN's values on.
    temporal = [name for name, module in gm.named_modules() if isinstance(module, TemporalModule)]
    stand_ins = dict.fromkeys(temporal, nn.Identity()) | dict(ann_modules)
    values = record(gm, map_tensors(lambda t: t[:_EXAMPLE].to(device), join([inputs[0]] * _EXAMPLE)))
    reset_net(gm)
    sources, costs = current_sources(gm, values), _costs(gm, values)
    shapes = {n: v.shape for n, v in values.items() if isinstance(v, Tensor)}
    clipped = set() if readout is None else clipped_outputs(gm, readout, values)
    del values
    owned = {source.affine.target for source in sources.values() if source.affine is not None}
    left = {n.target for n in gm.graph.nodes if is_module(gm, n, WEIGHTED)} - owned
    left = set() if unowned is None else left
    stand_ins |= {str(name): copy.deepcopy(gm.get_submodule(str(name))) for name in left}
    enough = {node: _enough(gm, node, source, shapes, inputs) for node, source in sources.items()}
    plan = _plan(gm, sources, enough, len(inputs))
    at_once = _at_once(gm, plan.recorded, shapes, rows(inputs[0]))
    bar = tqdm(
        total=sum(costs.values()),
        desc="calibrate layers",
        bar_format=_BAR,
        disable=not progress,
        leave=False,
    )
    with Spill(memory_budget()) as spill, bar:
        ann = Activations(gm, inputs, time_steps, device, spill, plan.recorded, at_once, stand_ins)
        snn = Activations(gm, inputs, time_steps, device, spill, plan.recorded, at_once)
        for node in costs:
            ann.evaluate(node)
            if unowned is not None and node.target in left:
                left.remove(node.target)
                unowned(snn.module(node), unit=unit_met(gm, node, shapes, count_units(gm, shapes)))
            if node in sources:
                _fit(node, sources[node], ann, snn, shapes, fits, node in clipped, plan.enough[node])
            if node not in plan.refitted:
                snn.evaluate(node)
            for value in plan.freed.get(node, []):
                ann.free(value)
                snn.free(value)
            bar.update(costs[node])


class _Plan(NamedTuple):
    """When the values of the nodes come and go."""

    refitted: set[fx.Node]  # evaluated when their layer is fitted, and not before
    enough: Mapping[fx.Node, int]  # batches that a layer is fitted on
    recorded: dict[fx.Node, int]  # batches whose values are
    freed: dict[fx.Node, list[fx.Node]]  # what may go after a node


def _plan(
    gm: fx.GraphModule, sources: Mapping[fx.Node, Source], enough: Mapping[fx.Node, int], count: int
) -> _Plan:
    layer_of = {n: node for node, source in sources.items() for n in source.refitted(node)}
    readers: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    currents: dict[Any, int] = {}
    for node, source in sources.items():
        for n in source.read():
            readers[n].append(node)
        currents[node.args[0] if is_module(gm, node, BurstIFNode) else node] = enough[node]
    # The affine module's own output is needed in the sum with its residual only.
    affine = {source.affine for source in sources.values()}
    read = set(readers) - affine
    whole = recorded_nodes(gm, read)
    recorded = dict.fromkeys(recorded_nodes(gm, read | set(currents)), count)
    # What only its neuron reads, once it is fitted, is made again for the batches that no fit saw.
    recorded |= {node: most for node, most in currents.items() if node in recorded and node not in whole}
    order = {node: place for place, node in enumerate(gm.graph.nodes)}
    last: dict[fx.Node, fx.Node] = {}  # when the value of a node is made or read for the last time
    for node in reversed(gm.graph.nodes):
        uses = [layer_of.get(n, n if recorded.get(n) == count else last[n]) for n in node.users]
        last[node] = max([node, *uses, *readers[node]], key=order.__getitem__)
    freed: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in recorded:
        freed[last[node]].append(node)
    return _Plan(set(layer_of), enough, recorded, freed)


def _costs(gm: fx.GraphModule, values: Mapping[fx.Node, Any]) -> dict[fx.Node, int]:
    """Multiplications of each node for an example, or elements of its value if it does none."""
    costs = {}
    for node, value in values.items():
        costs[node] = value.numel() if isinstance(value, Tensor) else 1
        if is_module(gm, node, WEIGHTED):
            costs[node] *= gm.get_submodule(str(node.target)).weight[0].numel()  # type: ignore[index]
    return {node: cost for node, cost in costs.items() if node.op != "output"}


def _at_once(
    gm: fx.GraphModule, recorded: Container[fx.Node], shapes: Shapes, images: int
) -> dict[fx.Node, int]:
    """Batches of each node that together are no larger than one of the largest layer, a power of two.

    Args:
        gm: the converted graph.
        recorded: nodes whose values will be read in parts.
        shapes: for an example of two samples.
        images: of a batch.
    """
    whole = [node for node in gm.graph.nodes if node in recorded]
    depending = depends_on_input(gm)
    if not all(node in depending and node in shapes and shapes[node][0] == _EXAMPLE for node in whole):
        return dict.fromkeys(gm.graph.nodes, 1)  # not one row a sample
    sizes = {node: shapes[node].numel() if node in shapes else 1 for node in gm.graph.nodes}
    most = max(sizes.values())
    sizes = {node: max(sizes[n] for n in (node, *node.all_input_nodes)) for node in sizes}
    return {
        node: 2 ** int(math.log2(max(1, min(most // size, _TOGETHER // images))))
        for node, size in sizes.items()
    }


def _enough(gm: fx.GraphModule, node: fx.Node, source: Source, shapes: Shapes, inputs: list[Any]) -> int:
    """Batches that tell a layer what it has to know: an image shows a convolution many places."""
    tokens = source.affine is not None and is_module(gm, source.affine, nn.Linear)
    places = 1 if tokens else max(1, shapes[node][2:].numel())
    sizes = [rows(x) for x in inputs]
    return batches_with(max(_IMAGES, math.ceil(_SHARE * sum(sizes)), math.ceil(_PLACES / places)), sizes)


def _fit(
    node: fx.Node,
    source: Source,
    ann: Activations,
    snn: Activations,
    shapes: Shapes,
    fits: Iterable[Callable[[Layer], None]],
    clipped: bool,
    count: int,
) -> None:
    """Fit a neuron, or an affine module after the last neuron, on so many batches."""
    module, affine = snn.module(node), source.affine
    neuron = module if isinstance(module, BurstIFNode) else None
    current: Any = node if neuron is None else node.args[0]
    kept: list[Record] = []
    unit: Tensor | None = None
    inputs: Sequence[Tensor] = []
    wanted: Sequence[Tensor] = []
    parts = snn.parts(node, count)
    residuals: Sequence[Tensor] = [torch.zeros(())] * len(parts)
    if affine is not None:
        inputs, record = snn.means(parts, affine.args[0])
        wanted = ann.values(parts, current)
        kept.append(record)
        unit = unit_met(snn.gm, affine, shapes, count_units(snn.gm, shapes))
    if source.residual is not None:
        residuals, record = snn.means(parts, source.residual)
        whole = wanted
        wanted = Batches(len(parts), lambda i: whole[i] - residuals[i])
        kept.append(record)
    layer = Layer(
        name=str(node.target),
        neuron=neuron,
        affine=None if affine is None else snn.module(affine),
        evaluate=_current(current, source.refitted(node), snn, parts),
        inputs=inputs,
        wanted=wanted,
        residuals=residuals,
        targets=ann.values(parts, node),
        time_steps=snn.time_steps,
        device=snn.device,
        bounded=isinstance(ann.module(node), nn.Hardtanh | BoundedActivation),
        clipped=clipped and neuron is None,
        unit=unit,
    )
    for fit in fits:
        fit(layer)
    for record in kept:
        record.free()
    layer.evaluate()


def _current(
    node: fx.Node, refitted: list[fx.Node], snn: Activations, parts: list[range]
) -> Callable[[], Sequence[Tensor]]:
    """Returns the values of ``node``, evaluated (again) if the affine module before it has changed."""
    affine = snn.module(refitted[0]) if refitted else nn.Identity()
    evaluated: list[nn.Parameter] | None = None

    def evaluate() -> Sequence[Tensor]:
        nonlocal evaluated
        parameters = list(affine.parameters())
        if evaluated is None or list(map(id, parameters)) != list(map(id, evaluated)):
            if refitted:
                snn.evaluate(node)
            evaluated = parameters
        return snn.values(parts, node)

    return evaluate
