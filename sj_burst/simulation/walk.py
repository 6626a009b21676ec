"""From the spikes that neurons emit to the operations that they cause in the layers behind them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import ann2snn
from torch import Tensor, fx, nn

from ..functional import per_channel
from ..graph.evaluate import evaluate_node, has_tensor
from ..graph.operators import AVERAGE_POOLS, BATCH_NORMS, ELEMENTWISE, WEIGHTED, WEIGHTED_CALLS
from ..graph.readout import ReadOut
from ..graph.repeat import RepeatOverTime
from ..graph.trace import is_module
from ..modules.integers import AffineScale, CountPool, IntegerLayer, OfBytes
from ..modules.scale import Scale
from .spikes import POOLS, SOURCES

__all__ = ["LayerCost", "SpikeWalk", "pool_units", "readout_costs"]

_SCALERS = (ann2snn.modules.VoltageScaler, ann2snn.modules.ChannelVoltageScaler)


@dataclass
class LayerCost:
    """What one weighted layer has cost.

    Attributes:
        synops: operations that spikes cause, over all samples and steps, by every accounting ``[K]``.
        constant_macs: per sample, on an input that is the same at every step.
        varying_macs: per sample and step, on other values that are no spikes.
        ann_macs: per sample, in the ANN.
    """

    synops: Tensor | float = 0.0
    constant_macs: float = 0.0
    varying_macs: float = 0.0
    ann_macs: float = 0.0

    def macs(self, time_steps: float) -> float:
        """Multiply-accumulates per sample in T steps."""
        return self.constant_macs + self.varying_macs * time_steps


@dataclass
class _Spikes:
    """A value made of spikes: by every accounting how many there were ``[1, ...]``; what one weighs."""

    counts: list[Tensor]
    unit: Tensor

    def moved(self, by: Callable[[Tensor], Tensor]) -> "_Spikes":
        """The same spikes where a module has moved them."""
        return _Spikes([by(count) for count in self.counts], by(self.unit))


_FACTORS = ("mul", "imul", "mul_", "truediv", "itruediv", "div", "div_", "true_divide")
_CONSTANT, _VARYING = "constant", "varying"  # analog values


class SpikeWalk:
    """Carries spike counts through the graph, from the neurons to the weighted layers.

    Args:
        gm: the graph of a converted network.
        values: of all its nodes, for one input.
        emitted: by each of K accountings the events of every layer that emits some ``[1, ...]``.
        varying: the network's input changes from step to step.
        thresholds: in place of those of the neurons.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        values: Mapping[fx.Node, Any],
        emitted: Mapping[str, Sequence[Tensor]],
        varying: bool = False,
        thresholds: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.gm, self.values, self.emitted = gm, values, emitted
        self.thresholds = thresholds or {}
        self.input = _VARYING if varying else _CONSTANT
        self.flow: dict[fx.Node, Any] = {}  # _Spikes, _CONSTANT, _VARYING; absent: no activation
        self.costs: dict[str, LayerCost] = {}

    def run(self) -> dict[str, LayerCost]:
        """Cost of every weighted layer."""
        for node in self.gm.graph.nodes:
            sources = [self.flow[n] for n in node.all_input_nodes if n in self.flow]
            if node.op == "placeholder":
                self.flow[node] = self.input
            elif node.op != "output" and sources and has_tensor(self.values[node]):
                self.flow[node] = self._step(node, sources)
        return self.costs

    def _step(self, node: fx.Node, sources: list[Any]) -> Any:
        name = str(node.target)
        source = sources[0]
        if is_module(self.gm, node, SOURCES):
            return self._from_source(name)
        if self._is_weighted(node):
            self._count(node, source)
            return _CONSTANT if sources == [_CONSTANT] else _VARYING
        if not all(isinstance(s, _Spikes) for s in sources):
            return _CONSTANT if all(s is _CONSTANT for s in sources) else _VARYING
        if is_module(self.gm, node, POOLS):
            module = self.gm.get_submodule(name)
            unit = getattr(module, "pool", module)(source.unit)
            return _Spikes(list(self.emitted[name]), unit)
        if is_module(self.gm, node, (RepeatOverTime, AffineScale)):
            return source
        if is_module(self.gm, node, (*BATCH_NORMS, Scale)):
            factor = _factor(self.gm.get_submodule(name), source.unit)
            return _Spikes(source.counts, source.unit * factor)
        if is_module(self.gm, node, CountPool):
            pool: Any = self.gm.get_submodule(name)
            sums = [_window_sums(pool.pool, count) for count in source.counts]
            return _Spikes(sums, pool.pool(source.unit))
        if is_module(self.gm, node, OfBytes):
            mover: Any = self.gm.get_submodule(name)
            return source.moved(mover.module)
        if is_module(self.gm, node, _SCALERS):
            return _Spikes(source.counts, self.gm.get_submodule(name)(source.unit.float()).double())
        if node.target in ELEMENTWISE:
            return self._elementwise(node)
        return self._reshaped(node)

    def _from_source(self, name: str) -> _Spikes:
        counts = list(self.emitted[name])
        theta = getattr(self.gm.get_submodule(name), "threshold", torch.ones(()))
        theta = self.thresholds.get(name, theta)
        theta = per_channel(theta.to(counts[0]), counts[0].dim())
        return _Spikes(counts, theta.expand_as(counts[0]))

    def _is_weighted(self, node: fx.Node) -> bool:
        return is_module(self.gm, node, (IntegerLayer, *WEIGHTED)) or node.target in WEIGHTED_CALLS

    def _count(self, node: fx.Node, source: Any) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        cost = self.costs.setdefault(name, LayerCost())
        macs = self._connections(node, None).item()
        cost.ann_macs += macs
        if isinstance(source, _Spikes):
            each = [self._connections(node, count) for count in source.counts]
            cost.synops = cost.synops + torch.stack(each).double()
        elif source is _CONSTANT:
            cost.constant_macs += macs
        else:
            cost.varying_macs += macs

    def _connections(self, node: fx.Node, count: Tensor | None) -> Tensor:
        """Σ of count times fan-out: the layer's own output if every weight is one."""
        bias = _bias(node)

        def ones(n: fx.Node) -> Any:
            value = self.values[n]
            if n is bias:
                return torch.zeros_like(value, dtype=torch.float64)
            if n in self.flow:
                return torch.ones_like(value, dtype=torch.float64) if count is None else count
            is_weight = isinstance(value, Tensor) and value.is_floating_point()
            return torch.ones_like(value, dtype=torch.float64) if is_weight else value

        if node.op == "call_module":
            layer: Any = self.gm.get_submodule(str(node.target))
            layer = getattr(layer, "geometry", layer)  # of integer weights
            return _sum_with_unit_weights(layer, ones(node.all_input_nodes[0]))
        return evaluate_node(self.gm, node, ones).sum()

    def _elementwise(self, node: fx.Node) -> _Spikes:
        given = (*node.args, *node.kwargs.values())
        operands = [self.flow[n] for n in given if isinstance(n, fx.Node) and n in self.flow]
        shape = self.values[node].shape
        unit = operands[0].unit.expand(shape)
        if len(operands) == 1 and getattr(node.target, "__name__", node.target) in _FACTORS:

            def of_units(n: fx.Node) -> Any:
                return self.flow[n].unit if n in self.flow else self.values[n]

            unit = evaluate_node(self.gm, node, of_units).abs().double().expand(shape)  # by a constant
        for other in operands[1:]:
            unit = torch.maximum(unit, other.unit.expand(shape))
        together = zip(*(s.counts for s in operands), strict=True)
        return _Spikes([sum(count.expand(shape) for count in each) for each in together], unit)

    def _reshaped(self, node: fx.Node) -> Any:
        """Views, concatenation, padding, averages: apply the operator to the counts."""

        def run(part: Callable[[_Spikes], Any]) -> Any:
            return evaluate_node(
                self.gm, node, lambda n: part(self.flow[n]) if n in self.flow else self.values[n]
            )

        def of_accounting(k: int) -> Any:
            return run(lambda spikes: spikes.counts[k])

        source = next(self.flow[n].counts for n in node.all_input_nodes if n in self.flow)
        counts = [of_accounting(k) for k in range(len(source))]  # tuples after split and chunk
        unit = run(lambda spikes: spikes.unit)
        if is_module(self.gm, node, AVERAGE_POOLS):
            pool = self.gm.get_submodule(str(node.target))
            counts = [_window_sums(pool, count) for count in source]
            unit = unit / _window_sums(pool, torch.ones_like(source[0])).clamp_min(1)  # its part
        elif getattr(node.target, "__name__", node.target) == "mean":
            counts = [
                count * (before.numel() / count.numel())
                for count, before in zip(counts, source, strict=True)
            ]
        return _Spikes(counts, unit)


