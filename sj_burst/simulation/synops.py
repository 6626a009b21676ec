"""Synaptic operations and the energy they cost, beside the ANN's multiply-accumulates."""

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import ann2snn, neuron
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..functional import per_channel
from ..graph.evaluate import record
from ..graph.repeat import RepeatOverTime
from ..graph.trace import is_module
from ..modules.encoding import CompensatedRateEncoder, PoissonEncoder, RateEncoder
from ..modules.neuron import BurstIFNode
from ..modules.pooling import MAX_POOLS, GatedPool, LIPool
from ..modules.temporal import TimeFold, time_folded
from ..network import SpikingNetwork
from ..utils.checks import check_count
from ..utils.loader import batches, check_loader
from .operations import LayerOperations, Operations

__all__ = ["count_operations", "count_outputs", "synops"]


# What emits spikes; SpikingJelly's neurons emit ones, which its converter scales afterwards.
_SOURCES = (BurstIFNode, PoissonEncoder, RateEncoder, CompensatedRateEncoder, neuron.BaseNode)
_SCALERS = (ann2snn.modules.VoltageScaler, ann2snn.modules.ChannelVoltageScaler)
_POOLS = (*MAX_POOLS, LIPool, GatedPool)
_WEIGHTED = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_WEIGHTED_CALLS = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, "matmul", "bmm"),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(operator.matmul, torch.matmul, torch.bmm, torch.einsum),
}
_AVERAGES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Sums let the spikes of both operands pass; constant offsets and factors merge into the weights.
_ELEMENTWISE = {
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.neg, operator.mul),
    *(operator.imul, operator.truediv, operator.itruediv),
    *(torch.add, torch.sub, torch.neg, torch.mul, torch.div),
    *("add", "add_", "sub", "sub_", "neg", "mul", "mul_", "div", "div_", "true_divide"),
}


@torch.no_grad()
def synops(snn: nn.Module, loader: Iterable[Any], time_steps: int) -> Operations:
    r"""Count the synaptic operations of a converted network, layer by layer.

    .. math::
        \text{SynOps} = \sum_i \text{fan-out}_i \sum_t |n_i(t)|

    over the inputs i of every weighted layer: a burst of n spikes counts n, a negative spike 1, and
    the fan-out of a position is the number of weights that it really meets (borders, stride, groups
    and dilation included). Conventions, labelled *derived here*:

    - Max-pooling passes on the spikes that it emits. Average pooling is merged into the layer after
      it: each spike counts once in every window that it lies in. So are unfused BatchNorm and
      constant factors. Interpolation divides a spike among positions.
    - A layer whose input is the analog image (direct coding) runs as MACs, once, because its input
      is the same at every step; one that reads currents which vary (two weighted layers without a
      neuron between them) runs as MACs at every step.
    - The analog remainder of ``"compensated"`` coding counts as its size in spikes.
    - Updates of neurons, pooling windows, biases and memory traffic are not counted; neither are
      they for the ANN.

    Args:
        snn: a network that ``BurstRecipe`` or a recipe of SpikingJelly converted; its state is reset
            before and after.
        loader: batches.
        time_steps: T.

    Returns:
        :class:`Operations` per sample.

    Raises:
        ValueError: if T < 1 or the loader is empty.
        TypeError: for a network that was not converted, or a loader that cannot be read.

    Source: energies of Horowitz, "Computing's energy problem", ISSCC 2014.

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(16, 3)]
        >>> snn = convert(ann, data, progress=False)
        >>> counted = synops(snn, data, time_steps=8)
        >>> counted.layers["0"].macs, counted.ann_macs
        (12.0, 20.0)
    """
    check_count(time_steps=time_steps)
    if not any(isinstance(module, _SOURCES) for module in graph_of(snn).modules()):
        raise TypeError("synops wants a spiking network, and there is no neuron in this one; convert it")
    check_loader(loader)
    device = next(snn.buffers(), torch.empty(0)).device
    samples = 0
    training = snn.training
    snn.eval()
    try:
        with count_outputs(snn) as outputs:
            for x, _ in batches(loader):
                reset_net(snn)
                samples += len(x)
                _present(snn, x.to(device), time_steps)
        return count_operations(snn, outputs, x[:1].to(device), samples, time_steps)
    finally:
        reset_net(snn)
        snn.train(training)


def graph_of(snn: nn.Module) -> fx.GraphModule:
    """The graph of a converted network.

    Raises:
        TypeError: for other networks.
    """
    graph = snn.graph if isinstance(snn, SpikingNetwork) else snn
    if not isinstance(graph, fx.GraphModule):
        raise TypeError(f"operations are counted of converted networks only, got {type(snn).__name__}")
    return graph


