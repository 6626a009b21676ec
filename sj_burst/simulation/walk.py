"""From the spikes that neurons emit to the operations that they cause in the layers behind them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import ann2snn
from torch import Tensor, fx, nn

from ..functional import per_channel
from ..graph.evaluate import evaluate_node, has_tensor
from ..graph.operators import AVERAGE_POOLS, BATCH_NORMS, ELEMENTWISE, WEIGHTED, WEIGHTED_CALLS
from ..graph.repeat import RepeatOverTime
from ..graph.trace import is_module
from ..modules.integers import AffineScale, CountPool, IntegerLayer, OfBytes
from .operations import LayerOperations
from .spikes import POOLS, SOURCES

__all__ = ["LayerCost", "SpikeWalk"]

_SCALERS = (ann2snn.modules.VoltageScaler, ann2snn.modules.ChannelVoltageScaler)


@dataclass
class LayerCost:
    """What one weighted layer has cost.

    Attributes:
        synops: accumulations that spikes cause, over all samples and steps.
        constant_macs: per sample, on an input that is the same at every step.
        varying_macs: per sample and step, on other values that are no spikes.
        ann_macs: per sample, in the ANN.
    """

    synops: float = 0.0
    constant_macs: float = 0.0
    varying_macs: float = 0.0
    ann_macs: float = 0.0

    def per_sample(self, samples: int, time_steps: int) -> LayerOperations:
        """Operations per sample over all T steps."""
        macs = self.constant_macs + self.varying_macs * time_steps
        return LayerOperations(self.synops / samples, macs, self.ann_macs)


@dataclass
class _Spikes:
    """A value made of spikes: how many there were ``[1, ...]``, and what one weighs."""

    count: Tensor
    unit: Tensor


_CONSTANT, _VARYING = "constant", "varying"  # analog values


class SpikeWalk:
    """Carries spike counts through the graph, from the neurons to the weighted layers.

    Args:
        gm: the graph of a converted network.
        values: of all its nodes, for one input.
        emitted: spikes of every layer that emits some ``[1, ...]``; of pooling, their weights.
        varying: the network's input changes from step to step.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        values: dict[fx.Node, Any],
        emitted: dict[str, Tensor],
        varying: bool = False,
    ) -> None:
        self.gm, self.values, self.emitted = gm, values, emitted
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
            return _Spikes(torch.where(unit > 0, self.emitted[name] / unit, 0.0), unit)
        if is_module(self.gm, node, (RepeatOverTime, AffineScale, *BATCH_NORMS)):
            return source
        if is_module(self.gm, node, CountPool):
            pool: Any = self.gm.get_submodule(name)
            return _Spikes(_window_sums(pool.pool, source.count), pool.pool(source.unit))
        if is_module(self.gm, node, OfBytes):
            mover: Any = self.gm.get_submodule(name)
            return _Spikes(mover.module(source.count), mover.module(source.unit))
        if is_module(self.gm, node, _SCALERS):
            return _Spikes(source.count, self.gm.get_submodule(name)(source.unit.float()).double())
        if node.target in ELEMENTWISE:
            return self._elementwise(node)
        return self._reshaped(node)

    def _from_source(self, name: str) -> _Spikes:
        count = self.emitted[name]
        theta = getattr(self.gm.get_submodule(name), "threshold", torch.ones(()))
        return _Spikes(count, per_channel(theta.to(count), count.dim()).expand_as(count))

    def _is_weighted(self, node: fx.Node) -> bool:
        return is_module(self.gm, node, (IntegerLayer, *WEIGHTED)) or node.target in WEIGHTED_CALLS

    def _count(self, node: fx.Node, source: Any) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        cost = self.costs.setdefault(name, LayerCost())
        macs = self._connections(node, None)
        cost.ann_macs += macs
        if isinstance(source, _Spikes):
            cost.synops += self._connections(node, source.count)
        elif source is _CONSTANT:
            cost.constant_macs += macs
        else:
            cost.varying_macs += macs

    def _connections(self, node: fx.Node, count: Tensor | None) -> float:
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
        return evaluate_node(self.gm, node, ones).sum().item()

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
            return evaluate_node(
                self.gm,
                node,
                lambda n: getattr(self.flow[n], part) if n in self.flow else self.values[n],
            )

        count, unit = run("count"), run("unit")  # tuples after split and chunk
        if is_module(self.gm, node, AVERAGE_POOLS):
            source = self.flow[node.all_input_nodes[0]].count
            count = _window_sums(self.gm.get_submodule(str(node.target)), source)
        elif getattr(node.target, "__name__", node.target) == "mean":
            source = self.flow[node.all_input_nodes[0]].count
            count = count * (source.numel() / count.numel())
        return _Spikes(count, unit)


def _bias(node: fx.Node) -> Any:
    """The bias that a functional call of a weighted layer is given."""
    if not getattr(node.target, "__name__", "").startswith(("conv", "linear")):
        return None
    return node.kwargs.get("bias", node.args[2] if len(node.args) > 2 else None)


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