@torch.no_grad()
def readout_costs(snn: nn.Module, values: Mapping[fx.Node, Any]) -> dict[str, LayerCost]:
    """What the layers of the read-out cost: they run once a sample, on the mean output.

    Args:
        snn: a converted network, or its graph, which has no read-out.
        values: of all nodes of the graph, for one input.
    """
    readout = getattr(snn, "readout", None)
    if not isinstance(readout, ReadOut):
        return {}
    mean = next(value for node, value in values.items() if node.op == "output")
    own: dict[fx.Node, Any] = {}
    for node in readout.graph.graph.nodes:
        given = node.op == "placeholder"  # one, of any nesting
        own[node] = mean if given else evaluate_node(readout.graph, node, own.__getitem__)
    return SpikeWalk(readout.graph, own, {}).run()


@torch.no_grad()
def pool_units(gm: fx.GraphModule, values: Mapping[fx.Node, Any]) -> dict[str, Tensor]:
    """What a spike of each pooling layer weighs, where spikes reach it: ``[C]``, or by neuron.

    Args:
        gm: the graph of a converted network.
        values: of all its nodes, for one input.
    """
    nodes = {str(n.target): n for n in gm.graph.nodes if is_module(gm, n, (*POOLS, *SOURCES))}
    if not any(is_module(gm, node, POOLS) for node in nodes.values()):
        return {}
    silent = {name: [torch.zeros_like(values[node]).double()] for name, node in nodes.items()}
    walk = SpikeWalk(gm, values, silent)
    walk.run()
    flows = {name: walk.flow[node] for name, node in nodes.items() if is_module(gm, node, POOLS)}
    return {name: _by_channel(flow.unit) for name, flow in flows.items() if isinstance(flow, _Spikes)}