def _present(snn: nn.Module, x: Tensor, time_steps: int) -> None:
    if not isinstance(snn, SpikingNetwork):
        for _ in range(time_steps):
            snn(x)
        return
    for _ in snn.present(x).chunks(time_steps, max(1, 256 // len(x))):
        pass


@contextmanager
def count_outputs(snn: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While open, sum |output| over rows for every neuron, pooling and encoder: ``[1, ...]``."""
    outputs: dict[str, Tensor] = {}
    room: dict[Any, Tensor] = {}  # used again for every tensor of a shape: memory is slow to get
    handles = []
    for name, module in graph_of(snn).named_modules():
        if isinstance(module, (*_SOURCES, *_POOLS)):

            def add(node: nn.Module, _: Any, y: Tensor, name: str = name) -> None:
                total = _counted(node)
                if total is None:
                    total = _sum_of_magnitudes(y.detach(), room)
                outputs[name] = outputs[name] + total if name in outputs else total

            handles.append(module.register_forward_hook(add))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _counted(node: nn.Module) -> Tensor | None:
    """Σ |output| over rows from the spikes that a neuron's backend has counted, if it has."""
    if not isinstance(node, BurstIFNode) or node.spike_counts is None:
        return None
    spikes = node.spike_counts.per_neuron
    if spikes is None:
        return None
    total = _sum_of_rows(spikes)
    return total * per_channel(node.threshold.double(), total.dim())


def _sum_of_magnitudes(y: Tensor, room: dict[Any, Tensor]) -> Tensor:
    """Σ |y| over rows, ``[1, ...]``."""
    key = (y.shape, y.stride(), y.device, y.dtype)
    if key not in room:
        room[key] = torch.empty_like(y)
    return _sum_of_rows(torch.abs(y, out=room[key]))


def _sum_of_rows(y: Tensor) -> Tensor:
    """Σ y over rows, ``[1, ...]``; a product with ones is much faster than a sum."""
    strides = y.stride()
    order = sorted(range(1, y.dim()), key=lambda d: -strides[d])  # as it lies in memory
    rows = y.permute(0, *order)
    if y.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    total = (rows.new_ones(1, len(y)) @ rows.flatten(1)).double().unflatten(1, rows.shape[1:])
    return total.permute(0, *[order.index(d) + 1 for d in range(1, y.dim())])


@torch.no_grad()
def count_operations(
    snn: nn.Module, outputs: dict[str, Tensor], x: Tensor, samples: int, time_steps: int
) -> Operations:
    """Operations from summed outputs; see :func:`synops` for the conventions.

    Args:
        snn: the network; its state is reset.
        outputs: of :func:`count_outputs`.
        x: one input ``[1, ...]``, for the shapes.
        samples: over which ``outputs`` is summed.
        time_steps: over which ``outputs`` is summed.
    """
    reset_net(snn)
    gm = graph_of(snn)
    with (
        time_folded(snn.graph, TimeFold(1, len(x))) if isinstance(snn, SpikingNetwork) else nullcontext()
    ):
        walk = _Walk(gm, record(gm, x), outputs)
    reset_net(snn)
    layers = {}
    for name, (spikes, constant, varying, ann) in walk.run().items():
        macs = constant + varying * time_steps
        layers[name] = LayerOperations(spikes / samples, macs, ann)
    return Operations(layers, time_steps)


@dataclass
class _Spikes:
    """A value made of spikes: how many there were ``[1, ...]``, and what one weighs."""

    count: Tensor
    unit: Tensor


_CONSTANT, _VARYING = "constant", "varying"  # analog values


class _Walk:
    """Carries spike counts through the graph, from the neurons to the weighted layers."""

    def __init__(self, gm: fx.GraphModule, values: dict[fx.Node, Any], outputs: dict[str, Tensor]):
        self.gm, self.values, self.outputs = gm, values, outputs
        self.interpreter = fx.Interpreter(gm)
        self.flow: dict[fx.Node, Any] = {}  # _Spikes, _CONSTANT, _VARYING; absent: no activation
        self.operations: dict[str, list[float]] = {}

    def run(self) -> dict[str, list[float]]:
        """SynOps over all samples, MACs of a constant and of a varying input, MACs of the ANN."""
        for node in self.gm.graph.nodes:
            sources = [self.flow[n] for n in node.all_input_nodes if n in self.flow]
            if node.op == "placeholder":
                self.flow[node] = _CONSTANT
            elif node.op != "output" and sources and _has_tensor(self.values[node]):
                self.flow[node] = self._step(node, sources)
        return self.operations

    def _step(self, node: fx.Node, sources: list[Any]) -> Any:
        name = str(node.target)
        source = sources[0]
        if is_module(self.gm, node, _SOURCES):
            unit = getattr(self.gm.get_submodule(name), "threshold", torch.ones(()))
            return self._emitted(name, unit.to(self.outputs[name]))
        if self._is_weighted(node):
            self._count(node, source)
            return _CONSTANT if sources == [_CONSTANT] else _VARYING
        if not all(isinstance(s, _Spikes) for s in sources):
            return _CONSTANT if all(s is _CONSTANT for s in sources) else _VARYING
        if is_module(self.gm, node, _POOLS):
            module = self.gm.get_submodule(name)
            unit = getattr(module, "pool", module)(source.unit)
            return _Spikes(torch.where(unit > 0, self.outputs[name] / unit, 0.0), unit)
        if is_module(self.gm, node, (RepeatOverTime, *_BATCH_NORMS)):
            return source
        if is_module(self.gm, node, _SCALERS):
            return _Spikes(source.count, self.gm.get_submodule(name)(source.unit.float()).double())
        if node.target in _ELEMENTWISE:
            return self._elementwise(node)
        return self._reshaped(node)

    def _emitted(self, name: str, threshold: Any) -> _Spikes:
        total = self.outputs[name]
        unit = per_channel(threshold.double(), total.dim()).expand_as(total)
        return _Spikes((total / unit).round(), unit)

    def _is_weighted(self, node: fx.Node) -> bool:
        return is_module(self.gm, node, _WEIGHTED) or node.target in _WEIGHTED_CALLS

    def _count(self, node: fx.Node, source: Any) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        counts = self.operations.setdefault(name, [0.0, 0.0, 0.0, 0.0])
        macs = self._connections(node, None)
        counts[3] += macs
        if isinstance(source, _Spikes):
            counts[0] += self._connections(node, source.count)
        else:
            counts[1 if source is _CONSTANT else 2] += macs

    def _connections(self, node: fx.Node, count: Tensor | None) -> float:
        """Σ of count times fan-out: the layer's own output if every weight is one."""

        def ones(n: fx.Node) -> Any:
            value = self.values[n]
            if n in self.flow:
                return torch.ones_like(value, dtype=torch.float64) if count is None else count
            is_weight = isinstance(value, Tensor) and value.is_floating_point()
            return torch.ones_like(value, dtype=torch.float64) if is_weight else value

        args: Any
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), ones)
        if node.op == "call_module":
            layer = self.gm.get_submodule(str(node.target))
            return _sum_with_unit_weights(layer, *args)
        if getattr(node.target, "__name__", "").startswith(("conv", "linear")):
            args = (*args[:2], *(None for _ in args[2:3]), *args[3:])
            kwargs = {key: value for key, value in kwargs.items() if key != "bias"}
        return getattr(self.interpreter, node.op)(node.target, args, kwargs).sum().item()

    def _elementwise(self, node: fx.Node) -> _Spikes:
        operands = [self.flow[n] for n in node.args if isinstance(n, fx.Node) and n in self.flow]
        shape = self.values[node].shape
        unit = operands[0].unit.expand(shape)
        for other in operands[1:]:
            unit = torch.maximum(unit, other.unit.expand(shape))
        return _Spikes(sum(s.count.expand(shape) for s in operands), unit)

    def _reshaped(self, node: fx.Node) -> Any:
        """Views, concatenation, padding, averages: apply the operator to the counts."""

        def run(part: str) -> Any:
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs),
                lambda n: getattr(self.flow[n], part) if n in self.flow else self.values[n],
            )
            return getattr(self.interpreter, node.op)(node.target, args, kwargs)

        count, unit = run("count"), run("unit")  # tuples after split and chunk
        if is_module(self.gm, node, _AVERAGES):
            source = self.flow[node.all_input_nodes[0]].count
            count = _window_sums(self.gm.get_submodule(str(node.target)), source)
        elif getattr(node.target, "__name__", node.target) == "mean":
            source = self.flow[node.all_input_nodes[0]].count
            count = count * (source.numel() / count.numel())
        return _Spikes(count, unit)


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value)
    )


def _sum_with_unit_weights(layer: Any, x: Tensor) -> float:
    """Σ of the output of a layer without bias whose weights are one: all its channels are alike."""
    if isinstance(layer, nn.Linear):
        return x.sum().item() * layer.out_features
    groups = layer.groups
    one = {"weight": x.new_ones(groups, 1, *layer.kernel_size)}
    if layer.bias is not None:
        one["bias"] = x.new_zeros(groups)
    every = x.sum(1, keepdim=True).expand(-1, groups, *x.shape[2:])
    total = torch.func.functional_call(layer, one, (every,)).sum().item()
    return total * layer.out_channels / groups**2


def _window_sums(pool: Any, count: Tensor) -> Tensor:
    """Sum over each window of an average-pooling module."""
    if hasattr(pool, "output_size"):  # adaptive: windows may differ in size
        means = pool(count)
        for dim in range(2, count.dim()):
            length, outputs = count.shape[dim], means.shape[dim]
            sizes = [-(-(i + 1) * length // outputs) - i * length // outputs for i in range(outputs)]
            means = means * means.new_tensor(sizes).view(-1, *[1] * (count.dim() - dim - 1))
        return means
    options = {"ceil_mode": pool.ceil_mode, "divisor_override": 1}
    sizes = [pool.kernel_size, pool.stride, pool.padding]
    if isinstance(pool, nn.AvgPool1d):  # a picture of height 1
        sizes = [(fill, *size) for fill, size in zip((1, 1, 0), sizes, strict=True)]
        return F.avg_pool2d(count.unsqueeze(2), *sizes, **options).squeeze(2)
    average = F.avg_pool2d if isinstance(pool, nn.AvgPool2d) else F.avg_pool3d
    return average(count, *sizes, **options)