def _by_channel(unit: Tensor) -> Tensor:
    """One value for each channel, if its neurons do not differ."""
    rows = unit.movedim(1, 0).flatten(1)
    most = rows.amax(1)
    alike = ((rows == most.unsqueeze(1)) | (rows == 0)).all()
    return most if bool(alike) else unit


def _factor(norm: Any, like: Tensor) -> Tensor:
    """By how much a BatchNorm or a factor makes a spike weigh more, by channel."""
    if isinstance(norm, Scale):
        return per_channel(norm.factor.double().abs(), like.dim())
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    return per_channel(factor.abs(), like.dim())


def _bias(node: fx.Node) -> Any:
    """The bias that a functional call of a weighted layer is given."""
    if not getattr(node.target, "__name__", "").startswith(("conv", "linear")):
        return None
    return node.kwargs.get("bias", node.args[2] if len(node.args) > 2 else None)


def _sum_with_unit_weights(layer: Any, x: Tensor) -> Tensor:
    """Σ of the output of a layer without bias whose weights are one: all its channels are alike."""
    if isinstance(layer, nn.Linear):
        return x.sum() * layer.out_features
    groups = layer.groups
    one = {"weight": x.new_ones(groups, 1, *layer.kernel_size)}
    if layer.bias is not None:
        one["bias"] = x.new_zeros(groups)
    every = x.sum(1, keepdim=True).expand(-1, groups, *x.shape[2:])
    total = torch.func.functional_call(layer, one, (every,)).sum()
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
